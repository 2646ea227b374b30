//! Peers that are reached without a tunnel (host-gw, DirectRouting): pod ->
//! peer leaves at the underlay device's egress, peer -> pod comes in as it is.

#[cfg(test)]
mod tests;

use network_types::ip::Ipv4Hdr;

use super::flow::{self, Entry};
use super::outbound::Path;
use super::segment::{Segment, plain_ipv4};
use super::{Frame, Tables, Traffic, Trip, Verdict, inbound, to_kernel};
use crate::abi::{Config, Flow, Outcome, action, direction, flag, subnet_flag};
use crate::wire::{self, ETH_LEN};

/// [`Config::port`] where no peer is behind a tunnel.
pub const NO_TUNNEL: [u8; 2] = [0; 2];
/// [`Flow::peer_ip`] of a flow that comes without a tunnel.
pub const NO_OUTER_SOURCE: [u8; 4] = [0; 4];

/// Sends a confirmed flow's packet to its next hop.
#[inline(always)]
pub(super) fn depart<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    segment: &Segment,
    flow: &Flow,
) -> Verdict {
    if segment.forward(frame, ETH_LEN).is_none() {
        tables.count(Outcome::DropBroken);
        return Verdict::Drop;
    }
    // It is met again by `to_underlay`, which has nothing to learn from it.
    frame.mark_fast();
    tables.count(Outcome::FastRoutedOut);
    tables.count_peer(flow.peer_id, Traffic::TxFast, u32::from(segment.total_len));
    Verdict::NextHop { ifindex: flow.out_ifindex, next_hop: flow.next_hop }
}

/// TC egress of the underlay device: what the kernel sends to a direct peer.
/// Only looks on.
#[inline(always)]
pub fn to_underlay<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    if frame.take_fast() || config.flags & flag::DIRECT == 0 {
        return Verdict::Pass;
    }
    let Some(ip) = plain_ipv4(frame) else { return Verdict::Pass };
    if !wire::within(ip.dst_addr, config.network, config.netmask) {
        return Verdict::Pass;
    }
    let Some(subnet) = tables.subnet(ip.dst_addr) else { return Verdict::Pass };
    if subnet.flags & subnet_flag::DIRECT == 0 {
        return Verdict::Pass;
    }
    tables.count_peer(subnet.peer_id, Traffic::TxKernel, frame.len().wrapping_sub(ETH_LEN as u32));
    if config.flags & flag::FAST_PATH == 0 {
        return Verdict::Pass;
    }
    let Ok(segment) = Segment::parse(frame, ETH_LEN, &ip) else { return Verdict::Pass };
    let key = segment.key(direction::OUT);
    let now = tables.now();
    let Some(found) = tables.flow(&key) else { return Verdict::Pass };
    if flow::end(tables, &key, &found) || !flow::proves(&found, config, &segment, now) {
        return Verdict::Pass;
    }
    let trip = Trip {
        source: segment.saddr,
        destination: segment.daddr,
        proto: segment.proto,
        sport: segment.sport,
        dport: segment.dport,
        len: config.direct_mtu,
    };
    let Some(next_hop) = tables.next_hop(config, &trip) else {
        tables.count(Outcome::UnresolvedNextHop);
        return Verdict::Pass;
    };
    let path = Path {
        action: action::ROUTE,
        max_len: config.direct_mtu,
        peer_id: subnet.peer_id,
        peer_ip: subnet.public_ip,
        next_hop,
        vtep_mac: [0; 6],
    };
    path.confirm(tables, config, &key, found, now);
    tables.count(Outcome::ConfirmedOut);
    Verdict::Pass
}

/// A packet for one of our pods that came without a tunnel.
///
/// GRO's aggregates may be handed on as they are: they carry no tunnel's mark.
#[inline(always)]
pub(super) fn arrive<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    ip: &Ipv4Hdr,
) -> Verdict {
    let Some(subnet) = tables.subnet(ip.src_addr) else { return Verdict::Pass };
    if subnet.flags & subnet_flag::DIRECT == 0 || config.flags & flag::FAST_PATH == 0 {
        return Verdict::Pass;
    }
    tables.count(Outcome::SeenFromUnderlay);
    match repeat(frame, tables, config, ip) {
        Ok(verdict) => verdict,
        Err(reason) => {
            let len = frame.len().wrapping_sub(ETH_LEN as u32);
            tables.count_peer(subnet.peer_id, Traffic::RxKernel, len);
            to_kernel(tables, reason)
        }
    }
}

#[inline(always)]
fn repeat<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    ip: &Ipv4Hdr,
) -> Result<Verdict, Outcome> {
    let segment = Segment::parse(frame, ETH_LEN, ip)?;
    let key = segment.key(direction::IN);
    let now = tables.now();
    let entry = Entry { ifindex: frame.ifindex(), now, peer_ip: NO_OUTER_SOURCE, mac: [0; 6] };
    let found = tables.flow(&key);
    if let Err(reason) = flow::admit(tables, config, &segment, &key, found.as_deref(), false) {
        if flow::answers(&segment, reason) {
            flow::note(tables, config, &segment, &key, None, entry);
        }
        return Err(reason);
    }
    let unconfirmed = match &found {
        Some(flow) => match flow::fresh(flow, config, now) {
            Ok(()) if flow.peer_ip != NO_OUTER_SOURCE => Outcome::KernelMoved,
            Ok(()) if segment.wire_len(frame.gso_size()) > u32::from(flow.max_len) => {
                return Err(Outcome::KernelTooBig);
            }
            Ok(()) => {
                let outcome = Outcome::FastRoutedIn;
                return Ok(inbound::deliver(frame, tables, &segment, flow, outcome));
            }
            Err(Outcome::KernelTcpState) => {
                flow::answer(tables, flow);
                return Err(Outcome::KernelTcpState);
            }
            Err(reason) => reason,
        },
        None => Outcome::KernelUnconfirmed,
    };
    flow::note(tables, config, &segment, &key, found, entry);
    Err(unconfirmed)
}
