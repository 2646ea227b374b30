//! Peer -> pod: entry at the underlay device, exit at the pod's veth, and the
//! way of GSO aggregates through `flannel.<VNI>`.

use network_types::ip::Ipv4Hdr;

use super::flow::{self, Entry};
use super::segment::{Segment, ipv4_at, macs, plain_ipv4};
use super::{
    Frame, Tables, Traffic, Verdict, direct, eager, shortcut, source, to_kernel, wire_xdp,
};
use crate::abi::{Config, Flow, FlowKey, Outcome, action, direction, flag, state};
use crate::wire::{self, ENCAP_LEN, ETH_LEN, IPV4_LEN, UDP_LEN, VXLAN_LEN};

/// TC ingress of the underlay device.
#[inline(always)]
pub fn from_underlay<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    if let Some(handover) = frame.take_handover() {
        return wire_xdp::hand_on(frame, tables, config, &handover);
    }
    if !frame.to_us() {
        return Verdict::Pass;
    }
    let Some(outer) = plain_ipv4(frame) else { return Verdict::Pass };
    if config.flags & flag::DIRECT != 0
        && wire::within(outer.dst_addr, config.subnet, config.subnet_mask)
    {
        return direct::arrive(frame, tables, config, &outer);
    }
    if outer.proto != wire::UDP
        || outer.dst_addr != config.local_ip
        || config.port == direct::NO_TUNNEL
        || wire::is_later_fragment(&outer)
    {
        return Verdict::Pass;
    }
    if outer.vihl == 0x45 {
        tunnel(frame, tables, config, &outer, ETH_LEN + IPV4_LEN)
    } else if outer.vihl > 0x45 && outer.vihl <= 0x4f {
        let l4 = ETH_LEN + usize::from(outer.vihl & 0x0f) * 4;
        tunnel(frame, tables, config, &outer, l4)
    } else {
        Verdict::Pass
    }
}

#[inline(always)]
fn tunnel<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    outer: &Ipv4Hdr,
    l4: usize,
) -> Verdict {
    frame.linearize((l4 + UDP_LEN) as u32);
    let Some(udp) = frame.load::<UDP_LEN>(l4).map(wire::udp) else { return Verdict::Pass };
    if udp.dst != config.port {
        return Verdict::Pass;
    }
    tables.count(Outcome::SeenFromUnderlay);
    let inner_eth = l4 + UDP_LEN + VXLAN_LEN;
    let inner_l3 = inner_eth + ETH_LEN;
    frame.linearize((inner_l3 + IPV4_LEN) as u32);
    let Some(vxlan) = frame.load::<VXLAN_LEN>(l4 + UDP_LEN) else {
        return short(tables, config, outer);
    };
    if !wire::is_vni(vxlan, config.vni) {
        return to_kernel(tables, Outcome::KernelForeignVni);
    }
    let Some(ethertype) = frame.load::<2>(inner_eth + 12) else {
        return short(tables, config, outer);
    };
    let inner = if ethertype == wire::ETHERTYPE_IPV4 {
        let Some(inner) = ipv4_at(frame, inner_l3) else { return short(tables, config, outer) };
        Some(inner)
    } else {
        None
    };
    let candidate = match &inner {
        Some(inner) => candidate(frame, config, outer, inner, l4, inner_l3),
        None => Err(Outcome::KernelNotIpv4),
    };
    match repeat(frame, tables, config, outer, inner.as_ref(), candidate) {
        Ok(verdict) => verdict,
        Err(Left { reason, peer, sticky }) => {
            tables.count(reason);
            if peer == NOBODY {
                return Verdict::Pass;
            }
            let len = frame.len().wrapping_sub(inner_l3 as u32);
            tables.count_peer(peer, Traffic::RxKernel, len);
            let Ok(segment) = candidate else { return Verdict::Pass };
            // What goes through the device must not be overtaken.
            if sticky {
                return Verdict::Pass;
            }
            shortcut::decap(frame, tables, config, outer, &segment, reason)
        }
    }
}

/// A tunnel packet that ends before its inner header: the kernel refuses it,
/// unless it is a first fragment, whose inner source nobody could check.
#[inline(always)]
fn short<T: Tables>(tables: &T, config: &Config, outer: &Ipv4Hdr) -> Verdict {
    if wire::is_fragment(outer)
        && let Some(verdict) = source::refuse(tables, config, Outcome::ForgedFragment)
    {
        return verdict;
    }
    to_kernel(tables, Outcome::KernelMalformed)
}

