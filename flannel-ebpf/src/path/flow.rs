//! Confirmed flows: what the kernel was seen to deliver unchanged.
//!
//! The entry hook notes a packet and lets it pass. If the exit hook meets that
//! very packet (same tuple, same identification and TOS, TTL one less), the
//! kernel has neither translated nor dropped nor rewritten it, and the flow is
//! confirmed for a window and a generation.

use super::segment::Segment;
use super::{Frame, Tables, eager};
use crate::abi::{Config, Flow, FlowKey, Outcome, direction, flag, state};
use crate::wire;

/// A note stands this long before a later packet of the flow replaces it: a
/// flow that the kernel never confirms costs one write in this time, not one
/// for each packet.
pub const NOTE_HOLD_NS: u64 = 10_000_000;
/// A packet that takes longer from entry to exit confirms nothing.
pub const NOTE_LIFE_NS: u64 = 1_000_000_000;

/// Whether TTL, TCP flags or settings keep this packet on the kernel path: it
/// answers for packets that die here, and has to see the birth and the death of
/// each connection.
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
        if !eager::opens(config, segment) {
            tables.remove_flow(key);
        }
        return Err(Outcome::KernelTcpState);
    }
    if segment.tcp_flags & wire::TCP_FIN != 0 {
        // Without the answer conntrack would take the connection for half alive.
        tables.expect_answer(&reverse(key), true);
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
    if flow.state != state::CONFIRMED {
        return Err(Outcome::KernelUnconfirmed);
    }
    if flow.generation != config.generation {
        return Err(Outcome::KernelGeneration);
    }
    if now >= flow.time_ns {
        return Err(Outcome::KernelExpired);
    }
    if flow.answers_fin != 0 {
        return Err(Outcome::KernelTcpState);
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
    /// Inwards the outer source.
    pub peer_ip: [u8; 4],
    /// Outwards the destination MAC of the frame.
    pub mac: [u8; 6],
}

/// Notes a packet at its entry hook, unless a young note stands.
#[inline(always)]
pub fn note<T: Tables, F: Frame>(
    tables: &T,
    config: &Config,
    frame: &F,
    segment: &Segment,
    key: &FlowKey,
    now: u64,
    entry: Entry,
) {
    let mut sticky_ns = 0;
    if let Some(old) = tables.flow(key) {
        if is_young(&old, config, now) {
            return;
        }
        sticky_ns = old.sticky_ns;
    } else {
        tables.count(Outcome::FlowNew);
    }
    tables.put_flow(key, |flow| {
        flow.time_ns = now;
        flow.sticky_ns = sticky_ns;
        flow.generation = config.generation;
        flow.entry_ifindex = frame.ifindex();
        flow.peer_ip = entry.peer_ip;
        flow.entry_mac = entry.mac;
        flow.state = state::NOTED;
        flow.note_id = segment.id;
        flow.note_ttl = segment.ttl;
        flow.note_tos = segment.tos;
        flow.note_port = eager::client_port(segment);
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
