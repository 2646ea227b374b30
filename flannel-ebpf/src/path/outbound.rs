//! Pod -> peer: entry at the pod's veth, exit at `flannel.<VNI>`.

use super::flow::{self, Entry};
use super::segment::{Segment, macs, plain_ipv4};
use super::{Frame, Tables, Traffic, Trip, Verdict, direct, eager, shortcut, source, to_kernel};
use crate::abi::{
    Config, Flow, FlowKey, Outcome, Subnet, action, direction, flag, state, subnet_flag,
};
use crate::wire::{self, ENCAP_LEN, ETH_LEN, Outer};

/// TC ingress of the host side of a pod's veth.
#[inline(always)]
pub fn from_pod<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    let Some(ip) = plain_ipv4(frame) else { return Verdict::Pass };
    if source::aims_at_tunnel(tables, config, frame, &ip)
        && let Some(verdict) = source::refuse(tables, config, Outcome::ForgedByPod)
    {
        return verdict;
    }
    if !wire::within(ip.dst_addr, config.network, config.netmask) {
        return Verdict::Pass;
    }
    // Pods of one node meet on its bridge.
    if wire::within(ip.dst_addr, config.subnet, config.subnet_mask) {
        return Verdict::Pass;
    }
    if config.flags & flag::FAST_PATH == 0 {
        return Verdict::Pass;
    }
    tables.count(Outcome::SeenFromPod);
    match repeat(frame, tables, config, &ip) {
        Ok(verdict) => verdict,
        Err(reason) => to_kernel(tables, reason),
    }
}

#[inline(always)]
fn repeat<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    ip: &network_types::ip::Ipv4Hdr,
) -> Result<Verdict, Outcome> {
    let segment = Segment::parse(frame, ETH_LEN, ip)?;
    let key = segment.key(direction::OUT);
    let (mac, source) = macs(frame, 0).ok_or(Outcome::KernelMalformed)?;
    // A bridge takes no frame that comes from nobody.
    if !wire::is_station(source) {
        return Err(Outcome::KernelForeignMac);
    }
    let now = tables.now();
    let entry = Entry { ifindex: frame.ifindex(), now, peer_ip: [0; 4], mac };
    if eager::opens(config, &segment) {
        eager::open(tables, config, &segment, direction::OUT, entry);
    }
    let found = tables.flow(&key);
    let opened = found.as_deref().is_some_and(|flow| eager::holds(config, &segment, flow));
    if let Err(reason) = flow::admit(tables, config, &segment, &key, found.as_deref(), opened) {
        if flow::answers(&segment, reason) {
            flow::note(tables, config, &segment, &key, None, entry);
            eager::note_answer(tables, config, &segment, direction::OUT, entry);
        }
        return Err(reason);
    }
    let unconfirmed = match &found {
        Some(flow) => match flow::fresh(flow, config, now) {
            Ok(()) if flow.entry_ifindex != frame.ifindex() || flow.entry_mac != mac => {
                return Err(Outcome::KernelMoved);
            }
            Ok(()) if segment.wire_len(frame.gso_size()) > u32::from(flow.max_len) => {
                return Err(Outcome::KernelTooBig);
            }
            Ok(()) if flow.action == action::ROUTE => {
                return Ok(direct::depart(frame, tables, &segment, flow));
            }
            Ok(()) => return encap(frame, tables, config, &segment, flow),
            Err(reason) if opened && eager::is_for_us_alone(&segment) => {
                return finish(frame, tables, config, &segment, reason);
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

/// Sends the end of a connection that the kernel does not know, and whose
/// window is over, where its route leads now.
#[inline(always)]
fn finish<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    segment: &Segment,
    reason: Outcome,
) -> Result<Verdict, Outcome> {
    let subnet = tables.subnet(segment.daddr).ok_or(reason)?;
    if subnet.flags & subnet_flag::DIRECT != 0
        || segment.wire_len(frame.gso_size()) > u32::from(config.mtu)
    {
        return Err(reason);
    }
    let next_hop = next_hop(frame, tables, config, &subnet).ok_or(reason)?;
    let flow = Flow {
        out_ifindex: config.underlay_ifindex,
        peer_id: subnet.peer_id,
        peer_ip: subnet.public_ip,
        next_hop,
        dst_mac: subnet.vtep_mac,
        ..Flow::default()
    };
    encap(frame, tables, config, segment, &flow)
}

#[inline(always)]
fn encap<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    segment: &Segment,
    flow: &Flow,
) -> Result<Verdict, Outcome> {
    let verdict = Verdict::NextHop { ifindex: flow.out_ifindex, next_hop: flow.next_hop };
    let peer_id = flow.peer_id;
    let written = wrap(frame, tables, config, segment, flow.peer_ip, flow.dst_mac)?
        .and_then(|()| segment.forward(frame, ETH_LEN + ENCAP_LEN));
    if written.is_none() {
        tables.count(Outcome::DropBroken);
        return Ok(Verdict::Drop);
    }
    tables.count(Outcome::FastEncap);
    tables.count_peer(peer_id, Traffic::TxFast, u32::from(segment.total_len));
    Ok(verdict)
}

/// Puts the outer headers in front of a packet. `None`: it is broken.
///
/// # Errors
/// The reason why it is the kernel's; it is as it was.
#[inline(always)]
pub(super) fn wrap<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    segment: &Segment,
    peer_ip: [u8; 4],
    vtep_mac: [u8; 6],
) -> Result<Option<()>, Outcome> {
    // An aggregate so large that the outer length would not fit is left alone.
    if segment.total_len > u16::MAX - ENCAP_LEN as u16 {
        return Err(Outcome::KernelTooBig);
    }
    let hash = frame.hash();
    let headers = wire::encap_headers(&Outer {
        source: config.local_ip,
        destination: peer_ip,
        source_port: wire::source_port(hash, config.sport_min, config.sport_max),
        port: config.port,
        vni: config.vni,
        id: tables.random() as u16,
        inner_tos: segment.tos,
        inner_len: segment.total_len,
        vtep_dst: vtep_mac,
        vtep_src: config.vtep_mac,
    });
    if !frame.grow() {
        return Err(Outcome::KernelNoRoom);
    }
    Ok(frame.store(ETH_LEN, &headers))
}

/// TC egress of `flannel.<VNI>`: what comes here, the kernel has routed to a
/// peer. Confirms its flow, and carries it past the kernel's device.
#[inline(always)]
pub fn to_overlay<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    let Some(ip) = plain_ipv4(frame) else { return Verdict::Pass };
    let Some(subnet) = tables.subnet(ip.dst_addr) else { return Verdict::Pass };
    tables.count_peer(subnet.peer_id, Traffic::TxKernel, frame.len().wrapping_sub(ETH_LEN as u32));
    if config.flags & flag::FAST_PATH == 0 {
        return Verdict::Pass;
    }
    // The device writes the mark into the VXLAN header; our header has no place
    // for it.
    if config.flags & flag::GBP != 0 && frame.mark() != 0 {
        return Verdict::Pass;
    }
    let Ok(segment) = Segment::parse(frame, ETH_LEN, &ip) else { return Verdict::Pass };
    // The kernel's choice of VTEP has to be the one that we would make.
    if macs(frame, 0) != Some((subnet.vtep_mac, config.vtep_mac)) {
        return Verdict::Pass;
    }
    let now = tables.now();
    let key = segment.key(direction::OUT);
    let judged = eager::judge(tables, config, &segment, direction::OUT, now);
    let found = if judged { tables.flow(&key) } else { None };
    let known = found.as_deref().and_then(|flow| known_hop(flow, config, &subnet, now));
    let Some(next_hop) = known.or_else(|| next_hop(frame, tables, config, &subnet)) else {
        tables.count(Outcome::UnresolvedNextHop);
        return Verdict::Pass;
    };
    let path = Path::tunnel(config, &subnet, next_hop);
    if let Some(found) = found
        && !flow::end(tables, &key, &found)
        && flow::proves(&found, config, &segment, now)
    {
        path.confirm(tables, config, &key, found, now);
        tables.count(Outcome::ConfirmedOut);
    }
    if let Some(pair) = eager::pair(config, &segment, direction::OUT)
        && let Some(found) = tables.flow(&pair)
        && flow::proves(&found, config, &segment, now)
    {
        path.confirm(tables, config, &pair, found, now);
        tables.count(Outcome::ConfirmedPair);
    }
    shortcut::encap(frame, tables, config, &segment, &subnet, next_hop)
}

