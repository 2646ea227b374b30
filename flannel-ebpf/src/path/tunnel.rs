//! Tunnel packets as they come in: which of them are ours, and which of those the
//! fast path could take.

use network_types::ip::Ipv4Hdr;

use super::direct::NO_TUNNEL;
use super::segment::{Segment, ipv4_at, macs};
use super::{Frame, Lookups};
use crate::abi::{Config, FlowKey, Outcome, direction, flag};
use crate::wire::{self, ENCAP_LEN, ETH_LEN, IPV4_LEN, UDP_LEN, VXLAN_LEN};

/// First byte of 127.0.0.0/8, which is no destination from outside.
const LOOPBACK_NET: u8 = 127;
/// Where the transport header stands behind an outer header without options.
pub(super) const L4: usize = ETH_LEN + IPV4_LEN;
/// Where the inner Ethernet header stands behind outer headers without options.
pub(super) const INNER_ETH: usize = ENCAP_LEN;
/// Likewise the inner IPv4 header.
pub(super) const INNER_L3: usize = INNER_ETH + ETH_LEN;

/// Where a tunnel packet to this node has its transport header.
#[inline(always)]
pub(super) fn transport<F: Frame, T: Lookups>(
    frame: &mut F,
    tables: &T,
    config: &Config,
    outer: &Ipv4Hdr,
) -> Option<usize> {
    let possible = outer.proto == wire::UDP
        && config.port != NO_TUNNEL
        && !wire::is_later_fragment(outer)
        && outer.vihl >= 0x45
        && outer.vihl <= 0x4f;
    if !possible {
        return None;
    }
    let l4 = ETH_LEN + usize::from(outer.vihl & 0x0f) * 4;
    frame.linearize((l4 + UDP_LEN) as u32);
    // The kernel's socket takes what comes to any address of the node.
    let ours = frame.load::<UDP_LEN>(l4).map(wire::udp)?.dst == config.port
        && (outer.dst_addr == config.local_ip
            || (outer.dst_addr[0] != LOOPBACK_NET && tables.is_local(outer.dst_addr)));
    ours.then_some(l4)
}

/// What stands behind the UDP header of a packet to our port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside {
    /// Less than a first look needs.
    Short,
    /// Another VNI, or a header that the device does not take.
    Foreign,
    /// A packet that is not IPv4.
    Other,
    /// An IPv4 packet.
    Ipv4,
}

/// Looks into the tunnel packet whose transport header stands at `l4`.
#[inline(always)]
pub(super) fn look_inside<F: Frame>(frame: &mut F, config: &Config, l4: usize) -> Inside {
    let inner_eth = l4 + UDP_LEN + VXLAN_LEN;
    let inner_l3 = inner_eth + ETH_LEN;
    frame.linearize((inner_l3 + IPV4_LEN) as u32);
    let Some(vxlan) = frame.load::<VXLAN_LEN>(l4 + UDP_LEN) else { return Inside::Short };
    if !wire::is_vni(vxlan, config.vni) {
        return Inside::Foreign;
    }
    let Some(ethertype) = frame.load::<2>(inner_eth + 12) else { return Inside::Short };
    if ethertype == wire::ETHERTYPE_IPV4 { Inside::Ipv4 } else { Inside::Other }
}

/// The inner IPv4 header of such a packet.
#[inline(always)]
pub(super) fn inner<F: Frame>(frame: &F, l4: usize) -> Option<Ipv4Hdr> {
    ipv4_at(frame, l4 + UDP_LEN + VXLAN_LEN + ETH_LEN)
}

/// A packet that the fast path could take, were its flow confirmed.
///
/// # Errors
/// The reason why the kernel carries it.
#[inline(always)]
pub(super) fn candidate<F: Frame>(
    frame: &mut F,
    config: &Config,
    outer: &Ipv4Hdr,
    inner: &Ipv4Hdr,
    l4: usize,
) -> Result<Segment, Outcome> {
    if l4 != L4 {
        return Err(Outcome::KernelOptions);
    }
    if wire::is_fragment(outer) {
        return Err(Outcome::KernelFragment);
    }
    if config.flags & flag::FAST_PATH == 0 {
        return Err(Outcome::KernelUnconfirmed);
    }
    let (destination, source) = macs(frame, INNER_ETH).ok_or(Outcome::KernelMalformed)?;
    // The kernel's device refuses what says that it comes from nobody, or from
    // the device itself.
    if destination != config.vtep_mac || source == config.vtep_mac || !wire::is_station(source) {
        return Err(Outcome::KernelForeignMac);
    }
    let segment = Segment::parse(frame, INNER_L3, inner)?;
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

/// Key of the tunnel from a peer's underlay address.
#[inline(always)]
pub(super) fn key(config: &Config, peer_ip: [u8; 4]) -> FlowKey {
    let tuple = crate::abi::Tuple4 {
        saddr: peer_ip,
        daddr: config.local_ip,
        sport: [0; 2],
        dport: config.port,
    };
    FlowKey { tuple, proto: wire::UDP, direction: direction::TUNNEL, reserved: [0; 2] }
}
