//! The contract between the TC programs and the agent: map names, keys,
//! values and counters.
//!
//! Everything here is `repr(C)`, free of padding (proved by zerocopy's
//! `IntoBytes`) and fixed for one [`ABI_VERSION`]. Integers are in host byte
//! order; addresses and ports are arrays in network byte order, as they stand
//! in the packet.

mod attendance;
mod config;
mod exemption;
mod flow;
mod handover;
mod outcome;
mod peer;
mod ticket;

pub use attendance::Attendance;
pub use config::{Config, flag};
pub use exemption::{Exemption, MAX_EXEMPTIONS};
pub use flow::{Flow, FlowKey, Treatment, Tuple4, Veth, action, closing, direction, state};
pub use handover::{HANDOVER, Handover};
pub use outcome::{OUTCOMES, Outcome};
pub use peer::{Peer, PeerStats, Stranger, Subnet, SubnetKey, subnet_flag};
pub use ticket::{CARRIED, Ticket, TicketNumbers, ticket_flag};
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
    /// Array: [`super::PeerStats`] by CPU and peer id ([`super::PeerStats::index`]). The
    /// kernel would allocate each element of a per-CPU array by itself, which takes long.
    pub const PEER_STATS: &str = "fl_peer_stats";
    /// Array: [`super::Exemption`]; the first [`super::Config::exemptions`] count.
    pub const EXEMPTIONS: &str = "fl_exemptions";
    /// LRU hash: [`super::Stranger`] by outer source address.
    pub const STRANGERS4: &str = "fl_strangers4";
    /// One [`super::Attendance`].
    pub const ATTENDED: &str = "fl_attended";
    /// All that outlive the agent, pinned.
    pub const ALL: [&str; 10] =
        [CFG, SUBNETS4, PEERS4, FLOWS4, VETHS, STATS, PEER_STATS, EXEMPTIONS, STRANGERS4, ATTENDED];
    /// Array: [`super::Ticket`], a region for each CPU. Not pinned: of use for
    /// the packets under way only.
    pub const TICKETS: &str = "fl_tickets";
    /// Array of one u32, raised when the node is told of a smaller path MTU or
    /// another next hop (ICMP): no event tells the agent. Not pinned.
    pub const EPOCH: &str = "fl_epoch";
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
/// Foreign senders that are remembered.
pub const MAX_STRANGERS: u32 = 256;
/// Host-side veths that can be served.
pub const MAX_VETHS: u32 = 4_096;

const _: () = {
    assert!(size_of::<Attendance>() == 16);
    assert!(size_of::<Config>() == 88);
    assert!(size_of::<Subnet>() == 16);
    assert!(size_of::<Peer>() == 4);
    assert!(size_of::<FlowKey>() == 16);
    assert!(size_of::<Flow>() == 120);
    assert!(size_of::<Veth>() == 8);
    assert!(size_of::<PeerStats>() == 64);
    assert!(size_of::<Handover>() == 32);
    assert!(size_of::<Exemption>() == 32);
    assert!(size_of::<Ticket>() == 72);
    assert!(size_of::<Treatment>() == 32);
    assert!(size_of::<Stranger>() == 24);
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
pod!(Attendance, Config, Subnet, Peer, FlowKey, Flow, Veth, PeerStats, Exemption, Ticket, Stranger);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_kernel_keeps_map_names_whole() {
        assert!(map::ALL.iter().all(|name| name.len() <= 15));
    }

    #[test]
    fn ticket_numbers_fit_into_16_bits_and_tell_turns_apart() {
        for cpus in [1, 2, 3, 8, 63, 64, 100, 1024] {
            let numbers = TicketNumbers::of(cpus);
            assert!(numbers.index_log2 <= 16 && numbers.slots() >= 64, "{cpus}");
            let region = numbers.region(cpus - 1);
            assert!(region + numbers.slots() <= 1 << numbers.index_log2);
            let turns = 1 << (16 - numbers.index_log2);
            for sequence in 1..3 * numbers.slots() {
                let number = numbers.number(region, sequence);
                if number == 0 {
                    continue;
                }
                assert_eq!(numbers.index(number), region | numbers.slot(sequence));
                assert!(numbers.is_of(number, sequence));
                assert!(!numbers.is_of(CARRIED, sequence) && !numbers.is_of(0, sequence));
                let next = sequence + numbers.slots();
                assert_eq!(numbers.is_of(number, next), turns == 1, "{cpus} {sequence}");
            }
        }
        assert_eq!(TicketNumbers::of(2).slots(), 1024);
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
