//! Connections that are opened on the fast path (`--fast-path=eager`).
//!
//! The kernel is asked about a *pair*: a client's address with a service's
//! address and port. A SYN and its answer whose tickets say that the kernel
//! delivered them untranslated confirm the two directions of their pair. While
//! both are fresh, the next SYN of the pair opens the flows of its connection in
//! both directions, and goes on at once.
//!
//! So conntrack does not see such a connection. All of it, FIN and RST too, must
//! go the same way: the kernel would take the end of a connection that it does
//! not know for invalid. A connection that outlives its window meets the kernel
//! in the middle, which picks it up (`nf_conntrack_tcp_loose`).
//!
//! A pair to which the kernel translates a connection is barred for a while:
//! conntrack, which gives translated connections free ports, has to know the
//! direct ones beside them.

#[cfg(test)]
mod tests;

use super::segment::Segment;
use super::ticket::Entry;
use super::{Lookups, Tables, flow};
use crate::abi::{Config, Flow, FlowKey, Outcome, Tuple4, direction, flag, state};
use crate::wire;

/// How long a pair stays barred after a packet of a translated connection: as
/// long as conntrack remembers one that has ended (TIME_WAIT).
const BARRED_NS: u64 = 120_000_000_000;

/// Whether a packet's flow was opened here, and not confirmed by the kernel.
#[inline(always)]
pub(super) fn holds(config: &Config, segment: &Segment, flow: &Flow) -> bool {
    flow.eager != 0 && (config.flags & flag::EAGER != 0 || !segment.is_syn())
}

/// A SYN whose connection may be opened, in words: a function of the programs is called
/// with them.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// The bytes of its flow's key.
    pub key: [u64; 2],
    /// Interface of the hook in the upper half, outer source in the lower.
    pub sender: u64,
    /// Monotonic time in ns.
    pub now: u64,
}

impl Opening {
    #[inline(always)]
    pub(super) fn new(key: &FlowKey, entry: &Entry) -> Self {
        let peer_ip = u32::from_ne_bytes(entry.peer_ip);
        Self {
            key: zerocopy::transmute!(*key),
            sender: u64::from(entry.ifindex) << 32 | u64::from(peer_ip),
            now: entry.now,
        }
    }

    /// Opens the connection if its pair is confirmed in both directions; otherwise makes
    /// sure that nothing of an earlier one of this sender is left.
    #[inline(always)]
    pub fn open<T: Tables>(self, tables: &T) {
        let Some(config) = tables.config() else { return };
        let key: &FlowKey = &zerocopy::transmute!(self.key);
        let peer_ip = (self.sender as u32).to_ne_bytes();
        let entry = Entry::new(self.now, (self.sender >> 32) as u32, peer_ip, [0; 6]);
        let back = flow::reverse(key);
        if let Some(flow) = tables.flow(key)
            && flow::stands(&flow, config, entry.now).is_ok()
            && !flow::is_senders(&flow, key, &entry)
        {
            return;
        }
        let (pair, pair_back) = (to_service(key), from_service(&back));
        if is_open(tables, config, &pair, &entry) && is_open(tables, config, &pair_back, &entry) {
            copy(tables, &pair_back, &back);
            copy(tables, &pair, key);
            tables.count(Outcome::OpenedEager);
            return;
        }
        tables.remove_flow(&back);
        tables.remove_flow(key);
    }
}

/// Whether the kernel has delivered this half of a pair lately; the half in the
/// SYN's direction for this sender.
#[inline(always)]
fn is_open<T: Lookups>(tables: &T, config: &Config, pair: &FlowKey, entry: &Entry) -> bool {
    let Some(flow) = tables.flow(pair) else { return false };
    let there = pair.tuple.sport == [0; 2];
    let senders = flow.entry_ifindex == entry.ifindex
        && (pair.direction == direction::PAIR_OUT || flow.peer_ip == entry.peer_ip);
    flow::fresh(&flow, config, entry.now).is_ok() && (!there || senders)
}

/// Gives a connection what its pair has. Its time ends with the pair's: the
/// kernel decided no later than that.
#[inline(always)]
fn copy<T: Tables>(tables: &T, pair: &FlowKey, key: &FlowKey) {
    let Some(found) = tables.flow(pair) else { return };
    tables.set_flow(key, None, state::CONFIRMED, |flow| {
        *flow = *found;
        flow.treatment.tuple = key.tuple;
        flow.eager = 1;
    });
}

/// Keeps a pair with the kernel: a packet of a connection was translated to this
/// tuple.
#[inline(always)]
pub(super) fn bar<T: Tables>(tables: &T, config: &Config, key: &FlowKey, now: u64) {
    if config.flags & flag::EAGER == 0 || key.proto != wire::TCP {
        return;
    }
    let pair = to_service(key);
    let found = tables.flow(&pair);
    let lasts = found
        .as_deref()
        .is_some_and(|flow| flow.state == state::BARRED && flow.time_ns > now + BARRED_NS / 2);
    if !lasts {
        tables.set_flow(&pair, found, state::BARRED, |flow| flow.time_ns = now + BARRED_NS);
    }
}

/// The pair that a packet with these flags may confirm at an exit hook; `key` is that of its
/// flow.
#[inline(always)]
pub(super) fn pair(config: &Config, tcp_flags: u8, key: &FlowKey) -> Option<FlowKey> {
    const SYN_ACK: u8 = wire::TCP_SYN | wire::TCP_ACK;
    match tcp_flags & wire::TCP_HANDSHAKE {
        _ if config.flags & flag::EAGER == 0 => None,
        wire::TCP_SYN => Some(to_service(key)),
        SYN_ACK => Some(from_service(key)),
        _ => None,
    }
}

/// Whether this packet must not meet a kernel that has not seen its connection.
#[inline(always)]
pub(super) fn is_for_us_alone(segment: &Segment) -> bool {
    segment.tcp_flags & (wire::TCP_SYN | wire::TCP_FIN | wire::TCP_RST) != 0
}

#[inline(always)]
fn to_service(key: &FlowKey) -> FlowKey {
    let tuple = Tuple4 { sport: [0; 2], ..key.tuple };
    FlowKey { tuple, direction: paired(key.direction), ..*key }
}

#[inline(always)]
fn from_service(key: &FlowKey) -> FlowKey {
    let tuple = Tuple4 { dport: [0; 2], ..key.tuple };
    FlowKey { tuple, direction: paired(key.direction), ..*key }
}

#[inline(always)]
fn paired(dir: u8) -> u8 {
    if dir == direction::OUT { direction::PAIR_OUT } else { direction::PAIR_IN }
}
