//! What each hook decides, generic over the packet ([`Frame`], [`Skb`]) and the
//! maps ([`Lookups`], [`Tables`]).
//!
//! One file per hook in [`hook`], named like its program; beside it what hooks
//! share. The kernel's path decides first; the fast path repeats all that it did
//! for a short time. Whatever is not fully understood passes.

pub mod decap;
mod direct;
pub mod eager;
mod encap;
mod entry;
pub mod exemption;
mod exit;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod flow;
pub mod hook;
pub mod leave;
pub mod proof;
pub mod segment;
mod shortcut;
pub mod source;
#[cfg(test)]
mod tests;
pub mod ticket;
mod treatment;
mod tunnel;

use core::ops::Deref;

use self::eager::Opening;
use self::exemption::Asked;
use self::leave::Left;
use self::proof::{Proof, Witness};
use self::segment::Segment;
use self::source::{Judged, Sender};
use self::ticket::{Checked, Entry};
use crate::abi::{
    Attendance, Config, Flow, FlowKey, Handover, Outcome, Subnet, Ticket, TicketNumbers, Veth,
};

/// A packet that can be read, Ethernet header first.
///
/// Reads outside of it fail; nothing panics.
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
    /// Makes the first `bytes` (or all, if it is shorter) readable.
    fn linearize(&mut self, bytes: u32);
    /// Reads `N` bytes.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

/// A packet at a TC hook: it can be changed, and has the kernel's metadata.
pub trait Skb: Frame {
    /// Its Ethernet destination is the interface's own (PACKET_HOST).
    fn to_us(&self) -> bool;
    /// Writes `N` bytes.
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;
    /// Adds to the transport checksum at `offset`, whoever will complete it
    /// (`bpf_l4_csum_replace`): what changed in the packet, as `bpf_csum_diff`
    /// gives it. `pseudo`: in addresses, which are in the pseudo header. `udp`: 0
    /// means that there is none.
    fn add_to_checksum(&mut self, offset: usize, sum: u32, pseudo: bool, udp: bool) -> Option<()>;
    /// Cuts what follows the first `len` bytes.
    fn trim(&mut self, len: u32) -> Option<()>;
    /// Flow hash (`skb_get_hash`).
    fn hash(&mut self) -> u32;
    /// The flow hash as it stands in the packet, if somebody asked for it.
    fn known_hash(&self) -> u32;
    /// Makes room for [`crate::wire::ENCAP_LEN`] bytes behind the Ethernet
    /// header, and declares them to be a tunnel. `false`: refused, unchanged.
    fn grow(&mut self) -> bool;
    /// Takes [`crate::wire::ENCAP_LEN`] bytes out behind the Ethernet header.
    /// `false`: refused, unchanged.
    fn shrink(&mut self) -> bool;
    /// Firewall mark.
    fn mark(&self) -> u32;
    /// Sets the firewall mark.
    fn set_mark(&mut self, mark: u32);
    /// Priority.
    fn priority(&self) -> u32;
    /// Sets the priority.
    fn set_priority(&mut self, priority: u32);
    /// Number of its ticket. What comes in from outside is not to be believed.
    fn ticket(&self) -> u16;
    /// Sets the number of its ticket; 0: it has none.
    fn set_ticket(&mut self, number: u16);
    /// Outer IPv4, UDP and VXLAN header of a packet that the kernel's VXLAN
    /// device has just received: it leaves them where they were.
    fn outer_headers(&self) -> Option<[u8; OUTER_HEADERS]>;
    /// Takes away what `from_wire` left with the packet, and makes the packet
    /// one for this node (PACKET_HOST).
    fn take_handover(&mut self) -> Option<Handover>;
}

/// Length of the outer headers without options, from IPv4 to VXLAN.
pub const OUTER_HEADERS: usize =
    crate::wire::IPV4_LEN + crate::wire::UDP_LEN + crate::wire::VXLAN_LEN;

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

/// What the programs look up.
pub trait Lookups {
    /// A flow in its map.
    type FlowRef<'a>: Deref<Target = Flow>
    where
        Self: 'a;

