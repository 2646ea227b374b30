//! What each hook decides, generic over the packet ([`Frame`]) and the maps
//! ([`Tables`]).
//!
//! The kernel's path decides first; the fast path repeats its decision for a
//! short time (see [`flow`]). Whatever is not fully understood passes.

pub mod direct;
pub mod eager;
#[cfg(test)]
mod fake;
pub mod flow;
pub mod inbound;
pub mod outbound;
pub mod segment;
pub mod shortcut;
pub mod source;
#[cfg(test)]
mod tests;
pub mod wire_xdp;

use core::ops::Deref;

use crate::abi::{Config, Flow, FlowKey, Handover, Outcome, Subnet, Veth};

/// A packet at a hook, Ethernet header first.
///
/// Reads and writes outside of it fail; nothing panics.
#[expect(clippy::len_without_is_empty, reason = "no packet is empty")]
pub trait Frame {
    /// Length in bytes, with the Ethernet header and what is not linear.
    fn len(&self) -> u32;
    /// Interface of the hook.
    fn ifindex(&self) -> u32;
    /// Payload bytes of each segment of a GSO packet; 0 for a plain packet.
    fn gso_size(&self) -> u32;
    /// Carries a VLAN tag (in the packet's metadata).
    fn tagged(&self) -> bool;
    /// Its Ethernet destination is the interface's own (PACKET_HOST).
    fn to_us(&self) -> bool;
    /// Its firewall mark (`skb->mark`).
    fn mark(&self) -> u32;
    /// Makes the first `bytes` (or all, if it is shorter) readable.
    fn linearize(&mut self, bytes: u32);
    /// Reads `N` bytes.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// Writes `N` bytes.
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;
    /// Flow hash (`skb_get_hash`).
    fn hash(&mut self) -> u32;
    /// Makes room for [`crate::wire::ENCAP_LEN`] bytes behind the Ethernet
    /// header, and declares them to be a tunnel. `false`: refused, unchanged.
    fn grow(&mut self) -> bool;
    /// Leaves a sign on the packet that this node's fast path sends it.
    fn mark_fast(&mut self);
    /// Whether that sign is there; takes it away.
    fn take_fast(&mut self) -> bool;
    /// Takes [`crate::wire::ENCAP_LEN`] bytes out behind the Ethernet header.
    /// `false`: refused, unchanged.
    fn shrink(&mut self) -> bool;
    /// Takes away what `from_wire` left with the packet, and makes the packet
    /// one for this node (PACKET_HOST).
    fn take_handover(&mut self) -> Option<Handover>;
}

/// Whose packets are counted: direction and path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Sent on the fast path.
    TxFast,
    /// Sent through the kernel device.
    TxKernel,
    /// Received on the fast path.
    RxFast,
    /// Received through the kernel device.
    RxKernel,
}

/// The maps and the kernel's tables.
pub trait Tables {
    /// A flow in its map.
    type FlowRef<'a>: Deref<Target = Flow>
    where
        Self: 'a;

    /// Settings; `None` only while the map is empty.
    fn config(&self) -> Option<&Config>;
    /// Monotonic time in ns; a few ms of resolution are enough.
    fn now(&self) -> u64;
    /// A random number.
    fn random(&self) -> u32;
    /// The flow under this key.
    fn flow(&self, key: &FlowKey) -> Option<Self::FlowRef<'_>>;
    /// Gives a flow a new state, replacing it as a whole: `fill` gets the one that
    /// was `found` under `key`, or zeros. (Flows are too large to be made on the
    /// stack of a program.)
    fn set_flow(
        &self,
        key: &FlowKey,
        found: Option<Self::FlowRef<'_>>,
        state: u8,
        fill: impl FnOnce(&mut Flow),
    );
    /// Changes single fields of a flow in place. It may have become another's
    /// meanwhile: no more than the kernel path for a packet may come of that.
    fn edit_flow(&self, flow: &Self::FlowRef<'_>, edit: impl FnOnce(&mut Flow));
    /// Forgets a flow.
    fn remove_flow(&self, key: &FlowKey);
    /// The peer's subnet that holds this address.
    fn subnet(&self, addr: [u8; 4]) -> Option<Subnet>;
    /// Id of the peer with this underlay address.
    fn peer(&self, addr: [u8; 4]) -> Option<u32>;
    /// How packets are handed to this host-side veth.
    fn veth(&self, ifindex: u32) -> Option<Veth>;
    /// Next hop on the underlay for a packet, if the kernel would send it by the
    /// underlay device to a next hop of IPv4 whose neighbour is resolved.
    fn next_hop(&self, config: &Config, trip: &Trip) -> Option<[u8; 4]>;
    /// Whether this is an address of the node itself.
    fn is_local(&self, addr: [u8; 4]) -> bool;
    /// Counts a packet.
    fn count(&self, outcome: Outcome);
    /// Counts a packet of `bytes` for a peer.
    fn count_peer(&self, peer_id: u32, traffic: Traffic, bytes: u32);
}

/// A packet whose route is looked up.
#[derive(Clone, Copy, Debug)]
pub struct Trip {
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// IP protocol.
    pub proto: u8,
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// Length in bytes.
    pub len: u16,
}

/// What the hook does with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it to the programs after us and to the kernel.
    Pass,
    /// Drop it.
    Drop,
    /// Send it to a next hop of the underlay (`bpf_redirect_neigh`).
    NextHop {
        /// Output interface.
        ifindex: u32,
        /// Next hop's address.
        next_hop: [u8; 4],
    },
    /// Hand it to the other end of a veth (`bpf_redirect_peer`).
    Peer {
        /// The host side.
        ifindex: u32,
    },
    /// Send it out of an interface (`bpf_redirect`).
    Egress {
        /// The interface.
        ifindex: u32,
    },
    /// Let an interface receive it (`bpf_redirect` with `BPF_F_INGRESS`).
    Ingress {
        /// The interface.
        ifindex: u32,
    },
}

/// Counts the reason and leaves the packet to the kernel.
#[inline(always)]
fn to_kernel<T: Tables>(tables: &T, reason: Outcome) -> Verdict {
    tables.count(reason);
    Verdict::Pass
}
