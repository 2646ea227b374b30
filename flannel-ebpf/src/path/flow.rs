//! The life of flows: when a confirmation holds, and how it ends.

use super::Tables;
use super::segment::Segment;
use super::ticket::Entry;
use crate::abi::{Config, Flow, FlowKey, Outcome, closing, direction, flag, state};
use crate::wire::{self, ECN_MASK};

/// A proof younger than this is not replaced by one of another DSCP.
const SETTLED_NS: u64 = 50_000_000;

/// Whether TTL, TCP flags or settings keep this packet on the kernel path: it
/// answers for packets that die here, and has to see the birth and the death of
/// each connection. `found` is what stands under `key`, `ours` whether it belongs
/// to this sender.
///
/// A SYN or RST also ends the confirmation: what follows is another connection,
/// and conntrack has to see its handshake to the end. Connections that were
/// opened here (`eager`) are none of its business.
///
/// # Errors
/// The reason.
#[inline(always)]
pub(super) fn admit<T: Tables>(
    tables: &T,
    config: &Config,
    segment: &Segment,
    key: &FlowKey,
    found: Option<&Flow>,
    ours: bool,
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
        // `Opening::open` has done so.
        if found.is_some() && ours && !opens(config, segment) {
            tables.remove_flow(key);
        }
        return Err(Outcome::KernelTcpState);
    }
    if segment.tcp_flags & wire::TCP_FIN != 0 {
        // Another sender's FIN is the kernel's to judge. Where nothing is known of
        // the flow, this one may be the second.
        if found.is_none() || ours {
            close_other_side(tables, key, found);
        }
        return Err(Outcome::KernelTcpState);
    }
    // Without ACK it belongs to no connection: conntrack calls it invalid.
    if segment.tcp_flags & wire::TCP_ACK == 0 {
        return Err(Outcome::KernelTcpState);
    }
    Ok(())
}

/// Whether this is a SYN that `Opening::open` should see.
#[inline(always)]
pub(super) fn opens(config: &Config, segment: &Segment) -> bool {
    config.flags & flag::EAGER != 0 && segment.is_syn()
}

/// A FIN goes by: without the last answer conntrack would take the connection for
/// half alive.
#[inline(always)]
fn close_other_side<T: Tables>(tables: &T, key: &FlowKey, found: Option<&Flow>) {
    let other = match found {
        Some(flow) => other_side(key, flow),
        None => reverse(key),
    };
    if let Some(back) = tables.flow(&other) {
        let first = found.is_some_and(|flow| flow.closing == closing::NO);
        let state = if first { closing::HALF } else { closing::LAST };
        tables.edit_flow(&back, |back| back.closing = state);
    }
}

/// Whether the fast path may repeat what the kernel did.
///
/// # Errors
/// The reason why the kernel has to decide again.
#[inline(always)]
pub(super) fn fresh(flow: &Flow, config: &Config, now: u64) -> Result<(), Outcome> {
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
/// The reason why the kernel has to decide again.
#[inline(always)]
pub(super) fn stands(flow: &Flow, config: &Config, now: u64) -> Result<(), Outcome> {
    if flow.generation != config.generation {
        return Err(Outcome::KernelGeneration);
    }
    if now >= flow.time_ns {
        return Err(Outcome::KernelExpired);
    }
    match flow.state {
        state::CONFIRMED => Ok(()),
        state::KEPT => Err(Outcome::KernelRule),
        _ => Err(Outcome::KernelUnconfirmed),
    }
}

/// Whether what the kernel decided has to be proven again.
#[inline(always)]
pub(super) fn is_over(flow: &Flow, config: &Config, now: u64) -> bool {
    flow.generation != config.generation || now >= flow.time_ns
}

/// Whether a packet with this DSCP is treated as the flow's proven one was.
///
/// # Errors
/// It may be treated differently.
#[inline(always)]
pub(super) fn fits(flow: &Flow, segment: &Segment) -> Result<(), Outcome> {
    if segment.tos & !ECN_MASK == flow.treatment.entry_dscp {
        Ok(())
    } else {
        Err(Outcome::KernelDiffers)
    }
}

/// Whether a proof has stood for a moment.
#[inline(always)]
pub(super) fn is_settled(flow: &Flow, config: &Config, key: &FlowKey, now: u64) -> bool {
    now + window(config, key.proto) >= flow.time_ns.wrapping_add(SETTLED_NS)
}

/// Whether a later packet of a known flow is under way than that of this ticket.
#[inline(always)]
pub(super) fn has_later(flow: &Flow, ticket: u16) -> bool {
    flow.entered != 0 && flow.entered != u32::from(ticket)
}

/// Whether the kernel carries a packet for this reason as it does the other
/// packets of its flow.
#[inline(always)]
pub(super) fn is_ordinary(reason: Outcome) -> bool {
    matches!(
        reason,
        Outcome::KernelUnconfirmed
            | Outcome::KernelBeyond
            | Outcome::KernelExpired
            | Outcome::KernelGeneration
            | Outcome::KernelMoved
            | Outcome::KernelDiffers
            | Outcome::KernelRule
            | Outcome::KernelTcpState
    )
}

/// Whether a packet at an exit hook may confirm its flow. A SYN does not: its
/// direction's next packet, the handshake's last ACK, is conntrack's too. Its
/// answer does: conntrack has both then, and what it still misses of the
/// handshake comes from the other side.
#[inline(always)]
pub(super) fn may_confirm(proto: u8, tcp_flags: u8) -> bool {
    proto != wire::TCP
        || (tcp_flags & (wire::TCP_FIN | wire::TCP_RST) == 0 && tcp_flags & wire::TCP_ACK != 0)
}

/// How long a confirmation lasts, in ns.
#[inline(always)]
pub(super) fn window(config: &Config, proto: u8) -> u64 {
    if proto == wire::UDP { config.udp_window_ns } else { config.window_ns }
}

/// The other direction of a flow that is not translated.
#[inline(always)]
pub(super) fn reverse(key: &FlowKey) -> FlowKey {
    turned(key, *key)
}

/// The other direction of a flow: it comes in as this one leaves.
#[inline(always)]
pub(super) fn other_side(key: &FlowKey, flow: &Flow) -> FlowKey {
    turned(key, FlowKey { tuple: flow.treatment.tuple, ..*key })
}

#[inline(always)]
fn turned(key: &FlowKey, leaves: FlowKey) -> FlowKey {
    let back = if key.direction == direction::OUT { direction::IN } else { direction::OUT };
    FlowKey { tuple: leaves.tuple.reversed(), direction: back, ..*key }
}

/// Whether a flow belongs to the sender of a packet. Outwards that is a veth,
/// inwards a peer, by the device where the kernel took its packets: another's may
/// be closed to them.
#[inline(always)]
pub(super) fn is_senders(flow: &Flow, key: &FlowKey, entry: &Entry) -> bool {
    flow.entry_ifindex == entry.ifindex
        && (key.direction == direction::OUT || flow.peer_ip == entry.peer_ip)
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
        let other = other_side(key, flow);
        tables.remove_flow(key);
        tables.remove_flow(&other);
    }
    ended
}