/// The next hop that a confirmed flow to this peer goes by.
#[inline(always)]
fn known_hop(flow: &Flow, config: &Config, subnet: &Subnet, now: u64) -> Option<[u8; 4]> {
    let same = flow.action == action::ENCAP && flow.peer_ip == subnet.public_ip;
    (same && flow::stands(flow, config, now).is_ok()).then_some(flow.next_hop)
}

/// Next hop of the tunnel packet that is made of `frame`.
#[inline(always)]
fn next_hop<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    subnet: &Subnet,
) -> Option<[u8; 4]> {
    let sport = wire::source_port(frame.hash(), config.sport_min, config.sport_max);
    let trip = Trip {
        source: config.local_ip,
        destination: subnet.public_ip,
        proto: wire::UDP,
        sport: sport.to_be_bytes(),
        dport: config.port,
        len: config.mtu.saturating_add(ENCAP_LEN as u16),
    };
    tables.next_hop(config, &trip)
}

/// How a flow leaves the node.
pub(super) struct Path {
    /// [`action`].
    pub(super) action: u8,
    /// Largest IP packet in bytes.
    pub(super) max_len: u16,
    pub(super) peer_id: u32,
    pub(super) peer_ip: [u8; 4],
    pub(super) next_hop: [u8; 4],
    pub(super) vtep_mac: [u8; 6],
}

impl Path {
    #[inline(always)]
    fn tunnel(config: &Config, subnet: &Subnet, next_hop: [u8; 4]) -> Self {
        Self {
            action: action::ENCAP,
            max_len: config.mtu,
            peer_id: subnet.peer_id,
            peer_ip: subnet.public_ip,
            next_hop,
            vtep_mac: subnet.vtep_mac,
        }
    }

    /// Confirms a flow that was noted.
    #[inline(always)]
    pub(super) fn confirm<T: Tables>(
        &self,
        tables: &T,
        config: &Config,
        key: &FlowKey,
        noted: T::FlowRef<'_>,
        now: u64,
    ) {
        tables.set_flow(key, Some(noted), state::CONFIRMED, |flow| {
            flow.time_ns = now + config.window_ns;
            flow.out_ifindex = config.underlay_ifindex;
            flow.peer_id = self.peer_id;
            flow.peer_ip = self.peer_ip;
            flow.next_hop = self.next_hop;
            flow.action = self.action;
            flow.max_len = self.max_len;
            flow.dst_mac = self.vtep_mac;
        });
    }
}