    /// Settings; `None` only while the map is empty.
    fn config(&self) -> Option<&Config>;
    /// Monotonic time in ns; a few ms of resolution are enough.
    fn now(&self) -> u64;
    /// The flow under this key.
    fn flow(&self, key: &FlowKey) -> Option<Self::FlowRef<'_>>;
    /// The slot of a ticket. It may be written at this moment.
    fn ticket(&self, index: u32) -> Option<&Ticket>;
    /// [`Ticket::sequence`] of a slot at this moment; 0 if there is no such slot.
    fn ticket_sequence(&self, index: u32) -> u32;
    /// The peer's subnet that holds this address.
    fn subnet(&self, addr: [u8; 4]) -> Option<&Subnet>;
    /// Id of the peer with this underlay address.
    fn peer(&self, addr: [u8; 4]) -> Option<u32>;
    /// How packets are handed to this host-side veth.
    fn veth(&self, ifindex: u32) -> Option<Veth>;
    /// Whether an exemption covers this ([`Asked::is_covered`]).
    fn is_exempt(&self, asked: Asked) -> bool;
    /// Whether the exemption with this index covers this ([`Asked::is_covered_by`]).
    fn is_exempt_by(&self, asked: Asked, index: u32) -> bool;
    /// Whether no later ticket is of the same flow or peer
    /// ([`ticket::none_is_later`]).
    fn is_last(&self, index: u32, sequence: u32, among: ticket::Among) -> bool;
    /// Whether the ticket given out `step` tickets later is of the same flow or peer
    /// ([`ticket::is_followed`]).
    fn is_followed(&self, index: u32, step: u32, among: ticket::Among) -> bool;
    /// The agent's sign of life.
    fn attendance(&self) -> Option<&Attendance>;
    /// Times that the node was told of other routes by ICMP.
    fn epoch(&self) -> u32;
    /// Where the kernel would send a packet of its own, if the neighbour there is
    /// resolved and the packet fits.
    fn way(&self, trip: &Trip) -> Option<Way>;
    /// Whether this is an address of the node itself.
    fn is_local(&self, addr: [u8; 4]) -> bool;
    /// The same value, unknown to the verifier. What it knows of a value it goes
    /// through once more for each of them, in all that follows.
    fn unknown<V: Copy>(&self, value: V) -> V;
}

/// The counters.
pub trait Counters {
    /// Counts a packet.
    fn count(&self, outcome: Outcome);
    /// Counts a packet of `bytes` for a peer.
    fn count_peer(&self, peer_id: u32, traffic: Traffic, bytes: u32);
}

/// The maps that the programs write, besides reading and counting.
pub trait Tables: Lookups + Counters {
    /// A random number.
    fn random(&self) -> u32;
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
    /// Writes down that a packet has passed the source check ([`Checked::take`]).
    fn note_checked<S: Skb>(&self, frame: &mut S, checked: Checked, entry: &Entry);
    /// Leaves a packet to the kernel ([`Left::leave`]).
    fn leave<S: Skb>(&self, frame: &mut S, left: Left<'_>, found: Option<&Self::FlowRef<'_>>);
    /// Makes of a packet without a tunnel header the frame that the pod gets
    /// ([`decap::frame_for_pod`]).
    fn frame_for_pod<S: Skb>(&self, frame: &mut S, segment: &Segment, flow: &Flow) -> bool;
    /// Writes this CPU's next ticket, whose slot is filled from zero; its number.
    fn take_ticket(&self, numbers: TicketNumbers, fill: impl FnOnce(&mut Ticket)) -> u16;
    /// Raises [`Lookups::epoch`].
    fn raise_epoch(&self);
    /// Remembers that packets of a peer's subnet come from this address, which
    /// is not its PublicIP.
    fn note_stranger(&self, outer: [u8; 4], inner: [u8; 4], peer_id: u32, now: u64);
    /// What is said of a sender ([`Sender::judged`]).
    fn judge(&self, sender: Sender) -> Judged;
    /// Changes the proof that [`Tables::confirm`] is about. (It is too large for the stack of
    /// a program.)
    fn edit_proof(&self, edit: impl FnOnce(&mut Proof));
    /// Reads that proof.
    fn read_proof<R>(&self, read: impl FnOnce(&Proof) -> R) -> Option<R>;
    /// Finds out what a packet proves ([`Witness::examine`]).
    fn examine(&self, witness: Witness, now: u64) -> Witness;
    /// Confirms the flow that a packet proves ([`Witness::confirm`]).
    fn confirm(&self, witness: Witness, now: u64) -> bool;
    /// Confirms the pair that a packet proves ([`Witness::confirm_pair`]).
    fn confirm_pair(&self, witness: Witness);
    /// Opens the connection of a SYN ([`Opening::open`]).
    fn open(&self, opening: Opening);
    /// Keeps a pair with the kernel ([`Witness::bar`]).
    fn bar(&self, witness: Witness, now: u64);
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
    /// Interface index of the VRF whose routes decide; 0: those of the node.
    pub vrf: u32,
}

/// Where a packet leaves the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Output interface.
    pub ifindex: u32,
    /// The next hop.
    pub next_hop: NextHop,
    /// Largest IP packet that may go there, in bytes: the route's path MTU.
    pub mtu: u16,
}

/// A neighbour on the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// Address family: 2 (IPv4) or 10 (IPv6).
    pub family: u8,
    /// Address; of IPv4 in the first four bytes.
    pub address: [u8; 16],
}

impl NextHop {
    /// AF_INET.
    pub const IPV4: u8 = 2;
    /// AF_INET6.
    pub const IPV6: u8 = 10;

    /// A next hop of IPv4.
    #[inline(always)]
    pub const fn ipv4([a, b, c, d]: [u8; 4]) -> Self {
        Self { family: Self::IPV4, address: [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] }
    }
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
        /// The next hop.
        next_hop: NextHop,
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

/// Stands for a peer's id where there is none. (Parts of an `Option` that have
/// no value are registers without one, which verifiers refuse to see copied.)
const NOBODY: u32 = u32::MAX;

/// Counts the reason and leaves the packet to the kernel.
#[inline(always)]
fn to_kernel<T: Counters>(tables: &T, reason: Outcome) -> Verdict {
    tables.count(reason);
    Verdict::Pass
}
