//! The contract between the TC programs and the agent: map names, keys,
//! values and counters.
//!
//! Everything here is `repr(C)`, free of padding (proved by zerocopy's
//! `IntoBytes`) and fixed for one [`ABI_VERSION`]. Integers are in host byte
//! order; addresses and ports are arrays in network byte order, as they stand
//! in the packet.

mod config;
mod exemption;
mod flow;
mod handover;
mod outcome;
mod peer;

pub use config::{Config, flag};
pub use exemption::{Exemption, MAX_EXEMPTIONS};
pub use flow::{Flow, FlowKey, Veth, action, closing, direction, state};
pub use handover::{HANDOVER, Handover};
pub use outcome::{OUTCOMES, Outcome};
pub use peer::{Peer, PeerStats, Subnet, SubnetKey, subnet_flag};
#[cfg(feature = "user")]
use zerocopy::{FromBytes, IntoBytes};

/// Version of every layout in this module. The agent keeps the maps of each
/// version in a directory of its own, so that two versions never share a map.
/// Raise it whenever a name, a size or an offset below changes.
pub const ABI_VERSION: u32 = 2;

/// Map names. The kernel keeps 15 characters of a name.
pub mod map {
    /// One [`super::Config`].
    pub const CFG: &str = "fl_cfg";
    /// LPM trie: [`super::Subnet`] by destination prefix.
    pub const SUBNETS4: &str = "fl_subnets4";
    /// Hash: [`super::Peer`] by underlay address.
    pub const PEERS4: &str = "fl_peers4";
    /// LRU hash: [`super::Flow`] by [`super::FlowKey`].
    pub const FLOWS4: &str = "fl_flows4";
    /// Hash: [`super::Veth`] by ifindex of the host side.
    pub const VETHS: &str = "fl_veths";
    /// Per-CPU array: one packet count for each [`super::Outcome`].
    pub const STATS: &str = "fl_stats";
    /// Per-CPU array: [`super::PeerStats`] by peer id.
    pub const PEER_STATS: &str = "fl_peer_stats";
    /// Array: [`super::Exemption`]; the first [`super::Config::exemptions`] count.
    pub const EXEMPTIONS: &str = "fl_exemptions";
    /// All of them.
    pub const ALL: [&str; 8] =
        [CFG, SUBNETS4, PEERS4, FLOWS4, VETHS, STATS, PEER_STATS, EXEMPTIONS];
}

/// Program names: the functions of the object file, and the hooks.
pub mod program {
    /// TC ingress of the host side of a pod's veth.
    pub const FROM_POD: &str = "from_pod";
    /// TC egress of `flannel.<VNI>`.
    pub const TO_OVERLAY: &str = "to_overlay";
    /// TC ingress of the underlay device.
    pub const FROM_UNDERLAY: &str = "from_underlay";
    /// TC egress of the host side of a pod's veth.
    pub const TO_POD: &str = "to_pod";
    /// TC ingress of `flannel.<VNI>`.
    pub const FROM_OVERLAY: &str = "from_overlay";
    /// TC egress of the underlay device, where peers are reached without a tunnel.
    pub const TO_UNDERLAY: &str = "to_underlay";
    /// XDP of the underlay device, where it has that: a node does without it.
    pub const FROM_WIRE: &str = "from_wire";
    /// All of TC.
    pub const ALL: [&str; 6] =
        [FROM_POD, TO_OVERLAY, FROM_UNDERLAY, TO_POD, FROM_OVERLAY, TO_UNDERLAY];
}

/// Flows that the table holds by default (`--flow-table-size`) before the oldest
/// give way.
pub const MAX_FLOWS: u32 = 65_536;
/// Peers that the tables hold.
pub const MAX_PEERS: u32 = 65_536;
/// Peers with counters of their own; ids from here on share the last slot.
pub const MAX_PEER_STATS: u32 = 8_192;
/// Host-side veths that can be served.
pub const MAX_VETHS: u32 = 4_096;

const _: () = {
    assert!(size_of::<Config>() == 80);
    assert!(size_of::<Subnet>() == 16);
    assert!(size_of::<Peer>() == 4);
    assert!(size_of::<FlowKey>() == 16);
    assert!(size_of::<Flow>() == 72);
    assert!(size_of::<Veth>() == 8);
    assert!(size_of::<PeerStats>() == 64);
    assert!(size_of::<Handover>() == 32);
    assert!(size_of::<Exemption>() == 28);
};

/// `aya::Pod` for every map type.
///
/// zerocopy's `IntoBytes` proves that there is no padding, and `FromBytes` that
/// any bytes are a valid value; `Copy` that nothing is owned.
#[cfg(feature = "user")]
macro_rules! pod {
    ($($type:ty),+) => {
        $(
            const _: () = {
                const fn plain<T: Copy + FromBytes + IntoBytes + 'static>() {}
                plain::<$type>();
            };
            // SAFETY: `plain` just proved what the doc above says.
            unsafe impl aya::Pod for $type {}
        )+
    };
}

#[cfg(feature = "user")]
pod!(Config, Subnet, Peer, FlowKey, Flow, Veth, PeerStats, Exemption);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_kernel_keeps_map_names_whole() {
        assert!(map::ALL.iter().all(|name| name.len() <= 15));
    }

    #[test]
    fn outcomes_have_distinct_names_and_the_index_of_their_place() {
        let names: HashSet<_> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
        }
    }
}
