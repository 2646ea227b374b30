//! Connections that are opened on the fast path (`--fast-path=eager`).
//!
//! The kernel is asked about a *pair*: a client's address with a service's
//! address and port. A SYN and its answer that it delivers unchanged confirm the
//! two directions of their pair, as other packets confirm flows. While both are
//! fresh, the next SYN of the pair opens the flows of its connection in both
//! directions, and goes on at once.
//!
//! So conntrack does not see such a connection. All of it, FIN and RST too, must
//! go the same way: the kernel would take the end of a connection that it does
//! not know for invalid. A connection that outlives its window meets the kernel
//! in the middle, which picks it up (`nf_conntrack_tcp_loose`).
//!
//! What is translated is safe without marks: a SYN that the kernel translates
//! does not confirm its pair, and without a SYN of its own no flow is opened;
//! the answer to a translated SYN, and connections that are older than the
//! programs, are flows like any other.

#[cfg(test)]
mod tests;

use super::flow;
use super::segment::Segment;
use super::{Frame, Tables};
use crate::abi::{Config, Flow, FlowKey, Outcome, direction, flag};
use crate::wire;

/// Whether a packet's flow was opened here, and not confirmed by the kernel.
#[inline(always)]
pub(super) fn holds(config: &Config, segment: &Segment, flow: &Flow) -> bool {
    flow.eager != 0 && (config.flags & flag::EAGER != 0 || !segment.is_syn())
}

/// Opens the connection of a SYN if its pair is confirmed in both directions;
/// otherwise makes sure that nothing of an earlier one is left, and notes the
/// packet for its pair. `dir` is the SYN's.
#[inline(always)]
pub(super) fn open<T: Tables, F: Frame>(
    tables: &T,
    config: &Config,
    frame: &F,
    segment: &Segment,
    dir: u8,
    now: u64,
    entry: flow::Entry,
) {
    let there = segment.key(dir);
    let back = answer(&there);
    let pair = to_service(&there);
    if copy(tables, config, &from_service(&back), &back, now)
        && copy(tables, config, &pair, &there, now)
    {
        tables.count(Outcome::OpenedEager);
        return;
    }
    tables.remove_flow(&there);
    tables.remove_flow(&back);
    note(tables, config, frame, segment, &pair, now, entry);
}

/// Whether this is a SYN that [`open`] should see.
#[inline(always)]
pub(super) fn opens(config: &Config, segment: &Segment) -> bool {
    config.flags & flag::EAGER != 0 && segment.is_syn()
}

/// Notes the answer to a SYN, which the kernel is about to decide on, for its
/// pair.
#[inline(always)]
pub(super) fn note_answer<T: Tables, F: Frame>(
    tables: &T,
    config: &Config,
    frame: &F,
    segment: &Segment,
    dir: u8,
    now: u64,
    entry: flow::Entry,
) {
    if config.flags & flag::EAGER != 0 {
        note(tables, config, frame, segment, &from_service(&segment.key(dir)), now, entry);
    }
}

/// Notes a packet for its pair, unless that is confirmed for some time to come.
#[inline(always)]
fn note<T: Tables, F: Frame>(
    tables: &T,
    config: &Config,
    frame: &F,
    segment: &Segment,
    pair: &FlowKey,
    now: u64,
    entry: flow::Entry,
) {
    let lasts = match tables.flow(pair) {
        Some(flow) => flow::fresh(&flow, config, now + config.window_ns / 2).is_ok(),
        None => false,
    };
    if !lasts {
        flow::note(tables, config, frame, segment, pair, now, entry);
    }
}

/// The pair that a packet at an exit hook may confirm.
#[inline(always)]
pub(super) fn pair(config: &Config, segment: &Segment, dir: u8) -> Option<FlowKey> {
    if config.flags & flag::EAGER == 0 {
        None
    } else if segment.is_syn() {
        Some(to_service(&segment.key(dir)))
    } else if segment.is_syn_ack() {
        Some(from_service(&segment.key(dir)))
    } else {
        None
    }
}

/// The client's port, if this packet is one of a handshake.
#[inline(always)]
pub(super) fn client_port(segment: &Segment) -> [u8; 2] {
    if segment.is_syn() {
        segment.sport
    } else if segment.is_syn_ack() {
        segment.dport
    } else {
        [0; 2]
    }
}

/// Whether this packet must not meet a kernel that has not seen its connection.
#[inline(always)]
pub(super) fn is_for_us_alone(segment: &Segment) -> bool {
    segment.tcp_flags & (wire::TCP_SYN | wire::TCP_FIN | wire::TCP_RST) != 0
}

#[inline(always)]
fn copy<T: Tables>(tables: &T, config: &Config, pair: &FlowKey, key: &FlowKey, now: u64) -> bool {
    let opened = {
        let Some(pair) = tables.flow(pair) else { return false };
        if flow::fresh(&pair, config, now).is_err() {
            return false;
        }
        Flow { time_ns: now + config.window_ns, eager: 1, ..*pair }
    };
    tables.put_flow(key, &opened);
    true
}

/// The other direction of a connection.
#[inline(always)]
fn answer(key: &FlowKey) -> FlowKey {
    FlowKey {
        saddr: key.daddr,
        daddr: key.saddr,
        sport: key.dport,
        dport: key.sport,
        direction: if key.direction == direction::OUT { direction::IN } else { direction::OUT },
        ..*key
    }
}

#[inline(always)]
fn to_service(key: &FlowKey) -> FlowKey {
    FlowKey { sport: [0; 2], direction: paired(key.direction), ..*key }
}

#[inline(always)]
fn from_service(key: &FlowKey) -> FlowKey {
    FlowKey { dport: [0; 2], direction: paired(key.direction), ..*key }
}

#[inline(always)]
fn paired(dir: u8) -> u8 {
    if dir == direction::OUT { direction::PAIR_OUT } else { direction::PAIR_IN }
}
