//! Links and their addresses, as choosing an underlay and finding veths needs them.
//!
//! Links are read as they stand on the wire: all of them are whenever one changes, a node
//! may have hundreds of pods, and few attributes of each are of interest.

use std::collections::HashMap;

use flannel_core::link::{Bridge, Link, LinkAddress};
use flannel_core::mac::MacAddr;
use ipnetwork::Ipv4Network;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};

use super::raw;

pub(super) const RTM_GETLINK: u16 = 18;
/// Length of `struct ifinfomsg`.
pub(super) const IFINFO_LEN: usize = 16;
pub(super) const IFLA_LINK: u16 = 5;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_EXT_MASK: u16 = 29;
pub(super) const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_QDISC: u16 = 6;
const IFLA_MASTER: u16 = 10;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
/// RTEXT_FILTER_SKIP_STATS.
const SKIP_STATS: u32 = 1 << 3;
const ARPHRD_ETHER: u16 = 1;

/// A `struct ifinfomsg` that names an interface, or none (0).
pub(super) fn ifinfo(ifindex: u32) -> Vec<u8> {
    let mut body = vec![0; IFINFO_LEN];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body
}

/// Asks for a link, or all (0), without counters: collecting them is dear.
pub(super) fn question(ifindex: u32) -> Vec<u8> {
    let mut body = ifinfo(ifindex);
    raw::put(&mut body, IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
    body
}

/// Gives each link its addresses.
pub(super) fn join(mut links: Vec<Link>, addresses: Vec<(u32, LinkAddress)>) -> Vec<Link> {
    let mut by_link: HashMap<u32, Vec<LinkAddress>> = HashMap::new();
    for (ifindex, found) in addresses {
        by_link.entry(ifindex).or_default().push(found);
    }
    for link in &mut links {
        link.addresses = by_link.remove(&link.ifindex).unwrap_or_default();
    }
    links
}

/// A link without its addresses, of a message without its header. `None` if it has no name.
pub(super) fn link(body: &[u8]) -> Option<Link> {
    let attributes = body.get(IFINFO_LEN..)?;
    let flags = raw::number(body, 8)?;
    let has = |flag: i32| flags & flag as u32 != 0;
    let mut link = Link {
        ifindex: raw::number(body, 4)?,
        up: has(libc::IFF_UP),
        carrier: has(libc::IFF_LOWER_UP),
        loopback: has(libc::IFF_LOOPBACK),
        ethernet: raw::short(body, 2)? == ARPHRD_ETHER,
        ..Link::default()
    };
    for (kind, value) in raw::attributes(attributes) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(MacAddr),
            IFLA_IFNAME => link.name = raw::text(value),
            IFLA_MTU => link.mtu = raw::number(value, 0)?,
            IFLA_LINK => link.lower = raw::number(value, 0),
            IFLA_QDISC => link.qdisc = raw::text(value),
            IFLA_MASTER => link.master = raw::number(value, 0),
            IFLA_LINK_NETNSID => link.lower_netns = raw::number(value, 0).map(|id| id as i32),
            IFLA_LINKINFO => link.kind = kind_of(value).unwrap_or_default(),
            _ => {}
        }
        if kind == IFLA_LINKINFO && link.kind == "bridge" {
            link.bridge = Some(bridge(value));
        }
    }
    Some(link).filter(|link| !link.name.is_empty())
}

/// Kind of a device, by its IFLA_LINKINFO.
pub(super) fn kind_of(info: &[u8]) -> Option<String> {
    raw::attribute(info, IFLA_INFO_KIND).map(raw::text)
}

/// How a bridge forwards, by its IFLA_LINKINFO.
fn bridge(info: &[u8]) -> Bridge {
    let data = raw::attribute(info, IFLA_INFO_DATA).unwrap_or_default();
    let is_on = |kind| {
        raw::attribute(data, kind).and_then(|value| value.first()).is_some_and(|on| *on != 0)
    };
    let pvid = raw::attribute(data, IFLA_BR_VLAN_DEFAULT_PVID).and_then(|id| raw::short(id, 0));
    Bridge {
        vlan_filtering: is_on(IFLA_BR_VLAN_FILTERING),
        default_pvid: pvid.unwrap_or_default(),
        calls_iptables: is_on(IFLA_BR_NF_CALL_IPTABLES),
    }
}

