//! The contract between the TC programs and the agent: map names, keys,
//! values and counters.
//!
//! Everything here is `repr(C)`, free of padding (proved by zerocopy's
//! `IntoBytes`) and fixed for one [`ABI_VERSION`]. Integers are in host byte
//! order; addresses and ports are arrays in network byte order, as they stand
//! in the packet.

mod outcome;

pub use outcome::{OUTCOMES, Outcome};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of every layout in this module. The agent keeps the maps of each
/// version in a directory of its own, so that two versions never share a map.
/// Raise it whenever a name, a size or an offset below changes.
pub const ABI_VERSION: u32 = 1;

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
    /// All of them.
    pub const ALL: [&str; 7] = [CFG, SUBNETS4, PEERS4, FLOWS4, VETHS, STATS, PEER_STATS];
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
pub const MAX_PEERS: u32 = 16_384;
/// Peers with counters of their own; ids from here on share the last slot.
pub const MAX_PEER_STATS: u32 = 8_192;
/// Host-side veths that can be served.
pub const MAX_VETHS: u32 = 4_096;

/// Settings that every program reads; the only element of [`map::CFG`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Config {
    /// [`ABI_VERSION`] of the agent that wrote this.
    pub abi_version: u32,
    /// A confirmation counts only in the generation it was made in.
    pub generation: u32,
    /// Life of a confirmation in nanoseconds (T).
    pub window_ns: u64,
    /// Bits of [`flag`].
    pub flags: u32,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Interface index of the underlay device.
    pub underlay_ifindex: u32,
    /// Interface index of `flannel.<VNI>`.
    pub overlay_ifindex: u32,
    /// Underlay address of this node, the outer source of what we send.
    pub local_ip: [u8; 4],
    /// Network address of the overlay.
    pub network: [u8; 4],
    /// Netmask of the overlay.
    pub netmask: [u8; 4],
    /// Network address of our own subnet.
    pub subnet: [u8; 4],
    /// Netmask of our own subnet.
    pub subnet_mask: [u8; 4],
    /// UDP destination port of the tunnel; 0: there is none.
    pub port: [u8; 2],
    /// Largest inner IP packet in bytes (MTU of `flannel.<VNI>`).
    pub mtu: u16,
    /// Own VTEP MAC.
    pub vtep_mac: [u8; 6],
    /// Lowest UDP source port (`net.ipv4.ip_local_port_range`).
    pub sport_min: u16,
    /// Highest UDP source port.
    pub sport_max: u16,
    /// Largest IP packet to a direct peer in bytes (MTU of the underlay device).
    pub direct_mtu: u16,
    /// Always zero.
    pub reserved: [u8; 4],
}

/// Bits of [`Config::flags`].
pub mod flag {
    /// Use confirmed flows. Without it the programs only count and guard.
    pub const FAST_PATH: u32 = 1;
    /// Confirm TCP flows too (conntrack is liberal, or not there).
    pub const TCP: u32 = 2;
    /// Drop packets that fail the source check.
    pub const VERIFY_DROP: u32 = 4;
    /// Count packets that fail the source check. With neither bit the check is off.
    pub const VERIFY_COUNT: u32 = 8;
    /// Some peers are reached without a tunnel ([`super::subnet_flag::DIRECT`]).
    pub const DIRECT: u32 = 32;
    /// Repeat for a new TCP connection what the kernel did with the last one
    /// between the same client and service, from its SYN on.
    pub const EAGER: u32 = 64;
    /// `from_wire` runs in the underlay's driver, and `from_underlay` takes
    /// what it hands over.
    pub const XDP: u32 = 128;
    /// The tunnel carries marks (VXLAN-GBP).
    pub const GBP: u32 = 256;
}

/// Key of [`map::SUBNETS4`]: what follows the prefix length in an LPM key.
pub type SubnetKey = [u8; 4];

/// Bits of [`Subnet::flags`].
pub mod subnet_flag {
    /// Routed over the underlay as it is (host-gw, DirectRouting).
    pub const DIRECT: u16 = 1;
}

/// One overlay subnet: where it is reached.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Subnet {
    /// MAC of the peer's VTEP, the inner destination MAC; zero if it has none.
    pub vtep_mac: [u8; 6],
    /// Bits of [`subnet_flag`].
    pub flags: u16,
    /// The peer's underlay address (`PublicIP`), the outer destination.
    pub public_ip: [u8; 4],
    /// Index into [`map::PEER_STATS`], and the link to [`map::PEERS4`].
    pub peer_id: u32,
}

/// One peer, by its underlay address.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Peer {
    /// The id that the peer's subnet carries.
    pub peer_id: u32,
}

/// One direction of a 5-tuple.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FlowKey {
    /// Source address.
    pub saddr: [u8; 4],
    /// Destination address.
    pub daddr: [u8; 4],
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// IP protocol: 6 (TCP) or 17 (UDP).
    pub proto: u8,
    /// [`direction`].
    pub direction: u8,
    /// Always zero.
    pub reserved: [u8; 2],
}

/// Values of [`FlowKey::direction`].
pub mod direction {
    /// Pod -> peer.
    pub const OUT: u8 = 1;
    /// Peer -> pod.
    pub const IN: u8 = 2;
    /// Peer -> node: the tunnel itself, whatever it carries. The ports are 0
    /// and the tunnel's.
    pub const TUNNEL: u8 = 3;
    /// Pod -> peer, all connections of a client's address to a service's
    /// address and port: the client's port is 0.
    pub const PAIR_OUT: u8 = 4;
    /// Peer -> pod, likewise.
    pub const PAIR_IN: u8 = 5;
}

