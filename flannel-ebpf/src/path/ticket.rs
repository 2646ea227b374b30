//! Tickets: how an exit hook knows what the packet was at its entry hook.
//!
//! The entry hook writes the packet down in a slot of its CPU's region and gives
//! the packet the slot's number. The exit hook believes the number only if the
//! packet matches what stands there: a pod may have put any number into a packet
//! that no entry hook has seen.

use network_types::ip::Ipv4Hdr;

use super::exemption::{pair, unpaired};
use super::segment::Segment;
use super::{Lookups, Skb, Tables};
use crate::abi::{Config, Ticket, TicketNumbers, Tuple4, direction, ticket_flag};

/// A packet that takes longer from entry to exit proves nothing.
pub(super) const LIFE_NS: u64 = 1_000_000_000;
/// Tickets that were given out after one, and are looked at for packets of the
/// same flow. With more of them under way a flow waits for a calmer moment.
const LOOK_AHEAD: u32 = 32;

/// What the entry hook knows of a packet besides its headers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    /// Monotonic time in ns.
    pub(super) now: u64,
    /// Interface of the hook.
    pub(super) ifindex: u32,
    /// Inwards the outer source; [`super::direct::NO_OUTER_SOURCE`] without one.
    pub(super) peer_ip: [u8; 4],
    /// Outwards the flow hash; 0: unknown.
    pub(super) hash: u32,
    /// Destination MAC of the frame.
    pub(super) mac: [u8; 6],
    /// Always zero: functions may read no byte that was not written.
    reserved: [u8; 6],
}

impl Entry {
    /// One whose flow hash is unknown.
    #[inline(always)]
    pub(super) fn new(now: u64, ifindex: u32, peer_ip: [u8; 4], mac: [u8; 6]) -> Self {
        Self { now, ifindex, peer_ip, hash: 0, mac, reserved: [0; 6] }
    }
}

/// A packet that an entry hook writes down.
#[derive(Clone, Copy)]
pub(super) struct Noted<'a> {
    /// The packet.
    pub segment: &'a Segment,
    /// What else the hook knows.
    pub entry: &'a Entry,
    /// [`direction`](crate::abi::direction) of its flow.
    pub direction: u8,
    /// [`ticket_flag`]; that of aggregates is set here.
    pub flags: u8,
}

impl Noted<'_> {
    /// Writes the packet down, and gives it the number.
    #[inline(always)]
    pub(super) fn take<S: Skb, T: Tables>(self, frame: &mut S, tables: &T) {
        let Self { segment, entry, direction, flags } = self;
        let Some(config) = tables.config() else { return };
        let aggregate = if frame.gso_size() == 0 { 0 } else { ticket_flag::AGGREGATE };
        let number = tables.take_ticket(config.tickets, |ticket| {
            ticket.key = segment.key(direction);
            ticket.transport = segment.transport;
            ticket.check = segment.transport_check;
            ticket.id = segment.id;
            ticket.total_len = segment.total_len;
            ticket.ttl = segment.ttl;
            ticket.tos = segment.tos;
            ticket.generation = config.generation;
            ticket.time_ns = entry.now;
            ticket.entry_ifindex = entry.ifindex;
            ticket.peer_ip = entry.peer_ip;
            ticket.entry_mac = entry.mac;
            ticket.hash = entry.hash;
            ticket.flags = flags | aggregate;
        });
        frame.set_ticket(number);
    }
}

/// A packet of any kind that has passed the source check, in words.
#[derive(Clone, Copy)]
pub struct Checked {
    /// Source address in the upper half, destination address in the lower one.
    pub addresses: u64,
    /// From below: its length, identification, protocol, and [`ticket_flag`].
    pub rest: u64,
}

impl Checked {
    /// The packet with this header.
    #[inline(always)]
    pub(super) fn new(ip: &Ipv4Hdr, flags: u8) -> Self {
        Self {
            addresses: pair(ip.src_addr, ip.dst_addr),
            rest: u64::from(u16::from_be_bytes(ip.tot_len))
                | u64::from(u16::from_be_bytes(ip.id)) << 16
                | u64::from(ip.proto) << 32
                | u64::from(flags) << 40,
        }
    }

    /// Writes it down, and gives it the number.
    #[inline(always)]
    pub fn take<S: Skb, T: Tables>(self, frame: &mut S, tables: &T, entry: &Entry) {
        let (saddr, daddr) = unpaired(self.addresses);
        let segment = &Segment {
            tuple: Tuple4 { saddr, daddr, ..Tuple4::default() },
            proto: (self.rest >> 32) as u8,
            id: ((self.rest >> 16) as u16).to_be_bytes(),
            total_len: self.rest as u16,
            ..Segment::default()
        };
        let flags = (self.rest >> 40) as u8;
        Noted { segment, entry, direction: direction::IN, flags }.take(frame, tables);
    }
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
        if tables.is_followed(index, step, among) {
            return false;
        }
        step += 1;
    }
    true
}

/// Whether the ticket that was given out `step` tickets after the one in the slot `index` is
/// of the same flow or peer.
#[inline(always)]
pub fn is_followed<T: Lookups>(tables: &T, index: u32, step: u32, among: Among) -> bool {
    // An index ends in the lowest bits of its sequence.
    let slot = index.wrapping_add(step) & among.mask();
    if slot == 0 {
        return false;
    }
    let later = index & !among.mask() | slot;
    let (Some(ticket), Some(later)) = (tables.ticket(index), tables.ticket(later)) else {
        return false;
    };
    match among.of() {
        Of::Flow => later.key == ticket.key,
        Of::Peer => later.peer_ip == ticket.peer_ip,
    }
}
