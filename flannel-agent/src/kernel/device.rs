//! The VXLAN device: its creation, its attributes as read back, and who is in
//! its way.

use std::net::Ipv4Addr;

use flannel_core::desired::Device;
use flannel_core::mac::MacAddr;
use flannel_core::observed::{ObservedDevice, ObservedVxlan};
use rtnetlink::LinkVxlan;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoPortKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    VxlanDf,
};

/// Ageing of learned FDB entries in seconds (the kernel's default, which
/// flannel leaves).
const AGEING: u32 = 300;

/// The device as flannel makes it: `vxlan id VNI local IP dev IF srcport 0 0
/// dstport PORT nolearning ttl auto ageing 300 udpcsum`, with MAC and MTU from
/// the first moment, so that udev finds no reason to choose another MAC.
pub(super) fn creation(want: &Device) -> LinkMessage {
    let mut builder = LinkVxlan::new(&want.name, want.vni)
        .dev(want.underlay)
        .local(want.local)
        .port(want.port)
        .port_range(0, 0)
        .learning(want.learning)
        .ageing(AGEING)
        .ttl(0)
        .udp_csum(true)
        .address(want.mac.0.to_vec())
        .mtu(want.mtu);
    if want.gbp {
        builder = builder.gbp();
    }
    builder.build()
}

/// The device as it is; addresses are added by the caller.
pub(super) fn observed(message: &LinkMessage) -> ObservedDevice {
    ObservedDevice {
        ifindex: message.header.index,
        vxlan: vxlan(message),
        mac: mac(message).unwrap_or_default(),
        mtu: mtu(message),
        up: message.header.flags.contains(LinkFlags::Up),
        proto_down: message
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, LinkAttribute::ProtoDown(1..))),
        bridge_port: infos(message)
            .any(|info| matches!(info, LinkInfo::PortKind(InfoPortKind::Bridge))),
        addresses: Default::default(),
        unrouted: Default::default(),
        checksum: None,
    }
}

pub(super) fn name(message: &LinkMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

pub(super) fn mac(message: &LinkMessage) -> Option<MacAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(MacAddr),
        _ => None,
    })
}

/// Whether this is the device that we want, made in this network namespace and moved
/// to another.
pub(super) fn is_moved(message: &LinkMessage, want: &Device) -> bool {
    let made_elsewhere =
        |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkNetNsId(_));
    message.attributes.iter().any(made_elsewhere)
        && mac(message) == Some(want.mac)
        && vxlan(message).is_some_and(|vxlan| (vxlan.vni, vxlan.port) == (want.vni, want.port))
}

pub(super) fn mtu(message: &LinkMessage) -> u32 {
    let mtu = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or(0)
}

pub(super) fn kind(message: &LinkMessage) -> Option<&InfoKind> {
    infos(message).find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

fn infos(message: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })
        .flatten()
}

/// VXLAN attributes, if it is a VXLAN device.
pub(super) fn vxlan(message: &LinkMessage) -> Option<ObservedVxlan> {
    if kind(message) != Some(&InfoKind::Vxlan) {
        return None;
    }
    let known = |ip: &Ipv4Addr| Some(*ip).filter(|ip| !ip.is_unspecified());
    let mut vxlan = ObservedVxlan::default();
    let data = infos(message).filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    });
    for attribute in data.flatten() {
        match attribute {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(local) => vxlan.local = known(local),
            InfoVxlan::Group(remote) => vxlan.remote = known(remote),
            InfoVxlan::Link(underlay) => vxlan.underlay = *underlay,
            InfoVxlan::Gbp => vxlan.gbp = true,
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            InfoVxlan::Ttl(ttl) => vxlan.ttl = *ttl,
            InfoVxlan::Df(df) => vxlan.df = *df != VxlanDf::Unset,
            _ => {}
        }
    }
    Some(vxlan)
}

/// The other VXLAN device that keeps ours from being created or set up: one
/// with our VNI and port, or (for the UDP socket) one with our port.
pub(super) fn in_the_way<'a>(
    links: &'a [LinkMessage],
    own: &str,
    vni: u32,
    port: u16,
) -> Option<(&'a str, ObservedVxlan)> {
    let others = || {
        links
            .iter()
            .filter_map(|link| Some((name(link)?, vxlan(link)?)))
            .filter(|(name, vxlan)| *name != own && vxlan.port == port)
    };
    others().find(|(_, vxlan)| vxlan.vni == vni).or_else(|| others().next())
}
