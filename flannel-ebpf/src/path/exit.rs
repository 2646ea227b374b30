//! What the exit hooks share: is this the packet that an entry hook wrote down,
//! and may its flow be confirmed?

use super::segment::Segment;
use super::ticket::{self, Of};
use super::{Lookups, NextHop, Skb, Tables, exemption, flow, treatment};
use crate::abi::{
    Config, Flow, FlowKey, Outcome, Ticket, Treatment, direction, flag, state, ticket_flag,
};
use crate::wire;

/// How the fast path is to send a flow's packets.
pub(super) struct Exit {
    /// Output interface.
    pub(super) ifindex: u32,
    /// [`crate::abi::action`].
    pub(super) action: u8,
    /// Largest IP packet in bytes.
    pub(super) max_len: u16,
    pub(super) peer_id: u32,
    /// [`Flow::peer_ip`].
    pub(super) peer_ip: [u8; 4],
    pub(super) next_hop: NextHop,
    pub(super) dst_mac: [u8; 6],
    pub(super) src_mac: [u8; 6],
    /// Monotonic time in ns until which the way here was proven.
    pub(super) until: u64,
}

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

/// Whether the flow of a proven packet may be confirmed. `found` is what stands
/// under its key.
///
/// # Errors
/// What is against it.
#[inline(always)]
pub(super) fn admit<S: Skb, T: Tables>(
    frame: &S,
    tables: &T,
    config: &Config,
    ticket: &Ticket,
    found: Option<&Flow>,
    now: u64,
) -> Result<(), Outcome> {
    if let Some(flow) = found
        && flow::stands(flow, config, now).is_ok()
    {
        let same = if ticket.key.direction == direction::OUT {
            flow.entry_ifindex == ticket.entry_ifindex
        } else {
            flow.peer_ip == ticket.peer_ip
        };
        // A pod that sends under another's address does not take its flow over.
        if !same {
            return Err(Outcome::RefusedSender);
        }
    }
    // A flow that is known tells of later packets on all CPUs, tickets of this one's.
    if found.is_some_and(|flow| flow::has_later(flow, frame.ticket()))
        || !ticket::is_last(frame, tables, config, ticket, Of::Flow)
    {
        return Err(Outcome::RefusedOrder);
    }
    Ok(())
}

/// Whether something that acts on packets keeps what comes from this veth.
#[inline(always)]
pub(super) fn is_kept_out<T: Lookups>(tables: &T, config: &Config, ticket: &Ticket) -> bool {
    let open = tables.veth(ticket.entry_ifindex).is_some_and(|veth| veth.keep_out == 0);
    config.flags & flag::KEEP_OUT != 0 || !open
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

/// Confirms the flow of a ticket; or, `kept`, notes that a rule keeps it, so that its next
/// packets need no tickets.
///
/// The bound of one window counts from the entry: what the kernel decided then is
/// repeated no longer.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a program has no stack to spare")]
pub(super) fn confirm<T: Tables>(
    tables: &T,
    config: &Config,
    number: u16,
    ticket: &Ticket,
    found: Option<T::FlowRef<'_>>,
    treatment: &Treatment,
    exit: &Exit,
    kept: bool,
) -> bool {
    let key = ticket.key;
    let index = config.tickets.index(number);
    let sequence = tables.ticket_sequence(index);
    let surely = treatment.translated == 0
        || key.proto != wire::UDP
        || found.as_deref().is_some_and(|flow| {
            matches!(flow.state, state::SEEN | state::CONFIRMED)
                && flow.treatment.tuple == treatment.tuple
        });
    let state = match (kept, surely) {
        (true, _) => state::KEPT,
        (false, true) => state::CONFIRMED,
        (false, false) => state::SEEN,
    };
    if found.is_none() {
        tables.count(Outcome::FlowNew);
    }
    let epoch = tables.epoch();
    tables.set_flow(&key, found, state, |flow| {
        flow.time_ns = exit.until.min(ticket.time_ns + flow::window(config, key.proto));
        flow.generation = ticket.generation;
        flow.epoch = epoch;
        flow.entry_ifindex = ticket.entry_ifindex;
        flow.entry_mac = ticket.entry_mac;
        flow.treatment = *treatment;
        flow.eager = 0;
        lead(flow, exit);
    });
    // Another CPU reads the slot of this one: it may have been given out again.
    if tables.ticket_sequence(index) != sequence {
        tables.remove_flow(&key);
        return false;
    }
    if kept {
        tables.count(Outcome::RefusedRule);
    } else if surely && treatment.translated != 0 {
        tables.count(Outcome::ConfirmedTranslated);
    }
    !kept && surely
}

/// Confirms a pair by a packet of a handshake that was not translated.
#[inline(always)]
pub(super) fn confirm_pair<T: Tables>(
    tables: &T,
    config: &Config,
    ticket: &Ticket,
    pair: &FlowKey,
    treatment: &Treatment,
    exit: &Exit,
) {
    let found = tables.flow(pair);
    match &found {
        Some(flow) if flow.state == state::BARRED && ticket.time_ns < flow.time_ns => return,
        Some(_) => {}
        None => tables.count(Outcome::FlowNew),
    }
    let epoch = tables.epoch();
    tables.set_flow(pair, found, state::CONFIRMED, |flow| {
        flow.time_ns = exit.until.min(ticket.time_ns + flow::window(config, wire::TCP));
        flow.generation = ticket.generation;
        flow.epoch = epoch;
        flow.entry_ifindex = ticket.entry_ifindex;
        flow.entry_mac = ticket.entry_mac;
        flow.treatment = *treatment;
        lead(flow, exit);
    });
    tables.count(Outcome::ConfirmedPair);
}

#[inline(always)]
fn lead(flow: &mut Flow, exit: &Exit) {
    flow.out_ifindex = exit.ifindex;
    flow.action = exit.action;
    flow.max_len = exit.max_len;
    flow.peer_id = exit.peer_id;
    flow.peer_ip = exit.peer_ip;
    flow.next_hop = exit.next_hop.address;
    flow.next_hop_family = exit.next_hop.family;
    flow.dst_mac = exit.dst_mac;
    flow.src_mac = exit.src_mac;
}
