//! The way past the kernel's VXLAN device for packets of which the kernel
//! decides where they go: first packets, handshakes, and all that it translates.
//!
//! Bridge, netfilter and routing see the inner packet as ever. What is spared is
//! the outer packet's way through the node: its own netfilter hooks, conntrack
//! entry, and socket look-up.
//!
//! Inwards those hooks could refuse the outer packet. So a peer's tunnel is a
//! flow of its own, confirmed like others: a packet noted at the underlay device
//! has to come out of `flannel.<VNI>`.

#[cfg(test)]
mod tests;

use super::flow;
use super::outbound;
use super::segment::Segment;
use super::{Frame, Tables, Verdict};
use crate::abi::{Config, Flow, FlowKey, Outcome, Subnet, direction, state};
use crate::wire::{self, ENCAP_LEN, ETH_LEN};

/// Where the inner Ethernet header stands in a tunnel packet.
const INNER_ETH: usize = ENCAP_LEN;

/// Sends a packet that the kernel has routed to `flannel.<VNI>` to its peer.
#[inline(always)]
pub(super) fn encap<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    segment: &Segment,
    subnet: &Subnet,
    next_hop: [u8; 4],
) -> Verdict {
    // The kernel has seen to the MTU, but for packets sent on this device itself.
    if segment.wire_len(frame.gso_size()) > u32::from(config.mtu) {
        return Verdict::Pass;
    }
    match outbound::wrap(frame, tables, config, segment, subnet.public_ip, subnet.vtep_mac) {
        Ok(Some(())) => {
            tables.count(Outcome::ShortcutEncap);
            Verdict::NextHop { ifindex: config.underlay_ifindex, next_hop }
        }
        Ok(None) => {
            tables.count(Outcome::DropBroken);
            Verdict::Drop
        }
        Err(_) => Verdict::Pass,
    }
}

/// Whether a packet that goes to the kernel for this reason is one whose way
/// through the tunnel is as good as any other's.
#[inline(always)]
fn is_ordinary(reason: Outcome) -> bool {
    matches!(
        reason,
        Outcome::KernelUnconfirmed
            | Outcome::KernelExpired
            | Outcome::KernelGeneration
            | Outcome::KernelMoved
            | Outcome::KernelTcpState
    )
}

/// Lets `flannel.<VNI>` receive a tunnel packet that the kernel has to route,
/// for the `reason` given; or notes it, to confirm its peer's tunnel.
///
/// The packet has passed the source check, and its flow is not sticky: what goes
/// through the device must not be overtaken.
#[inline(always)]
pub(super) fn decap<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    outer: &network_types::ip::Ipv4Hdr,
    segment: &Segment,
    reason: Outcome,
) -> Verdict {
    // An aggregate stays marked as a tunnel's, which only the device mends.
    if !is_ordinary(reason)
        || frame.gso_size() != 0
        || wire::decap_changes_ecn(outer.tos, segment.tos)
    {
        return Verdict::Pass;
    }
    let now = tables.now();
    let key = tunnel(config, outer.src_addr);
    let found = tables.flow(&key);
    let confirmed = match &found {
        Some(tunnel) => flow::fresh(tunnel, config, now).is_ok(),
        None => false,
    };
    if !confirmed {
        note(tables, config, segment, &key, found, now);
        return Verdict::Pass;
    }
    let Some(inner_eth) = frame.load::<ETH_LEN>(INNER_ETH) else { return Verdict::Pass };
    if !frame.shrink() {
        return Verdict::Pass;
    }
    if frame.store(0, &inner_eth).is_none() {
        tables.count(Outcome::DropBroken);
        return Verdict::Drop;
    }
    // `from_overlay` has nothing to learn from it.
    frame.mark_fast();
    tables.count(Outcome::ShortcutDecap);
    Verdict::Ingress { ifindex: config.overlay_ifindex }
}

/// TC ingress of `flannel.<VNI>`: confirms the tunnel of the packet's peer, if
/// this packet is the one that was noted.
#[inline(always)]
pub(super) fn confirm<T: Tables>(tables: &T, config: &Config, segment: &Segment, now: u64) {
    let Some(subnet) = tables.subnet(segment.saddr) else { return };
    let key = tunnel(config, subnet.public_ip);
    let Some(noted) = tables.flow(&key) else { return };
    if !proves(&noted, config, segment, now) {
        return;
    }
    tables.set_flow(&key, Some(noted), state::CONFIRMED, |flow| {
        flow.time_ns = now + config.window_ns;
        flow.out_ifindex = config.overlay_ifindex;
        flow.peer_id = subnet.peer_id;
        flow.peer_ip = subnet.public_ip;
    });
    tables.count(Outcome::ConfirmedTunnel);
}

/// Key of the tunnel from a peer's underlay address.
#[inline(always)]
fn tunnel(config: &Config, peer_ip: [u8; 4]) -> FlowKey {
    FlowKey {
        saddr: peer_ip,
        daddr: config.local_ip,
        sport: [0; 2],
        dport: config.port,
        proto: wire::UDP,
        direction: direction::TUNNEL,
        reserved: [0; 2],
    }
}

#[inline(always)]
fn note<T: Tables>(
    tables: &T,
    config: &Config,
    segment: &Segment,
    key: &FlowKey,
    found: Option<T::FlowRef<'_>>,
    now: u64,
) {
    match &found {
        Some(old) if flow::is_young(old, config, now) => return,
        Some(_) => {}
        None => tables.count(Outcome::FlowNew),
    }
    tables.set_flow(key, found, state::NOTED, |flow| {
        flow.time_ns = now;
        flow.generation = config.generation;
        flow.entry_ifindex = config.underlay_ifindex;
        flow.peer_ip = segment.saddr;
        flow.next_hop = segment.daddr;
        flow.note_id = segment.id;
        flow.note_ttl = segment.ttl;
        flow.note_tos = segment.tos;
    });
}

/// Whether the packet at `flannel.<VNI>` is the one that was noted at the
/// underlay device.
#[inline(always)]
fn proves(noted: &Flow, config: &Config, segment: &Segment, now: u64) -> bool {
    noted.state == state::NOTED
        && noted.generation == config.generation
        && now.wrapping_sub(noted.time_ns) < flow::NOTE_LIFE_NS
        && noted.note_id == segment.id
        && noted.note_tos == segment.tos
        && noted.note_ttl == segment.ttl
        && noted.peer_ip == segment.saddr
        && noted.next_hop == segment.daddr
}