/// Stands for a peer's id where there is none. (Parts of an `Option` that have
/// no value are registers without one, which verifiers refuse to see copied.)
const NOBODY: u32 = u32::MAX;

/// A packet that is left to the kernel.
struct Left {
    reason: Outcome,
    /// The peer that it is counted for, or [`NOBODY`].
    peer: u32,
    /// Its flow goes through the kernel's device.
    sticky: bool,
}

#[inline(always)]
fn repeat<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    outer: &Ipv4Hdr,
    inner: Option<&Ipv4Hdr>,
    candidate: Result<Segment, Outcome>,
) -> Result<Verdict, Left> {
    let now = tables.now();
    let mut found = match &candidate {
        Ok(segment) => tables.flow(&segment.key(direction::IN)),
        Err(_) => None,
    };
    // A fresh confirmation by this very peer stands for the source check: it was
    // made for the same outer source and the same inner source.
    let checked = found
        .as_deref()
        .filter(|flow| flow::fresh(flow, config, now).is_ok() && flow.peer_ip == outer.src_addr);
    let peer = if let Some(flow) = checked {
        flow.peer_id
    } else {
        match source::verify(tables, config, outer.src_addr, inner.map(|ip| ip.src_addr)) {
            Ok(peer_id) => peer_id,
            Err(forged) => match source::refuse(tables, config, forged) {
                Some(verdict) => return Ok(verdict),
                None => NOBODY,
            },
        }
    };
    let sticky = found.as_deref().is_some_and(|flow| flow.sticky_ns > now);
    let left = |reason| Left { reason, peer, sticky };
    let segment = candidate.map_err(left)?;
    let key = segment.key(direction::IN);
    let mac = frame.load(0).unwrap_or_default();
    let entry = Entry { ifindex: frame.ifindex(), now, peer_ip: outer.src_addr, mac };
    if peer != NOBODY && eager::opens(config, &segment) {
        eager::open(tables, config, &segment, direction::IN, entry);
        found = tables.flow(&key);
    }
    let same_peer = found.as_deref().is_some_and(|flow| flow.peer_ip == outer.src_addr);
    let opened =
        same_peer && found.as_deref().is_some_and(|flow| eager::holds(config, &segment, flow));
    let unchanged = !wire::decap_changes_ecn(outer.tos, segment.tos);
    if let Err(reason) = flow::admit(tables, config, &segment, &key, found.as_deref(), opened) {
        if unchanged && flow::answers(&segment, reason) {
            flow::note(tables, config, &segment, &key, None, entry);
            eager::note_answer(tables, config, &segment, direction::IN, entry);
        }
        return Err(left(reason));
    }
    let reason = 'kernel: {
        let Some(flow) = &found else { break 'kernel Outcome::KernelUnconfirmed };
        let ours = opened && eager::is_for_us_alone(&segment);
        match flow::fresh(flow, config, now) {
            Ok(()) if same_peer => {}
            Ok(()) => break 'kernel Outcome::KernelMoved,
            Err(Outcome::KernelTcpState) if !ours => {
                flow::answer(tables, flow);
                return Err(left(Outcome::KernelTcpState));
            }
            Err(_) if ours && tables.veth(flow.out_ifindex).is_some() => {}
            Err(reason) => break 'kernel reason,
        }
        if !unchanged {
            return Err(left(Outcome::KernelEcn));
        }
        return take(frame, tables, config, &segment, flow, peer, now);
    };
    if unchanged {
        flow::note(tables, config, &segment, &key, found, entry);
    }
    Err(left(reason))
}

/// Takes a packet of a flow that was confirmed or opened.
#[inline(always)]
fn take<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    segment: &Segment,
    flow: &T::FlowRef<'_>,
    peer: u32,
    now: u64,
) -> Result<Verdict, Left> {
    let sticky = flow.sticky_ns > now;
    let left = |reason| Left { reason, peer, sticky };
    if segment.wire_len(frame.gso_size()) > u32::from(flow.max_len) {
        return Err(left(Outcome::KernelTooBig));
    }
    if aggregated(frame, tables, config, flow, now) {
        // `from_overlay` will count it for the peer.
        return Err(Left { reason: Outcome::KernelAggregate, peer: NOBODY, sticky: true });
    }
    decap(frame, tables, segment, flow).map_err(left)
}

