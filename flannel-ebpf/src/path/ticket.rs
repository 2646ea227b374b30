//! Tickets: how an exit hook knows what the packet was at its entry hook.
//!
//! The entry hook writes the packet down in a slot of its CPU's region and gives
//! the packet the slot's number. The exit hook believes the number only if the
//! packet matches what stands there: a pod may have put any number into a packet
//! that no entry hook has seen.

use network_types::ip::Ipv4Hdr;

use super::segment::Segment;
use super::{Lookups, Skb, Tables};
use crate::abi::{Config, FlowKey, Ticket, TicketNumbers, Tuple4, direction, ticket_flag};

/// A packet that takes longer from entry to exit proves nothing.
pub(super) const LIFE_NS: u64 = 1_000_000_000;
/// Tickets that were given out after one, and are looked at for packets of the
/// same flow. With more of them under way a flow waits for a calmer moment.
const LOOK_AHEAD: u32 = 32;

/// What the entry hook knows of a packet besides its headers.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Interface of the hook.
    pub(super) ifindex: u32,
    /// Monotonic time in ns.
    pub(super) now: u64,
    /// Inwards the outer source; [`super::direct::NO_OUTER_SOURCE`] without one.
    pub(super) peer_ip: [u8; 4],
    /// Destination MAC of the frame.
    pub(super) mac: [u8; 6],
    /// Outwards the flow hash; 0: unknown.
    pub(super) hash: u32,
}

/// Writes a TCP or UDP packet down, and gives it the number.
#[inline(always)]
pub(super) fn take<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    segment: &Segment,
    key: &FlowKey,
    entry: &Entry,
    flags: u8,
) {
    let aggregate = if frame.gso_size() == 0 { 0 } else { ticket_flag::AGGREGATE };
    let number = tables.take_ticket(config.tickets, |ticket| {
        ticket.key = *key;
        ticket.transport = segment.transport;
        ticket.check = segment.transport_check;
        ticket.id = segment.id;
        ticket.total_len = segment.total_len;
        ticket.ttl = segment.ttl;
        ticket.tos = segment.tos;
        fill(ticket, config, entry, flags | aggregate);
    });
    frame.set_ticket(number);
}

/// Writes down that a packet of any kind has passed the source check.
#[inline(always)]
pub(super) fn take_checked<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    inner: &Ipv4Hdr,
    entry: &Entry,
    flags: u8,
) {
    let number = tables.take_ticket(config.tickets, |ticket| {
        ticket.key.tuple =
            Tuple4 { saddr: inner.src_addr, daddr: inner.dst_addr, sport: [0; 2], dport: [0; 2] };
        ticket.key.proto = inner.proto;
        ticket.key.direction = direction::IN;
        ticket.id = inner.id;
        ticket.total_len = u16::from_be_bytes(inner.tot_len);
        fill(ticket, config, entry, flags);
    });
    frame.set_ticket(number);
}

#[inline(always)]
fn fill(ticket: &mut Ticket, config: &Config, entry: &Entry, flags: u8) {
    ticket.generation = config.generation;
    ticket.time_ns = entry.now;
    ticket.entry_ifindex = entry.ifindex;
    ticket.peer_ip = entry.peer_ip;
    ticket.entry_mac = entry.mac;
    ticket.hash = entry.hash;
    ticket.flags = flags;
}

/// The ticket whose number a packet carries, if it is young. Whether it is the
/// packet's own is for the caller to find out.
#[inline(always)]
pub(super) fn presented<'a, S: Skb, T: Lookups>(
    frame: &S,
    tables: &'a T,
    config: &Config,
    now: u64,
) -> Option<&'a Ticket> {
    let number = frame.ticket();
    let index = config.tickets.index(number);
    if !config.tickets.is_of(number, tables.ticket_sequence(index)) {
        return None;
    }
    let ticket = tables.ticket(index)?;
    (now.wrapping_sub(ticket.time_ns) < LIFE_NS).then_some(ticket)
}

/// Whether this is the ticket of a packet of which only the IPv4 header is known.
#[inline(always)]
pub(super) fn is_of(ticket: &Ticket, ip: &Ipv4Hdr) -> bool {
    ticket.key.tuple.saddr == ip.src_addr
        && ticket.key.tuple.daddr == ip.dst_addr
        && ticket.key.proto == ip.proto
        && ticket.id == ip.id
        && ticket.total_len == u16::from_be_bytes(ip.tot_len)
}

/// Whose packets a confirmation must not let overtake others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The ticket's flow.
    Flow,
    /// The ticket's peer.
    Peer,
}

/// Whether no later packet of the same flow, or of the same peer, is known to be
/// under way on the kernel's path: what is confirmed now would overtake it.
#[inline(always)]
pub(super) fn is_last<T: Lookups>(
    number: u16,
    tables: &T,
    config: &Config,
    ticket: &Ticket,
    of: Of,
) -> bool {
    let numbers = config.tickets;
    tables.is_last(numbers.index(number), ticket.sequence, Among::new(numbers, of))
}

/// Which tickets are searched: the slots of a region, less one, and in the highest bit
/// whether it is [`Of::Peer`]. One word, because a function of the programs takes it.
#[derive(Clone, Copy)]
pub struct Among(pub u32);

impl Among {
    const PEER: u32 = 1 << 31;

    #[inline(always)]
    fn new(numbers: TicketNumbers, of: Of) -> Self {
        Self((numbers.slots() - 1) | if of == Of::Peer { Self::PEER } else { 0 })
    }

    #[inline(always)]
    fn mask(self) -> u32 {
        self.0 & !Self::PEER
    }

    #[inline(always)]
    fn of(self) -> Of {
        if self.0 & Self::PEER == 0 { Of::Flow } else { Of::Peer }
    }
}

/// `is_last` of the ticket in the slot `index`. It is not, if the slot has been given
/// out again.
#[inline(always)]
pub fn none_is_later<T: Lookups>(tables: &T, index: u32, sequence: u32, among: Among) -> bool {
    let region = index & !among.mask();
    let ahead = tables.ticket_sequence(region).wrapping_sub(sequence);
    if ahead > LOOK_AHEAD || tables.ticket_sequence(index) != sequence {
        return false;
    }
    let mut step = 1;
    while step <= LOOK_AHEAD {
        if step > ahead {
            break;
        }
        // An index ends in the lowest bits of its sequence.
        let slot = index.wrapping_add(step) & among.mask();
        if slot != 0 && tables.are_of_same(index, region | slot, among.of()) {
            return false;
        }
        step += 1;
    }
    true
}

/// Whether the tickets in the slots `index` and `later` are of the same flow or peer.
#[inline(always)]
pub fn are_of_same<T: Lookups>(tables: &T, index: u32, later: u32, of: Of) -> bool {
    let (Some(ticket), Some(later)) = (tables.ticket(index), tables.ticket(later)) else {
        return false;
    };
    match of {
        Of::Flow => later.key == ticket.key,
        Of::Peer => later.peer_ip == ticket.peer_ip,
    }
}
