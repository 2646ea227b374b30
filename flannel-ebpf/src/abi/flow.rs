//! Flows, what the kernel did to their packets, and the veths that they lead to.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Addresses and ports of one direction, network byte order.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Tuple4 {
    /// Source address.
    pub saddr: [u8; 4],
    /// Destination address.
    pub daddr: [u8; 4],
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
}

impl Tuple4 {
    /// The same, seen from the other end.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self { saddr: self.daddr, daddr: self.saddr, sport: self.dport, dport: self.sport }
    }
}

/// Key of a flow: one direction of a 5-tuple, as it stands at the entry hook.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FlowKey {
    /// Addresses and ports.
    pub tuple: Tuple4,
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
    /// The kernel was seen to carry a packet of it: the fast path may repeat that.
    pub const CONFIRMED: u8 = 1;
    /// A rule of the node judges its packets one by one
    /// ([`Exemption`](crate::abi::Exemption)): the kernel carries all of them.
    pub const KEPT: u8 = 2;
    /// A pair between which the kernel translates connections: until
    /// [`super::Flow::time_ns`] none is opened without the kernel.
    pub const BARRED: u8 = 3;
    /// A translated UDP packet of it has come out once. Little tells datagrams
    /// apart, so the same has to be seen a second time.
    pub const SEEN: u8 = 4;
}

/// Values of [`Flow::closing`]: how much of a connection's end the kernel has
/// seen that this direction has to answer.
pub mod closing {
    /// Nothing.
    pub const NO: u8 = 0;
    /// The other direction's FIN: this one may go on.
    pub const HALF: u8 = 1;
    /// The second FIN: the next packet, its answer, is left to the kernel.
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

/// What the kernel did to a packet between entry and exit, besides one hop: all
/// that the fast path repeats.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Treatment {
    /// Addresses and ports that the packet leaves with.
    pub tuple: Tuple4,
    /// What translated addresses add to the transport checksum, as
    /// `bpf_csum_diff` gives it; 0 if they are the same.
    pub address_sum: u32,
    /// Likewise for the ports.
    pub port_sum: u32,
    /// Firewall mark at the exit (`skb->mark`).
    pub mark: u32,
    /// Priority at the exit (`skb->priority`).
    pub priority: u32,
    /// DSCP at the entry, in the upper six bits. A packet with another one may
    /// be treated differently, so the flow's confirmation does not hold for it.
    pub entry_dscp: u8,
    /// DSCP at the exit, in the upper six bits.
    pub dscp: u8,
    /// 1: addresses or ports are changed.
    pub translated: u8,
    /// Always zero.
    pub reserved: u8,
}

/// What is known of a flow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Flow {
    /// Monotonic time in ns at which the state ends.
    pub time_ns: u64,
    /// Monotonic time in ns until which the flow's packets go through the
    /// kernel device because it carries GSO aggregates.
    pub sticky_ns: u64,
    /// [`Config::generation`](super::Config::generation) of the confirmation.
    pub generation: u32,
    /// Outwards the value of [`map::EPOCH`](super::map::EPOCH) at the
    /// confirmation.
    pub epoch: u32,
    /// Interface of the entry hook.
    pub entry_ifindex: u32,
    /// Interface that the fast path sends to.
    pub out_ifindex: u32,
    /// Index into [`map::PEER_STATS`](super::map::PEER_STATS).
    pub peer_id: u32,
    /// Outwards the peer's underlay address; inwards the outer source, zero if
    /// the packet came without a tunnel.
    pub peer_ip: [u8; 4],
    /// Outwards the underlay's next hop; of IPv4 in the first four bytes.
    pub next_hop: [u8; 16],
    /// What the kernel did to the packet.
    pub treatment: Treatment,
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
    /// Address family of the next hop: 2 (IPv4) or 10 (IPv6).
    pub next_hop_family: u8,
    /// 1: the kernel has not seen this connection, only its pair.
    pub eager: u8,
    /// [`closing`].
    pub closing: u8,
    /// Always zero.
    pub reserved: [u8; 3],
    /// Number of the ticket of the last packet that the kernel carries; 0: none is known.
    pub entered: u32,
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