/// A packet that the fast path could take, were its flow confirmed.
#[inline(always)]
pub(super) fn candidate<F: Frame>(
    frame: &mut F,
    config: &Config,
    outer: &Ipv4Hdr,
    inner: &Ipv4Hdr,
    l4: usize,
    inner_l3: usize,
) -> Result<Segment, Outcome> {
    if l4 != ETH_LEN + IPV4_LEN {
        return Err(Outcome::KernelOptions);
    }
    if wire::is_fragment(outer) {
        return Err(Outcome::KernelFragment);
    }
    if config.flags & flag::FAST_PATH == 0 {
        return Err(Outcome::KernelUnconfirmed);
    }
    let (destination, source) = macs(frame, inner_l3 - ETH_LEN).ok_or(Outcome::KernelMalformed)?;
    // The kernel's device refuses what says that it comes from nobody, or from
    // the device itself.
    if destination != config.vtep_mac || source == config.vtep_mac || !wire::is_station(source) {
        return Err(Outcome::KernelForeignMac);
    }
    // Traffic to the node itself or beyond it never leaves by a pod's veth.
    if !wire::within(inner.dst_addr, config.subnet, config.subnet_mask) {
        return Err(Outcome::KernelUnconfirmed);
    }
    let l3 = ETH_LEN + ENCAP_LEN;
    let segment = Segment::parse(frame, l3, inner)?;
    // The outer lengths have to agree with the inner one; of an aggregate the
    // inner one was compared with the frame.
    let outer_len = u16::from_be_bytes(outer.tot_len);
    let udp_len = frame.load(l4 + 4).map_or(0, u16::from_be_bytes);
    if outer_len != segment.total_len.wrapping_add(ENCAP_LEN as u16)
        || udp_len != outer_len.wrapping_sub(IPV4_LEN as u16)
        || wire::ipv4_checksum(outer) != outer.check
    {
        return Err(Outcome::KernelMalformed);
    }
    Ok(segment)
}

/// Whether this packet has to go through the kernel device: a GSO aggregate
/// cannot be stripped cleanly by `bpf_skb_adjust_room` (it stays marked as a
/// tunnel's), and what follows one must not overtake it.
#[inline(always)]
fn aggregated<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    config: &Config,
    flow: &T::FlowRef<'_>,
    now: u64,
) -> bool {
    if frame.gso_size() != 0 {
        if config.flags & flag::XDP != 0 {
            wire_xdp::stick(tables, flow, now);
        } else if flow.sticky_ns < now + config.window_ns / 2 {
            tables.edit_flow(flow, |flow| flow.sticky_ns = now + config.window_ns);
        }
        return true;
    }
    flow.sticky_ns > now
}

#[inline(always)]
fn decap<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    segment: &Segment,
    flow: &Flow,
) -> Result<Verdict, Outcome> {
    let header = pod_macs(flow);
    let verdict = hand_over(flow);
    let peer_id = flow.peer_id;
    if !frame.shrink() {
        return Err(Outcome::KernelNoRoom);
    }
    let written = frame.store(0, &header).and_then(|()| segment.forward(frame, ETH_LEN));
    if written.is_none() {
        tables.count(Outcome::DropBroken);
        return Ok(Verdict::Drop);
    }
    tables.count(Outcome::FastDecap);
    tables.count_peer(peer_id, Traffic::RxFast, u32::from(segment.total_len));
    Ok(verdict)
}

/// Ethernet header of the frame that the pod gets.
#[inline(always)]
pub(super) fn pod_macs(flow: &Flow) -> [u8; ETH_LEN] {
    let [d0, d1, d2, d3, d4, d5] = flow.dst_mac;
    let [s0, s1, s2, s3, s4, s5] = flow.src_mac;
    let [t0, t1] = wire::ETHERTYPE_IPV4;
    [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
}

#[inline(always)]
pub(super) fn hand_over(flow: &Flow) -> Verdict {
    let ifindex = flow.out_ifindex;
    if flow.action == action::PEER {
        Verdict::Peer { ifindex }
    } else {
        Verdict::Egress { ifindex }
    }
}

/// TC ingress of `flannel.<VNI>`: packets of flows with GSO aggregates, which
/// `from_underlay` left to the kernel device, go on to the pod from here.
#[inline(always)]
pub fn from_overlay<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    // A wrong inner MAC arrives here too, marked as somebody else's.
    if frame.take_fast() || config.flags & flag::FAST_PATH == 0 || !frame.to_us() {
        return Verdict::Pass;
    }
    let Some(ip) = plain_ipv4(frame) else { return Verdict::Pass };
    let Ok(segment) = Segment::parse(frame, ETH_LEN, &ip) else { return Verdict::Pass };
    let now = tables.now();
    if frame.gso_size() == 0 {
        shortcut::confirm(tables, config, &segment, now);
    }
    let key = segment.key(direction::IN);
    let Some(flow) = tables.flow(&key) else { return Verdict::Pass };
    // The kernel has to see how a connection begins and ends, if it knows it.
    let state = segment.tcp_flags & (wire::TCP_SYN | wire::TCP_FIN | wire::TCP_RST) != 0;
    if segment.ttl <= 1 || (state && !eager::holds(config, &segment, &flow)) {
        return Verdict::Pass;
    }
    if flow.sticky_ns <= now
        || flow::fresh(&flow, config, now).is_err()
        || segment.wire_len(frame.gso_size()) > u32::from(flow.max_len)
    {
        return Verdict::Pass;
    }
    deliver(frame, tables, &segment, &flow, Outcome::FastAggregate)
}

