//! What the exit hooks share: a connection begins, and is this a packet that an entry hook
//! wrote down?

use super::segment::Segment;
use super::{Lookups, Skb, Tables, flow, ticket};
use crate::abi::{Config, Ticket, ticket_flag};

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
