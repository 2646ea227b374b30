//! Treatments: what the kernel did to a packet between entry and exit, found out
//! from its ticket, and repeated on packets of the same flow.
//!
//! A treatment is one hop, new addresses and ports (service NAT, masquerade),
//! a new DSCP, and the mark and priority that the packet has at the exit. A
//! packet that was changed in any other way proves nothing.

use super::Skb;
use super::segment::Segment;
use crate::abi::{Ticket, Treatment, Tuple4, ticket_flag};
use crate::wire::{self, ECN_MASK, IPV4_LEN};

/// What the kernel did to the packet of this ticket, if `segment`, which stands
/// at the exit hook with this mark and priority, is that packet.
#[inline(always)]
pub(super) fn of(
    ticket: &Ticket,
    segment: &Segment,
    mark: u32,
    priority: u32,
) -> Option<Treatment> {
    let same = ticket.key.proto == segment.proto
        && ticket.id == segment.id
        && ticket.total_len == segment.total_len
        && ticket.transport == segment.transport
        && ticket.ttl.wrapping_sub(1) == segment.ttl
        && (ticket.tos ^ segment.tos) & ECN_MASK == 0;
    if !same {
        return None;
    }
    let (old, new) = (ticket.key.tuple, segment.tuple);
    let translated = old != new;
    let (address_sum, port_sum) = if translated { sums(&old, &new) } else { (0, 0) };
    if !checksum_follows(ticket, segment, address_sum, port_sum) {
        return None;
    }
    Some(Treatment {
        tuple: new,
        address_sum,
        port_sum,
        mark,
        priority,
        entry_dscp: ticket.tos & !ECN_MASK,
        dscp: segment.tos & !ECN_MASK,
        translated: u8::from(translated),
        reserved: 0,
    })
}

/// What the kernel did to the aggregate of this ticket, if `segment` is the first
/// one of it: a bridge cuts an aggregate that one of its ports cannot take.
///
/// Its lengths and checksum are its own. A translation would show in the checksum
/// only, so there must be none.
#[inline(always)]
pub(super) fn of_aggregate(
    ticket: &Ticket,
    segment: &Segment,
    mark: u32,
    priority: u32,
) -> Option<Treatment> {
    let same = ticket.flags & ticket_flag::AGGREGATE != 0
        && ticket.key.tuple == segment.tuple
        && ticket.key.proto == segment.proto
        && ticket.id == segment.id
        && segment.total_len < ticket.total_len
        && ticket.ttl.wrapping_sub(1) == segment.ttl
        && (ticket.tos ^ segment.tos) & ECN_MASK == 0;
    same.then(|| Treatment {
        tuple: segment.tuple,
        mark,
        priority,
        entry_dscp: ticket.tos & !ECN_MASK,
        dscp: segment.tos & !ECN_MASK,
        ..Treatment::default()
    })
}

/// What new addresses and new ports add to the transport checksum; 0 for those
/// that are the same.
#[inline(always)]
fn sums(old: &Tuple4, new: &Tuple4) -> (u32, u32) {
    let addresses = if old.saddr == new.saddr && old.daddr == new.daddr {
        0
    } else {
        wire::sum_of_change([old.saddr, old.daddr], [new.saddr, new.daddr])
    };
    let ports = |tuple: &Tuple4| {
        let ([s0, s1], [d0, d1]) = (tuple.sport, tuple.dport);
        [s0, s1, d0, d1]
    };
    let (before, after) = (ports(old), ports(new));
    let ports = if before == after { 0 } else { wire::sum_of_change([before], [after]) };
    (addresses, ports)
}

/// Whether the transport checksum is what the translation makes of the old one,
/// be it complete or left to the device (then it holds the addresses only).
#[inline(always)]
fn checksum_follows(ticket: &Ticket, segment: &Segment, address_sum: u32, port_sum: u32) -> bool {
    // What goes around the kernel's device stays declared as a tunnel's packet
    // (`skb->encapsulation`), so a bridge may complete its checksum.
    if ticket.flags & ticket_flag::SHORTCUT != 0 {
        return true;
    }
    let now = u16::from_ne_bytes(segment.transport_check);
    if address_sum == 0 && port_sum == 0 {
        return ticket.check == segment.transport_check;
    }
    if segment.proto == wire::UDP && ticket.check == [0; 2] {
        return now == 0;
    }
    let complete = wire::changed_checksum(
        wire::changed_checksum(ticket.check, address_sum).to_ne_bytes(),
        port_sum,
    );
    let partial = wire::changed_partial_sum(ticket.check, address_sum);
    wire::same_sum(now, complete) || wire::same_sum(now, partial)
}

/// Repeats a treatment on a packet whose IPv4 header stands at `l3`. `None`: it
/// is broken.
#[inline(always)]
pub(super) fn repeat<S: Skb>(
    frame: &mut S,
    segment: &Segment,
    treatment: &Treatment,
    l3: usize,
) -> Option<()> {
    let (ttl, mut check) = wire::decrement_ttl(segment.ttl, segment.check);
    if treatment.dscp != treatment.entry_dscp {
        let tos = treatment.dscp | (segment.tos & ECN_MASK);
        let sum = wire::sum_of_change([[0, segment.tos, 0, 0]], [[0, tos, 0, 0]]);
        check = wire::changed_checksum(check, sum).to_ne_bytes();
        frame.store(l3 + 1, &[tos])?;
    }
    if treatment.translated != 0 {
        check = wire::changed_checksum(check, treatment.address_sum).to_ne_bytes();
        translate(frame, segment, treatment, l3)?;
    }
    let [c0, c1] = check;
    frame.store(l3 + 8, &[ttl, segment.proto, c0, c1])?;
    frame.set_mark(treatment.mark);
    frame.set_priority(treatment.priority);
    Some(())
}

#[inline(always)]
fn translate<S: Skb>(
    frame: &mut S,
    segment: &Segment,
    treatment: &Treatment,
    l3: usize,
) -> Option<()> {
    let Tuple4 { saddr, daddr, sport, dport } = treatment.tuple;
    frame.store(l3 + 12, &saddr)?;
    frame.store(l3 + 16, &daddr)?;
    let l4 = l3 + IPV4_LEN;
    frame.store(l4, &sport)?;
    frame.store(l4 + 2, &dport)?;
    let field = match segment.proto {
        // RFC 768: a datagram without a checksum stays without one.
        wire::UDP if segment.transport_check == [0; 2] => return Some(()),
        wire::UDP => wire::UDP_CHECK,
        _ => wire::TCP_CHECK,
    };
    let udp = segment.proto == wire::UDP;
    if treatment.address_sum != 0 {
        frame.add_to_checksum(l4 + field, treatment.address_sum, true, udp)?;
    }
    if treatment.port_sum != 0 {
        frame.add_to_checksum(l4 + field, treatment.port_sum, false, udp)?;
    }
    Some(())
}

/// Whether a treatment is no more than one hop and a priority.
#[inline(always)]
pub(super) fn is_plain(treatment: &Treatment) -> bool {
    treatment.translated == 0
        && treatment.dscp == treatment.entry_dscp
        && treatment.mark == 0
        && treatment.priority < 1 << 24
}
