//! Links and their addresses, as choosing an underlay and finding veths needs them.

use std::collections::HashMap;

use flannel_core::link::{Link, LinkAddress};
use ipnetwork::Ipv4Network;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};

use super::device;

/// Joins the answers of a link dump and an IPv4 address dump.
pub(super) fn join(links: &[RouteNetlinkMessage], addresses: &[RouteNetlinkMessage]) -> Vec<Link> {
    let mut by_link: HashMap<u32, Vec<LinkAddress>> = HashMap::new();
    for (ifindex, found) in addresses.iter().filter_map(address) {
        by_link.entry(ifindex).or_default().push(found);
    }
    links
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) => with_addresses(message, &mut by_link),
            _ => None,
        })
        .collect()
}

fn with_addresses(
    message: &LinkMessage,
    addresses: &mut HashMap<u32, Vec<LinkAddress>>,
) -> Option<Link> {
    let link = link(message)?;
    Some(Link { addresses: addresses.remove(&link.ifindex).unwrap_or_default(), ..link })
}

/// A link without its addresses.
pub(super) fn link(message: &LinkMessage) -> Option<Link> {
    let header = &message.header;
    let mut link = Link {
        ifindex: header.index,
        name: device::name(message)?.to_owned(),
        mac: device::mac(message),
        mtu: device::mtu(message),
        up: header.flags.contains(LinkFlags::Up),
        carrier: header.flags.contains(LinkFlags::LowerUp),
        ethernet: header.link_layer_type == LinkLayerType::Ether,
        loopback: header.flags.contains(LinkFlags::Loopback),
        kind: device::kind(message).map(ToString::to_string).unwrap_or_default(),
        master: None,
        lower: None,
        lower_netns: None,
        bridge: device::bridge(message),
        qdisc: String::new(),
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Link(lower) => link.lower = Some(*lower),
            LinkAttribute::LinkNetNsId(id) => link.lower_netns = Some(*id),
            LinkAttribute::Qdisc(qdisc) => link.qdisc.clone_from(qdisc),
            _ => {}
        }
    }
    Some(link)
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
