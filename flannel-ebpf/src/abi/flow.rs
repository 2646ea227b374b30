//! Flows, and the veths that they lead to.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

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
    /// Leave it to the kernel's path.
    pub const KERNEL: u8 = 0;
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
    /// [`Config::generation`](super::Config::generation) of the note or confirmation.
    pub generation: u32,
    /// Interface of the entry hook.
    pub entry_ifindex: u32,
    /// Interface that the fast path sends to.
    pub out_ifindex: u32,
    /// Index into [`map::PEER_STATS`](super::map::PEER_STATS).
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
    /// How the fast path hands packets to the pod: [`action::PEER`],
    /// [`action::EGRESS`], or [`action::KERNEL`] if something on the way (a qdisc
    /// of the bridge, say) has to see them.
    pub action: u8,
    /// 1: something on the veth or its bridge acts on what the pod sends; the
    /// fast path carries none of it.
    pub keep_out: u8,
    /// Always zero.
    pub reserved: [u8; 2],
    /// MTU of the veth in bytes.
    pub mtu: u32,
}