/// Hands a packet that carries no tunnel header (any more) to the pod.
#[inline(always)]
pub(super) fn deliver<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    segment: &Segment,
    flow: &Flow,
    outcome: Outcome,
) -> Verdict {
    let written = segment.forward(frame, ETH_LEN).and_then(|()| frame.store(0, &pod_macs(flow)));
    if written.is_none() {
        tables.count(Outcome::DropBroken);
        return Verdict::Drop;
    }
    tables.count(outcome);
    tables.count_peer(flow.peer_id, Traffic::RxFast, u32::from(segment.total_len));
    hand_over(flow)
}

/// TC egress of the host side of a pod's veth: what comes here, the kernel
/// delivers to the pod. Only looks on.
#[inline(always)]
pub fn to_pod<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    if config.flags & flag::FAST_PATH == 0 {
        return Verdict::Pass;
    }
    let Some(ip) = plain_ipv4(frame) else { return Verdict::Pass };
    if !wire::within(ip.src_addr, config.network, config.netmask)
        || wire::within(ip.src_addr, config.subnet, config.subnet_mask)
    {
        return Verdict::Pass;
    }
    let Ok(segment) = Segment::parse(frame, ETH_LEN, &ip) else { return Verdict::Pass };
    let key = segment.key(direction::IN);
    let now = tables.now();
    if eager::judge(tables, config, &segment, direction::IN, now)
        && let Some(found) = tables.flow(&key)
        && !flow::end(tables, &key, &found)
        && confirm(frame, tables, config, &segment, &key, found, now)
    {
        tables.count(Outcome::ConfirmedIn);
    }
    if let Some(pair) = eager::pair(config, &segment, direction::IN)
        && let Some(found) = tables.flow(&pair)
        && confirm(frame, tables, config, &segment, &pair, found, now)
    {
        tables.count(Outcome::ConfirmedPair);
    }
    Verdict::Pass
}

/// Confirms the flow that was `found` under `key` if this packet, which the
/// kernel delivers to a pod, is the one that was noted there.
#[inline(always)]
fn confirm<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    config: &Config,
    segment: &Segment,
    key: &FlowKey,
    noted: T::FlowRef<'_>,
    now: u64,
) -> bool {
    if noted.state == state::CONFIRMED && noted.out_ifindex != frame.ifindex() {
        // The bridge floods, or the pod moved: one veth is not the answer.
        tables.remove_flow(key);
        return false;
    }
    if !flow::proves(&noted, config, segment, now) {
        return false;
    }
    let Some(veth) = tables.veth(frame.ifindex()) else { return false };
    let Some((dst_mac, src_mac)) = macs(frame, 0) else { return false };
    if wire::is_group(dst_mac) {
        return false;
    }
    let (peer_id, max_len) = if noted.peer_ip == direct::NO_OUTER_SOURCE {
        (tables.subnet(segment.saddr).map(|subnet| subnet.peer_id), u16::MAX)
    } else {
        (tables.peer(noted.peer_ip), config.mtu)
    };
    tables.set_flow(key, Some(noted), state::CONFIRMED, |flow| {
        flow.time_ns = now + config.window_ns;
        flow.out_ifindex = frame.ifindex();
        flow.peer_id = peer_id.unwrap_or(NOBODY);
        flow.action = veth.action;
        flow.max_len = max_len.min(veth.mtu as u16);
        flow.dst_mac = dst_mac;
        flow.src_mac = src_mac;
    });
    true
}
