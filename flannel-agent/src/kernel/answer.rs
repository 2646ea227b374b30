//! What rtnetlink's answers say, as far as it is of our kind. Pure.

use std::net::Ipv4Addr;

use flannel_core::link::RouteTo;
use flannel_core::mac::MacAddr;
use flannel_core::observed::{DirectRoute, ObservedRoute};
use ipnetwork::Ipv4Network;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType,
};

use super::message::LOCAL_TABLE;

/// NUD_PERMANENT.
const PERMANENT: u16 = 0x80;

/// A permanent neighbour entry of an interface.
pub(super) fn neighbour(
    ifindex: u32,
    message: &RouteNetlinkMessage,
) -> Option<(Ipv4Addr, MacAddr)> {
    let (mac, ip) = permanent(ifindex, message)?;
    Some((ip, mac))
}

/// An FDB entry of our kind: of the device itself, unicast, to an IPv4
/// address. One with a port, VNI or interface of its own leads elsewhere: it
/// does not count as there, and is left to whoever made it.
pub(super) fn fdb_entry(
    ifindex: u32,
    message: &RouteNetlinkMessage,
) -> Option<(MacAddr, Ipv4Addr)> {
    let RouteNetlinkMessage::NewNeighbour(entry) = message else { return None };
    let elsewhere = entry.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            NeighbourAttribute::Port(_)
                | NeighbourAttribute::Vni(_)
                | NeighbourAttribute::IfIndex(_)
        )
    });
    if elsewhere || !entry.header.flags.contains(NeighbourFlags::Own) {
        return None;
    }
    permanent(ifindex, message).filter(|(mac, _)| mac.is_unicast())
}

/// NUD_INCOMPLETE, NUD_FAILED and NUD_NOARP: there is no MAC to send to.
const UNRESOLVED: u16 = 0x01 | 0x20 | 0x40;

/// A neighbour of an interface whose MAC is known.
pub(super) fn resolved(ifindex: u32, message: &RouteNetlinkMessage) -> Option<(Ipv4Addr, MacAddr)> {
    let RouteNetlinkMessage::NewNeighbour(entry) = message else { return None };
    if entry.header.ifindex != ifindex || u16::from(entry.header.state) & UNRESOLVED != 0 {
        return None;
    }
    let (mac, ip) = mac_and_ip(&entry.attributes);
    Some((ip?, mac?))
}

/// NUD_INCOMPLETE and NUD_FAILED.
const UNANSWERED: u16 = 0x01 | 0x20;

/// A neighbour of an interface that was asked for its MAC and has not told it.
pub(super) fn unresolved(ifindex: u32, message: &RouteNetlinkMessage) -> Option<Ipv4Addr> {
    let RouteNetlinkMessage::NewNeighbour(entry) = message else { return None };
    let asked = u16::from(entry.header.state) & UNANSWERED != 0;
    let (_, ip) = mac_and_ip(&entry.attributes);
    ip.filter(|_| asked && entry.header.ifindex == ifindex)
}

/// The port of this bridge, if the entry says that the MAC is behind it.
pub(super) fn bridge_port(bridge: u32, mac: MacAddr, message: &RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewNeighbour(entry) = message else { return None };
    let of_bridge = entry
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, NeighbourAttribute::Controller(of) if *of == bridge));
    let (found, _) = mac_and_ip(&entry.attributes);
    (of_bridge && found == Some(mac)).then_some(entry.header.ifindex)
}

fn permanent(ifindex: u32, message: &RouteNetlinkMessage) -> Option<(MacAddr, Ipv4Addr)> {
    let RouteNetlinkMessage::NewNeighbour(entry) = message else { return None };
    if entry.header.ifindex != ifindex || u16::from(entry.header.state) & PERMANENT == 0 {
        return None;
    }
    let (mac, ip) = mac_and_ip(&entry.attributes);
    Some((mac?, ip?))
}

fn mac_and_ip(attributes: &[NeighbourAttribute]) -> (Option<MacAddr>, Option<Ipv4Addr>) {
    let mac = attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    let ip = attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(*ip),
        // In FDB entries the family is AF_BRIDGE, so the library cannot know.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
            <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from)
        }
        _ => None,
    });
    (mac.map(MacAddr), ip)
}