/// Values of [`Flow::state`].
pub mod state {
    /// Seen at its entry hook, not yet at its exit hook.
    pub const NOTED: u8 = 1;
    /// The kernel delivered it unchanged: the fast path may repeat that.
    pub const CONFIRMED: u8 = 2;
    /// A tuple or pair to which the kernel has translated a connection: until
    /// [`super::Flow::time_ns`] none is opened without the kernel.
    pub const TRANSLATED: u8 = 3;
}

/// Values of [`Flow::closing`]: how much of a connection's end the kernel has
/// seen that this direction has to answer.
pub mod closing {
    /// Nothing.
    pub const NO: u8 = 0;
    /// The other direction's FIN: this one may go on.
    pub const HALF: u8 = 1;
    /// The second FIN: the next packet, its answer, is the kernel's.
    pub const LAST: u8 = 2;
    /// That answer is on its way. With it the flow ends.
    pub const DONE: u8 = 3;
}

/// Values of [`Flow::action`].
pub mod action {
    /// Encapsulate and send to the next hop.
    pub const ENCAP: u8 = 1;
    /// Decapsulate and hand to the pod's side of the veth (`bpf_redirect_peer`).
    pub const PEER: u8 = 2;
    /// Decapsulate and send out of the host side of the veth, so that its
    /// qdisc and the pod's ingress hooks are honoured (`bpf_redirect`).
    pub const EGRESS: u8 = 3;
    /// Send to the next hop as it is.
    pub const ROUTE: u8 = 4;
}

/// What is known of a flow.
///
/// A note holds the fields of the one packet that was seen at the entry hook;
/// the exit hook confirms only if that very packet arrives there unchanged.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Flow {
    /// Monotonic time in ns: end of the confirmation, or time of the note.
    pub time_ns: u64,
    /// Monotonic time in ns until which the flow's packets go through the
    /// kernel device because it carries GSO aggregates.
    pub sticky_ns: u64,
    /// [`Config::generation`] of the note or confirmation.
    pub generation: u32,
    /// Interface of the entry hook.
    pub entry_ifindex: u32,
    /// Interface that the fast path sends to.
    pub out_ifindex: u32,
    /// Index into [`map::PEER_STATS`].
    pub peer_id: u32,
    /// Outwards the peer's underlay address; inwards the outer source, zero if
    /// the packet came without a tunnel.
    pub peer_ip: [u8; 4],
    /// Outwards the underlay's next hop.
    pub next_hop: [u8; 4],
    /// [`state`].
    pub state: u8,
    /// [`action`].
    pub action: u8,
    /// Largest IP packet that the exit takes, in bytes.
    pub max_len: u16,
    /// Outwards the peer's VTEP MAC; inwards the pod's MAC.
    pub dst_mac: [u8; 6],
    /// Inwards the MAC that the pod sees as its gateway.
    pub src_mac: [u8; 6],
    /// Destination MAC of the frame at the entry hook.
    pub entry_mac: [u8; 6],
    /// Note: IPv4 identification.
    pub note_id: [u8; 2],
    /// Note: TTL at the entry hook.
    pub note_ttl: u8,
    /// Note: TOS byte at the entry hook.
    pub note_tos: u8,
    /// Note of a pair: the client's port.
    pub note_port: [u8; 2],
    /// 1: the kernel has not seen this connection, only its pair.
    pub eager: u8,
    /// [`closing`].
    pub closing: u8,
    /// Always zero.
    pub reserved: [u8; 2],
}

/// How packets are handed to one host-side veth.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Veth {
    /// [`action::PEER`] or [`action::EGRESS`].
    pub action: u32,
    /// MTU of the veth in bytes.
    pub mtu: u32,
}

/// What `from_wire` leaves in a packet's metadata, where `from_underlay` finds
/// it: the tunnel's headers are gone, and this is where the packet goes.
///
/// The same for all packets of a flow (GRO merges only packets whose metadata
/// are equal), and no larger than the 32 bytes that older kernels allow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Handover {
    /// [`HANDOVER`].
    pub magic: u32,
    /// [`Config::generation`] of the decision.
    pub generation: u32,
    /// [`Flow::out_ifindex`].
    pub out_ifindex: u32,
    /// [`Flow::peer_id`].
    pub peer_id: u32,
    /// [`Flow::action`].
    pub action: u32,
    /// [`Flow::dst_mac`].
    pub dst_mac: [u8; 6],
    /// [`Flow::src_mac`].
    pub src_mac: [u8; 6],
}

/// [`Handover::magic`].
pub const HANDOVER: u32 = 0xf1a2_0000 | ABI_VERSION;

/// Packets and bytes (inner IP packets) of one peer.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PeerStats {
    /// Sent on the fast path: packets (GSO packets count once).
    pub tx_fast_packets: u64,
    /// Sent on the fast path: bytes.
    pub tx_fast_bytes: u64,
    /// Sent through the kernel device: packets.
    pub tx_kernel_packets: u64,
    /// Sent through the kernel device: bytes.
    pub tx_kernel_bytes: u64,
    /// Received on the fast path: packets.
    pub rx_fast_packets: u64,
    /// Received on the fast path: bytes.
    pub rx_fast_bytes: u64,
    /// Received through the kernel device: packets.
    pub rx_kernel_packets: u64,
    /// Received through the kernel device: bytes.
    pub rx_kernel_bytes: u64,
}

const _: () = {
    assert!(size_of::<Config>() == 72);
    assert!(size_of::<Subnet>() == 16);
    assert!(size_of::<Peer>() == 4);
    assert!(size_of::<FlowKey>() == 16);
    assert!(size_of::<Flow>() == 72);
    assert!(size_of::<Veth>() == 8);
    assert!(size_of::<PeerStats>() == 64);
    assert!(size_of::<Handover>() == 32);
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
pod!(Config, Subnet, Peer, FlowKey, Flow, Veth, PeerStats);

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
