//! Confirmed flows: what the kernel was seen to deliver unchanged.
//!
//! The entry hook notes a packet and lets it pass. If the exit hook meets that
//! very packet (same tuple, same identification and TOS, TTL one less), the
//! kernel has neither translated nor dropped nor rewritten it, and the flow is
//! confirmed for a window and a generation.

use super::segment::Segment;
use super::{Tables, eager};
use crate::abi::{Config, Flow, FlowKey, Outcome, closing, direction, flag, state};
use crate::wire;

/// A note stands this long before a later packet of the flow replaces it: a
/// flow that the kernel never confirms costs one write in this time, not one
/// for each packet.
pub const NOTE_HOLD_NS: u64 = 10_000_000;
/// A packet that takes longer from entry to exit confirms nothing.
pub const NOTE_LIFE_NS: u64 = 1_000_000_000;

/// Whether TTL, TCP flags or settings keep this packet on the kernel path: it
/// answers for packets that die here, and has to see the birth and the death of
/// each connection. `found` is what stands under `key`.
///
/// A SYN or RST also ends the confirmation: what follows is another connection,
/// and conntrack has to see its handshake to the end. Connections that were
/// opened here (`eager`) are none of its business.
///
/// # Errors
/// The reason.
#[inline(always)]
pub fn admit<T: Tables>(
    tables: &T,
    config: &Config,
    segment: &Segment,
    key: &FlowKey,
    found: Option<&Flow>,
    eager: bool,
) -> Result<(), Outcome> {
    if segment.ttl <= 1 {
        return Err(Outcome::KernelTtl);
    }
    if segment.proto != wire::TCP {
        return Ok(());
    }
    if config.flags & flag::TCP == 0 {
        return Err(Outcome::KernelProtocol);
    }
    if eager {
        return Ok(());
    }
    if segment.tcp_flags & (wire::TCP_SYN | wire::TCP_RST) != 0 {
        // `eager::open` has done so, and left a note.
        if found.is_some() && !eager::opens(config, segment) {
            tables.remove_flow(key);
        }
        return Err(Outcome::KernelTcpState);
    }
    if segment.tcp_flags & wire::TCP_FIN != 0 {
        // Without the last answer conntrack would take the connection for half
        // alive. Where it is not known whether this is the first FIN, it may be
        // the second.
        if let Some(back) = tables.flow(&reverse(key)) {
            let first = found.is_some_and(|flow| flow.closing == closing::NO);
            let state = if first { closing::HALF } else { closing::LAST };
            tables.edit_flow(&back, |back| back.closing = state);
        }
        return Err(Outcome::KernelTcpState);
    }
    // Without ACK it belongs to no connection: conntrack calls it invalid.
    if segment.tcp_flags & wire::TCP_ACK == 0 {
        return Err(Outcome::KernelTcpState);
    }
    Ok(())
}

/// Whether this packet, refused for `reason`, may confirm its flow all the same:
/// the answer to a SYN. Conntrack has both then, and what it still misses of the
/// handshake comes from the other side.
#[inline(always)]
pub(super) fn answers(segment: &Segment, reason: Outcome) -> bool {
    reason == Outcome::KernelTcpState && segment.is_syn_ack()
}

/// Whether the fast path may repeat the kernel's decision.
///
/// # Errors
/// The reason why the kernel has to decide anew.
#[inline(always)]
pub fn fresh(flow: &Flow, config: &Config, now: u64) -> Result<(), Outcome> {
    stands(flow, config, now)?;
    if flow.closing >= closing::LAST {
        return Err(Outcome::KernelTcpState);
    }
    Ok(())
}

/// Whether the confirmation stands, if only for packets that the kernel has to
/// see.
///
/// # Errors
/// The reason why the kernel has to decide anew.
#[inline(always)]
pub fn stands(flow: &Flow, config: &Config, now: u64) -> Result<(), Outcome> {
    if flow.state != state::CONFIRMED {
        return Err(Outcome::KernelUnconfirmed);
    }
    if flow.generation != config.generation {
        return Err(Outcome::KernelGeneration);
    }
    if now >= flow.time_ns {
        return Err(Outcome::KernelExpired);
    }
    Ok(())
}

/// The other direction of a flow.
#[inline(always)]
pub(super) fn reverse(key: &FlowKey) -> FlowKey {
    FlowKey {
        saddr: key.daddr,
        daddr: key.saddr,
        sport: key.dport,
        dport: key.sport,
        direction: if key.direction == direction::OUT { direction::IN } else { direction::OUT },
        ..*key
    }
}

/// What the entry hook knows of the packet it notes.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Interface of the hook.
    pub ifindex: u32,
    /// Monotonic time in ns.
    pub now: u64,
    /// Inwards the outer source.
    pub peer_ip: [u8; 4],
    /// Destination MAC of the frame.
    pub mac: [u8; 6],
}

/// The entry hook leaves this packet to the kernel as the last answer of its
/// connection: the exit hook will end the flow.
#[inline(always)]
pub(super) fn answer<T: Tables>(tables: &T, flow: &T::FlowRef<'_>) {
    tables.edit_flow(flow, |flow| flow.closing = closing::DONE);
}

/// Ends both directions of a connection whose last answer has come to an exit
/// hook: the table is for those that live.
#[inline(always)]
pub(super) fn end<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow) -> bool {
    let ended = flow.closing == closing::DONE;
    if ended {
        tables.remove_flow(key);
        tables.remove_flow(&reverse(key));
    }
    ended
}

/// Notes a packet at its entry hook, unless a young note stands. `found` is what
/// stands under `key`.
#[inline(always)]
pub fn note<T: Tables>(
    tables: &T,
    config: &Config,
    segment: &Segment,
    key: &FlowKey,
    found: Option<T::FlowRef<'_>>,
    entry: Entry,
) {
    match &found {
        Some(old) if is_young(old, config, entry.now) => return,
        Some(_) => {}
        None => tables.count(Outcome::FlowNew),
    }
    tables.set_flow(key, found, state::NOTED, |flow| {
        flow.time_ns = entry.now;
        flow.generation = config.generation;
        flow.entry_ifindex = entry.ifindex;
        flow.peer_ip = entry.peer_ip;
        flow.entry_mac = entry.mac;
        flow.note_id = segment.id;
        flow.note_ttl = segment.ttl;
        flow.note_tos = segment.tos;
        flow.note_port = eager::client_port(segment);
        flow.eager = 0;
    });
}

/// Whether this is a note or a mark that later packets leave alone.
#[inline(always)]
pub(super) fn is_young(flow: &Flow, config: &Config, now: u64) -> bool {
    let young = flow.state == state::NOTED
        && flow.generation == config.generation
        && now.wrapping_sub(flow.time_ns) < NOTE_HOLD_NS;
    young || is_translated(flow, now)
}

/// Whether this tuple, or pair, is one that the kernel has translated to.
#[inline(always)]
pub(super) fn is_translated(flow: &Flow, now: u64) -> bool {
    flow.state == state::TRANSLATED && now < flow.time_ns
}

/// Whether the packet at the exit hook is the one that was noted, unchanged
/// but for one hop.
#[inline(always)]
pub fn proves(flow: &Flow, config: &Config, segment: &Segment, now: u64) -> bool {
    flow.state == state::NOTED
        && flow.note_port == eager::client_port(segment)
        && flow.generation == config.generation
        && now.wrapping_sub(flow.time_ns) < NOTE_LIFE_NS
        && flow.note_id == segment.id
        && flow.note_tos == segment.tos
        && flow.note_ttl.wrapping_sub(1) == segment.ttl
}