pub(super) fn route(ifindex: u32, message: &RouteNetlinkMessage) -> Option<ObservedRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    route_through(ifindex, message)
}

/// An address that the local table takes for the node's, by way of this device.
pub(super) fn local(ifindex: u32, message: &RouteNetlinkMessage) -> Option<Ipv4Addr> {
    let RouteNetlinkMessage::NewRoute(route) = message else { return None };
    let whole = route.header.kind == RouteType::Local
        && route.header.destination_prefix_length == 32
        && table(route) == LOCAL_TABLE
        && output(route) == Some(ifindex);
    whole.then_some(())?;
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(*ip),
        _ => None,
    })
}

/// A route of the local table to this one address, whatever it does.
pub(super) fn is_local_to(ip: Ipv4Addr, message: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRoute(route) = message else { return false };
    let wanted = RouteAttribute::Destination(RouteAddress::Inet(ip));
    route.header.destination_prefix_length == 32
        && route.header.tos == 0
        && table(route) == LOCAL_TABLE
        && route.attributes.contains(&wanted)
}

/// A unicast route of the main table, if it leads out of this device.
pub(super) fn route_through(ifindex: u32, message: &RouteMessage) -> Option<ObservedRoute> {
    if message.header.kind != RouteType::Unicast
        || message.header.tos != 0
        || table(message) != u32::from(RouteHeader::RT_TABLE_MAIN)
        || output(message) != Some(ifindex)
    {
        return None;
    }
    let network = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(*ip),
        _ => None,
    });
    let prefix = message.header.destination_prefix_length;
    Some(ObservedRoute {
        destination: Ipv4Network::new(network.unwrap_or(Ipv4Addr::UNSPECIFIED), prefix).ok()?,
        gateway: gateway(&message.attributes),
        onlink: message.header.flags.contains(RouteFlags::Onlink),
        metric: metric(message),
        extra: message.attributes.iter().any(|attribute| {
            matches!(attribute, RouteAttribute::PrefSource(_) | RouteAttribute::Metrics(_))
        }),
    })
}

pub(super) fn direct_route(protocol: u8, message: &RouteNetlinkMessage) -> Option<DirectRoute> {
    let RouteNetlinkMessage::NewRoute(wanted) = message else { return None };
    if u8::from(wanted.header.protocol) != protocol {
        return None;
    }
    let ifindex = output(wanted)?;
    let route = route(ifindex, message).filter(|route| route.metric == 0 && !route.onlink)?;
    let ObservedRoute { destination, extra, .. } = route;
    Some(DirectRoute { destination, gateway: route.gateway?, ifindex, extra })
}

pub(super) fn table(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or_else(|| u32::from(message.header.table))
}

fn output(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        _ => None,
    })
}

fn gateway(attributes: &[RouteAttribute]) -> Option<Ipv4Addr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(*ip),
        _ => None,
    })
}

pub(super) fn metric(message: &RouteMessage) -> u32 {
    let metric = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    metric.unwrap_or(0)
}

/// Whether this is a default route of the main table.
pub(super) fn is_default(message: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRoute(route) = message else { return false };
    route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && table(route) == u32::from(RouteHeader::RT_TABLE_MAIN)
}

/// The default routes, the one with the lowest metric, which the kernel takes,
/// first.
pub(super) fn default_routes(messages: &[RouteNetlinkMessage]) -> Vec<RouteTo> {
    let mut routes: Vec<(u32, RouteTo)> = messages
        .iter()
        .filter(|message| is_default(message))
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        })
        .filter_map(|route| Some((metric(route), hop(route)?)))
        .collect();
    routes.sort_by_key(|(metric, _)| *metric);
    routes.into_iter().map(|(_, hop)| hop).collect()
}

/// Where a route leads: its output interface, or that of its first next hop.
pub(super) fn hop(route: &RouteMessage) -> Option<RouteTo> {
    let source = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => Some(*ip),
        _ => None,
    });
    if let Some(ifindex) = output(route) {
        return Some(RouteTo { ifindex, source, gateway: gateway(&route.attributes) });
    }
    let first = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => hops.first(),
        _ => None,
    })?;
    Some(RouteTo { ifindex: first.interface_index, source, gateway: gateway(&first.attributes) })
}
