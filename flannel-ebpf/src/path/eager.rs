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
//! Without a SYN at its entry hook no flow is opened: connections that are older
//! than the programs, and the answers to translated SYNs, are flows like any
//! other. A SYN that comes to an exit hook with a tuple that no entry hook has
//! seen was translated. That ends what stands for its tuple, and keeps its pair
//! with the kernel for a while: conntrack, which gives translated connections
//! free ports, has to know the direct ones beside them. For the same reason no
//! direct connection is opened with the tuple of a translated one.

#[cfg(test)]
mod tests;

use super::Tables;
use super::flow;
use super::segment::Segment;
use crate::abi::{Config, Flow, FlowKey, Outcome, direction, flag, state};
use crate::wire;

/// How long the tuple and the pair of a translated connection stay with the
/// kernel: as long as conntrack remembers one that has ended (TIME_WAIT).
const TRANSLATED_NS: u64 = 120_000_000_000;

/// Whether a packet's flow was opened here, and not confirmed by the kernel.
#[inline(always)]
pub(super) fn holds(config: &Config, segment: &Segment, flow: &Flow) -> bool {
    flow.eager != 0 && (config.flags & flag::EAGER != 0 || !segment.is_syn())
}

/// Opens the connection of a SYN if its pair is confirmed in both directions;
/// otherwise makes sure that nothing of an earlier one is left, and notes the
/// packet for its pair. `dir` is the SYN's.
#[inline(always)]
pub(super) fn open<T: Tables>(
    tables: &T,
    config: &Config,
    segment: &Segment,
    dir: u8,
    entry: flow::Entry,
) {
    let now = entry.now;
    let there = segment.key(dir);
    let back = flow::reverse(&there);
    let pair = to_service(&there);
    if let Some(flow) = tables.flow(&there)
        && flow::is_translated(&flow, now)
    {
        // Conntrack finds another port for this one.
        return;
    }
    if copy(tables, config, &from_service(&back), &back, now)
        && copy(tables, config, &pair, &there, now)
    {
        tables.count(Outcome::OpenedEager);
        return;
    }
    tables.remove_flow(&back);
    // By its note the exit hook knows that the SYN was not translated.
    tables.remove_flow(&there);
    flow::note(tables, config, segment, &there, None, entry);
    note(tables, config, segment, &pair, entry);
}

/// Whether this is a SYN that [`open`] should see.
#[inline(always)]
pub(super) fn opens(config: &Config, segment: &Segment) -> bool {
    config.flags & flag::EAGER != 0 && segment.is_syn()
}

/// Notes the answer to a SYN, which the kernel is about to decide on, for its
/// pair.
#[inline(always)]
pub(super) fn note_answer<T: Tables>(
    tables: &T,
    config: &Config,
    segment: &Segment,
    dir: u8,
    entry: flow::Entry,
) {
    if config.flags & flag::EAGER != 0 {
        note(tables, config, segment, &from_service(&segment.key(dir)), entry);
    }
}

/// Whether a packet at an exit hook may confirm its flow. A SYN may not.
///
/// What was translated is marked: the tuple of a connection (outwards, where the
/// entry hook has noted all others), and the pair of a SYN.
#[inline(always)]
pub(super) fn judge<T: Tables>(
    tables: &T,
    config: &Config,
    segment: &Segment,
    dir: u8,
    now: u64,
) -> bool {
    let ends = segment.tcp_flags & (wire::TCP_FIN | wire::TCP_RST) != 0;
    if config.flags & flag::EAGER == 0 || segment.proto != wire::TCP || ends {
        return true;
    }
    let there = segment.key(dir);
    let syn = segment.is_syn();
    match tables.flow(&there) {
        Some(flow) if flow.state == state::TRANSLATED => {
            let lasts = flow.time_ns > now + TRANSLATED_NS / 2;
            if lasts {
                return false;
            }
        }
        Some(flow) if syn => {
            let unchanged = flow::proves(&flow, config, segment, now);
            if unchanged {
                tables.remove_flow(&there);
                return false;
            }
        }
        Some(_) => return true,
        None if !syn && dir != direction::OUT => return true,
        None => {}
    }
    mark(tables, &there, now);
    if syn {
        tables.remove_flow(&flow::reverse(&there));
        mark(tables, &to_service(&there), now);
    }
    false
}

#[inline(always)]
fn mark<T: Tables>(tables: &T, key: &FlowKey, now: u64) {
    tables.set_flow(key, None, state::TRANSLATED, |flow| flow.time_ns = now + TRANSLATED_NS);
}

/// Notes a packet for its pair, unless that is confirmed for some time to come.
#[inline(always)]
fn note<T: Tables>(
    tables: &T,
    config: &Config,
    segment: &Segment,
    pair: &FlowKey,
    entry: flow::Entry,
) {
    let found = tables.flow(pair);
    let lasts = match &found {
        Some(flow) => flow::fresh(flow, config, entry.now + config.window_ns / 2).is_ok(),
        None => false,
    };
    if !lasts {
        flow::note(tables, config, segment, pair, found, entry);
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
    let Some(pair) = tables.flow(pair) else { return false };
    if flow::fresh(&pair, config, now).is_err() {
        return false;
    }
    tables.set_flow(key, None, state::CONFIRMED, |flow| {
        *flow = *pair;
        flow.time_ns = now + config.window_ns;
        flow.eager = 1;
    });
    true
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