/// Interface index and IPv4 address of an address message.
pub(super) fn address(message: &RouteNetlinkMessage) -> Option<(u32, LinkAddress)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let network = network(message)?;
    let header = u32::from(message.header.flags.bits());
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(flags.bits()),
        _ => None,
    });
    let flags = AddressFlags::from_bits_retain(flags.unwrap_or(header));
    let found = LinkAddress {
        network,
        permanent: flags.contains(AddressFlags::Permanent)
            || message.header.flags.contains(AddressHeaderFlags::Permanent),
        deprecated: flags.contains(AddressFlags::Deprecated),
        global: message.header.scope == AddressScope::Universe,
    };
    Some((message.header.index, found))
}

/// IFA_LOCAL is the address itself; IFA_ADDRESS the peer's on point-to-point links.
fn network(message: &AddressMessage) -> Option<Ipv4Network> {
    let v4 = |ip: &std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => Some(*ip),
        std::net::IpAddr::V6(_) => None,
    };
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if local => v4(ip),
            AddressAttribute::Address(ip) if !local => v4(ip),
            _ => None,
        })
    };
    Ipv4Network::new(find(true).or_else(|| find(false))?, message.header.prefix_len).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(flags: i32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = ifinfo(7);
        body[2..4].copy_from_slice(&ARPHRD_ETHER.to_ne_bytes());
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        for (kind, value) in attributes {
            raw::put(&mut body, *kind, value);
        }
        body
    }

    #[test]
    fn a_pods_veth_is_read_whole() {
        let mut info = Vec::new();
        raw::put(&mut info, IFLA_INFO_KIND, b"veth\0");
        let body = message(
            libc::IFF_UP | libc::IFF_LOWER_UP,
            &[
                (IFLA_IFNAME, b"veth1\0"),
                (IFLA_MTU, &1450_u32.to_ne_bytes()),
                (IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
                (IFLA_LINK, &9_u32.to_ne_bytes()),
                (IFLA_MASTER, &3_u32.to_ne_bytes()),
                (IFLA_QDISC, b"noqueue\0"),
                (IFLA_LINK_NETNSID, &4_i32.to_ne_bytes()),
                (IFLA_LINKINFO | 0x8000, &info),
            ],
        );
        let expected = Link {
            ifindex: 7,
            name: "veth1".to_owned(),
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            mtu: 1450,
            up: true,
            carrier: true,
            ethernet: true,
            kind: "veth".to_owned(),
            master: Some(3),
            lower: Some(9),
            lower_netns: Some(4),
            qdisc: "noqueue".to_owned(),
            ..Link::default()
        };
        assert_eq!(link(&body), Some(expected));
    }

    #[test]
    fn a_bridge_tells_how_it_forwards() {
        let (mut data, mut info) = (Vec::new(), Vec::new());
        raw::put(&mut data, IFLA_BR_VLAN_FILTERING, &[1]);
        raw::put(&mut data, IFLA_BR_NF_CALL_IPTABLES, &[0]);
        raw::put(&mut data, IFLA_BR_VLAN_DEFAULT_PVID, &12_u16.to_ne_bytes());
        raw::put(&mut info, IFLA_INFO_KIND, b"bridge\0");
        raw::put(&mut info, IFLA_INFO_DATA, &data);
        let body = message(0, &[(IFLA_IFNAME, b"cni0\0"), (IFLA_LINKINFO, &info)]);
        let expected = Bridge { vlan_filtering: true, default_pvid: 12, calls_iptables: false };
        assert_eq!(link(&body).and_then(|link| link.bridge), Some(expected));
    }

    #[test]
    fn what_is_cut_off_is_no_link() {
        let body = message(0, &[(IFLA_IFNAME, b"veth1\0"), (IFLA_MTU, &[1, 2])]);
        assert!(
            (0..=body.len()).all(|length| link(&body[..length]).is_none_or(|link| link.mtu == 0))
        );
        assert_eq!(link(&message(0, &[])), None, "no name");
    }
}
