//! Into the tunnel: outer headers, and the way that they leave by.

use super::segment::Segment;
use super::{NextHop, Skb, Tables, Traffic, Trip, Verdict, Way, treatment};
use crate::abi::{Config, Flow, Outcome, Subnet, flag};
use crate::wire::{self, ENCAP_LEN, ETH_LEN, Outer};

/// Carries a packet of a confirmed flow.
///
/// # Errors
/// The reason why the kernel carries it; it is as it was.
#[inline(always)]
pub(super) fn carry<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    segment: &Segment,
    flow: &Flow,
) -> Result<Verdict, Outcome> {
    let next_hop = NextHop { family: flow.next_hop_family, address: flow.next_hop };
    let verdict = Verdict::NextHop { ifindex: flow.out_ifindex, next_hop };
    let peer_id = flow.peer_id;
    let to = End { address: flow.peer_ip, mac: flow.dst_mac, mark: flow.treatment.mark };
    let written = wrap(frame, tables, config, segment, &to)?
        .and_then(|()| treatment::repeat(frame, segment, &flow.treatment, ETH_LEN + ENCAP_LEN));
    if written.is_none() {
        tables.count(Outcome::DropBroken);
        return Ok(Verdict::Drop);
    }
    tables.count(Outcome::FastEncap);
    tables.count_peer(peer_id, Traffic::TxFast, u32::from(segment.total_len));
    Ok(verdict)
}

/// The other end of a tunnel.
pub(super) struct End {
    /// The peer's underlay address.
    pub(super) address: [u8; 4],
    /// MAC of its VTEP.
    pub(super) mac: [u8; 6],
    /// Mark of the packet, which VXLAN-GBP carries.
    pub(super) mark: u32,
}

/// Puts the outer headers in front of a packet. `None`: it is broken.
///
/// # Errors
/// The reason why the kernel carries it; it is as it was.
#[inline(always)]
pub(super) fn wrap<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    segment: &Segment,
    to: &End,
) -> Result<Option<()>, Outcome> {
    // An aggregate so large that the outer length would not fit is left alone.
    if segment.total_len > u16::MAX - ENCAP_LEN as u16 {
        return Err(Outcome::KernelTooBig);
    }
    if segment.is_padded(frame, ETH_LEN) {
        frame.trim(ETH_LEN as u32 + u32::from(segment.total_len)).ok_or(Outcome::KernelNoRoom)?;
    }
    let hash = frame.hash();
    let headers = wire::encap_headers(&Outer {
        source: config.local_ip,
        destination: to.address,
        source_port: wire::source_port(hash, config.sport_min, config.sport_max),
        port: config.port,
        vni: config.vni,
        id: tables.random() as u16,
        ttl: wire::OUTER_TTL.wrapping_add(config.ttl_above_64),
        inner_tos: segment.tos,
        inner_len: segment.total_len,
        vtep_dst: to.mac,
        vtep_src: config.vtep_mac,
        gbp: if config.flags & flag::GBP == 0 { 0 } else { to.mark },
    });
    if !frame.grow() {
        return Err(Outcome::KernelNoRoom);
    }
    Ok(frame.store(ETH_LEN, &headers))
}

/// Where the kernel would send the tunnel packet that is made of `frame`, which
/// has `mark` then.
#[inline(always)]
pub(super) fn way<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    segment: &Segment,
    subnet: &Subnet,
    mark: u32,
) -> Option<Way> {
    if mark != 0 && config.flags & flag::MARKED_ROUTES != 0 {
        return None;
    }
    let sport = wire::source_port(frame.hash(), config.sport_min, config.sport_max);
    let len = segment.wire_len(frame.gso_size()) as u16;
    let len = len.saturating_add(ENCAP_LEN as u16);
    let way = tables.way(&Trip {
        source: config.local_ip,
        destination: subnet.public_ip,
        proto: wire::UDP,
        sport: sport.to_be_bytes(),
        dport: config.port,
        len,
        vrf: config.underlay_vrf,
    })?;
    let mtu = way.mtu.min(subnet.largest());
    (len <= mtu).then_some(Way { mtu, ..way })
}
