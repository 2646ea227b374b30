//! TC egress of the host side of a pod's veth: what comes here, the kernel
//! delivers to the pod. Only looks on.

use crate::abi::{Config, Ticket, action, direction, flag, ticket_flag};
use crate::path::direct::NO_OUTER_SOURCE;
use crate::path::exit;
use crate::path::proof::{Exit, Witness};
use crate::path::segment::{Segment, macs, plain_ipv4};
use crate::path::{NOBODY, NextHop, Skb, Tables, Verdict, tunnel};
use crate::wire::{self, ETH_LEN};

/// Looks at a packet that is delivered to a pod.
#[inline(always)]
pub fn run<S: Skb, T: Tables>(frame: &mut S, tables: &T) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    // Without a number it did not come from a peer.
    if frame.ticket() == 0 || config.flags & flag::FAST_PATH == 0 {
        return Verdict::Pass;
    }
    let Some(ip) = plain_ipv4(frame) else { return Verdict::Pass };
    let Ok(segment) = Segment::parse(frame, ETH_LEN, &ip) else { return Verdict::Pass };
    exit::begin(tables, &segment, direction::IN);
    let now = tables.now();
    if let Some(ticket) = exit::ticket(frame, tables, config, direction::IN, now) {
        prove(frame, tables, config, &segment, ticket, now);
    }
    Verdict::Pass
}

#[inline(always)]
fn prove<S: Skb, T: Tables>(
    frame: &S,
    tables: &T,
    config: &Config,
    segment: &Segment,
    ticket: &Ticket,
    now: u64,
) {
    let exit = exit_to_pod(frame, tables, config, ticket).unwrap_or(Exit {
        ifindex: frame.ifindex(),
        action: action::KERNEL,
        ..Exit::default()
    });
    tables.edit_proof(|proof| {
        proof.packet = *segment;
        // A mark does not leave the node's namespace.
        proof.mark = if exit.action == action::PEER { 0 } else { frame.mark() };
        proof.priority = frame.priority();
        proof.exit = exit;
    });
    Witness::new(frame.ticket()).connected().maybe_cut().testify(tables, now);
}

/// How packets get into this pod, if nothing has to see them on the way.
#[inline(always)]
fn exit_to_pod<S: Skb, T: Tables>(
    frame: &S,
    tables: &T,
    config: &Config,
    ticket: &Ticket,
) -> Option<Exit> {
    let veth = tables.veth(frame.ifindex())?;
    let (dst_mac, src_mac) = macs(frame, 0)?;
    if config.flags & flag::KEEP_IN != 0 || veth.action == action::KERNEL || wire::is_group(dst_mac)
    {
        return None;
    }
    let (peer_id, max_len) = if ticket.peer_ip == NO_OUTER_SOURCE {
        (tables.subnet(ticket.key.tuple.saddr).map(|subnet| subnet.peer_id), u16::MAX)
    } else {
        (tables.peer(ticket.peer_ip), config.mtu)
    };
    Some(Exit {
        ifindex: frame.ifindex(),
        action: veth.action,
        max_len: max_len.min(veth.mtu as u16),
        peer_id: peer_id.unwrap_or(NOBODY),
        peer_ip: ticket.peer_ip,
        next_hop: NextHop { family: 0, address: [0; 16] },
        dst_mac,
        src_mac,
        until: proven_until(tables, config, ticket),
    })
}

/// How long the kernel's decision about a packet may be repeated. What came by the
/// shortcut was let into the node by the decision about its peer's tunnel.
#[inline(always)]
fn proven_until<T: Tables>(tables: &T, config: &Config, ticket: &Ticket) -> u64 {
    if ticket.flags & ticket_flag::SHORTCUT == 0 {
        return u64::MAX;
    }
    tables.flow(&tunnel::key(config, ticket.peer_ip)).map_or(0, |tunnel| tunnel.time_ns)
}
