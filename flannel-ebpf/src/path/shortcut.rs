//! The way past the kernel's VXLAN device for packets of which the kernel decides
//! where they go: first packets, handshakes, all that is not confirmed.
//!
//! Bridge, netfilter and routing see the inner packet as ever. What is spared is
//! the outer packet's way through the node: its own netfilter hooks, conntrack
//! entry, and socket look-up.
//!
//! Inwards those hooks could refuse the outer packet. So a peer's tunnel is a
//! flow of its own, confirmed like others: a packet with a ticket of
//! `from_underlay` has to come out of `flannel.<VNI>`.

#[cfg(test)]
mod tests;

use network_types::ip::Ipv4Hdr;

use super::encap::{self, End};
use super::segment::Segment;
use super::ticket::{self, Of};
use super::tunnel::{self, INNER_ETH};
use super::{Skb, Tables, Verdict, Way, exemption, flow};
use crate::abi::{Config, Outcome, Subnet, Ticket, flag, state, ticket_flag};
use crate::wire::{self, ETH_LEN};

/// Sends a packet that the kernel has routed to `flannel.<VNI>` to its peer.
#[inline(always)]
pub(super) fn out<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    segment: &Segment,
    subnet: &Subnet,
    way: &Way,
    mark: u32,
) -> Verdict {
    // The kernel has seen to the MTU, but for packets sent on this device itself.
    if segment.wire_len(frame.gso_size()) > u32::from(config.mtu) {
        return Verdict::Pass;
    }
    let to = End { address: subnet.public_ip, mac: subnet.vtep_mac, mark };
    match encap::wrap(frame, tables, config, segment, &to) {
        Ok(Some(())) => {
            frame.set_ticket(crate::abi::CARRIED);
            tables.count(Outcome::ShortcutEncap);
            Verdict::NextHop { ifindex: way.ifindex, next_hop: way.next_hop }
        }
        Ok(None) => {
            tables.count(Outcome::DropBroken);
            Verdict::Drop
        }
        Err(_) => Verdict::Pass,
    }
}

/// Whether `flannel.<VNI>` may receive a tunnel packet that the kernel has to
/// route, for the `reason` given, without its VXLAN code.
///
/// The packet has passed the source check, and its flow is not sticky: what goes
/// through the device must not be overtaken.
#[inline(always)]
pub(super) fn is_open<S: Skb, T: Tables>(
    frame: &S,
    tables: &T,
    config: &Config,
    outer: &Ipv4Hdr,
    segment: &Segment,
    reason: Outcome,
    now: u64,
) -> bool {
    // An aggregate stays marked as a tunnel's, which only the device mends.
    if !flow::is_ordinary(reason)
        || config.flags & flag::KEEP_TUNNEL != 0
        || frame.gso_size() != 0
        || wire::decap_changes_ecn(outer.tos, segment.tos)
    {
        return false;
    }
    let found = tables.flow(&tunnel::key(config, outer.src_addr));
    found.is_some_and(|tunnel| {
        tunnel.entry_ifindex == frame.ifindex() && flow::fresh(&tunnel, config, now).is_ok()
    })
}

/// Lets `flannel.<VNI>` receive a tunnel packet as its VXLAN code would hand it
/// over. The packet has its ticket.
#[inline(always)]
pub(super) fn receive<S: Skb, T: Tables>(frame: &mut S, tables: &T, config: &Config) -> Verdict {
    let Some(inner_eth) = frame.load::<ETH_LEN>(INNER_ETH) else { return Verdict::Pass };
    if !frame.shrink() {
        return Verdict::Pass;
    }
    if frame.store(0, &inner_eth).is_none() {
        tables.count(Outcome::DropBroken);
        return Verdict::Drop;
    }
    tables.count(Outcome::ShortcutDecap);
    Verdict::Ingress { ifindex: config.overlay_ifindex }
}

/// Confirms the tunnel of a packet's peer: the packet has come out of
/// `flannel.<VNI>`, and its ticket is of `from_underlay`.
#[inline(always)]
pub(super) fn confirm<S: Skb, T: Tables>(
    frame: &S,
    tables: &T,
    config: &Config,
    ticket: &Ticket,
    now: u64,
) {
    // A mark that a rule has given to the outer packet would be missing behind the
    // shortcut.
    if ticket.flags & ticket_flag::SHORTCUT != 0
        || frame.mark() != 0
        || ticket.generation != config.generation
        || config.flags & flag::FAST_PATH == 0
    {
        return;
    }
    let key = tunnel::key(config, ticket.peer_ip);
    let found = tables.flow(&key);
    // Half a window before its end is early enough.
    let lasts = found.as_deref().is_some_and(|tunnel| {
        tunnel.entry_ifindex == ticket.entry_ifindex
            && flow::fresh(tunnel, config, now + config.window_ns / 2).is_ok()
    });
    if lasts
        || !ticket::is_last(frame.ticket(), tables, config, ticket, Of::Peer)
        // A rule of INPUT that judges tunnel packets one by one exempts all that
        // comes in.
        || exemption::covers(tables, config, &ticket.key, &ticket.key.tuple)
    {
        return;
    }
    if found.is_none() {
        tables.count(Outcome::FlowNew);
    }
    tables.set_flow(&key, found, state::CONFIRMED, |flow| {
        flow.time_ns = ticket.time_ns + config.window_ns;
        flow.generation = ticket.generation;
        flow.entry_ifindex = ticket.entry_ifindex;
        flow.out_ifindex = config.overlay_ifindex;
        flow.peer_ip = ticket.peer_ip;
    });
    tables.count(Outcome::ConfirmedTunnel);
}
