//! What the exit hooks share: is this the packet that an entry hook wrote down, and what
//! keeps its flow with the kernel?

use super::segment::Segment;
use super::{Lookups, Skb, Tables, exemption, flow, ticket, treatment};
use crate::abi::{Config, Outcome, Ticket, Treatment, ticket_flag};

/// A SYN leaves the kernel's path: nothing of an earlier connection with the tuple
/// that it has now may be left, or that would take the answers. Earlier ones may
/// have been translated otherwise, or not at all.
#[inline(always)]
pub(super) fn begin<T: Tables>(tables: &T, segment: &Segment, dir: u8) {
    if segment.is_syn() {
        tables.remove_flow(&flow::reverse(&segment.key(dir)));
    }
}

/// The ticket of a packet of this direction that may prove its flow.
#[inline(always)]
pub(super) fn ticket<'a, S: Skb, T: Lookups>(
    frame: &S,
    tables: &'a T,
    config: &Config,
    dir: u8,
    now: u64,
) -> Option<&'a Ticket> {
    let ticket = ticket::presented(frame, tables, config, now)?;
    let fit = ticket.key.direction == dir
        && ticket.flags & ticket_flag::FLOW != 0
        && ticket.generation == config.generation
        && (ticket.hash == 0 || ticket.hash == frame.known_hash());
    fit.then_some(ticket)
}

/// What the kernel did to the packet of this ticket; counts if it was more than
/// can be repeated.
#[inline(always)]
pub(super) fn treatment<S: Skb, T: Tables>(
    frame: &S,
    tables: &T,
    ticket: &Ticket,
    segment: &Segment,
    mark: u32,
) -> Option<Treatment> {
    let found = treatment::of(ticket, segment, mark, frame.priority());
    if found.is_none() {
        tables.count(Outcome::RefusedChanged);
    }
    found
}

/// Whether a rule judges the packets of this flow one by one.
#[inline(always)]
pub(super) fn is_exempt<T: Lookups>(
    tables: &T,
    config: &Config,
    ticket: &Ticket,
    segment: &Segment,
) -> bool {
    exemption::covers(tables, config, &ticket.key, &segment.tuple)
}
