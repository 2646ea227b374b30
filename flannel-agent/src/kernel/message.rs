//! Netlink messages for each operation, and what `ip` would call their objects.

use std::net::Ipv4Addr;

use flannel_core::mac::MacAddr;
use flannel_core::observed::{DirectRoute, ObservedRoute};
use flannel_core::op::Op;
use ipnetwork::Ipv4Network;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::socket::Request;

use super::{PROTOCOL, offload};

/// Between OpenR's number and BGP's no protocol has one (`rtnetlink.h`, `rt_protos` of
/// iproute2): see [`spread`].
const SPREAD: std::ops::Range<u8> = 100..186;

/// RT_TABLE_LOCAL.
pub(super) const LOCAL_TABLE: u32 = 255;

const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// The requests that put a local route first again where another one goes before it. The
/// kernel does not move a route: ours goes, and comes again in the place of the first.
pub(super) fn local_first(ifindex: u32, ip: Ipv4Addr) -> [Request; 2] {
    let local = || local(ifindex, ip);
    [
        Request { message: RouteNetlinkMessage::DelRoute(local()), flags: 0 },
        Request { message: RouteNetlinkMessage::NewRoute(local()), flags: PUT },
    ]
}

/// The request for an operation on the device with this index; `None` for
/// those that need more than one request. `crowd`: there are many routes.
pub(super) fn request(ifindex: u32, op: &Op, crowd: bool) -> Option<Request> {
    let (message, flags) = match op {
        Op::SetMac(mac) => {
            let address = LinkAttribute::Address(mac.0.to_vec());
            (RouteNetlinkMessage::SetLink(link(ifindex, vec![address])), 0)
        }
        Op::SetMtu(mtu) => {
            (RouteNetlinkMessage::SetLink(link(ifindex, vec![LinkAttribute::Mtu(*mtu)])), 0)
        }
        Op::EndProtoDown => {
            (RouteNetlinkMessage::SetLink(link(ifindex, vec![LinkAttribute::ProtoDown(0)])), 0)
        }
        Op::SetUp => {
            let mut message = link(ifindex, vec![]);
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
            (RouteNetlinkMessage::SetLink(message), 0)
        }
        Op::AddAddress(ip) => (RouteNetlinkMessage::NewAddress(address(ifindex, *ip, 32)), PUT),
        Op::PutLocal(ip) => (RouteNetlinkMessage::NewRoute(local(ifindex, *ip)), PUT),
        Op::RemoveAddress(net) => {
            (RouteNetlinkMessage::DelAddress(address(ifindex, net.ip(), net.prefix())), 0)
        }
        Op::PutNeighbour(ip, mac) => {
            (RouteNetlinkMessage::NewNeighbour(neighbour(ifindex, *ip, *mac)), PUT)
        }
        Op::RemoveNeighbour(ip, mac) => {
            (RouteNetlinkMessage::DelNeighbour(neighbour(ifindex, *ip, *mac)), 0)
        }
        Op::PutFdb(mac, ip) => {
            (RouteNetlinkMessage::NewNeighbour(fdb_entry(ifindex, *mac, *ip)), PUT)
        }
        Op::RemoveFdb(mac, ip) => {
            (RouteNetlinkMessage::DelNeighbour(fdb_entry(ifindex, *mac, *ip)), 0)
        }
        Op::PutRoute(subnet) => {
            let mut route = new_route(ifindex, &ObservedRoute::to_peer(*subnet));
            if crowd {
                route.header.protocol = spread(*subnet);
            }
            (RouteNetlinkMessage::NewRoute(route), PUT)
        }
        Op::PutLinkRoute(network) => {
            let route = ObservedRoute::to_link(*network);
            (RouteNetlinkMessage::NewRoute(new_route(ifindex, &route)), PUT)
        }
        Op::RemoveRoute(route) => (RouteNetlinkMessage::DelRoute(old_route(ifindex, route)), 0),
        Op::PutDirect(route) => {
            (RouteNetlinkMessage::NewRoute(direct(route, RouteProtocol::Other(PROTOCOL))), PUT)
        }
        Op::RemoveDirect(route) => {
            let scoped = direct(route, RouteProtocol::Unspec);
            (RouteNetlinkMessage::DelRoute(scoped), 0)
        }
        Op::DeleteDevice { .. }
        | Op::CreateDevice(_)
        | Op::SetChecksum(_)
        | Op::PutMaps(_)
        | Op::RemoveMaps(_) => return None,
    };
    Some(Request { message, flags })
}

pub(super) fn link(ifindex: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.attributes = attributes;
    message
}

fn address(ifindex: u32, ip: Ipv4Addr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = ifindex;
    message.header.prefix_len = prefix;
    message.header.scope = AddressScope::Universe;
    message.attributes =
        vec![AddressAttribute::Address(ip.into()), AddressAttribute::Local(ip.into())];
    message
}

/// As the kernel makes it with an address (`fib_add_ifaddr`).
fn local(ifindex: u32, ip: Ipv4Addr) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(ip, 32)
        .output_interface(ifindex)
        .pref_source(ip)
        .protocol(RouteProtocol::Kernel)
        .scope(RouteScope::Host)
        .kind(RouteType::Local)
        .table_id(LOCAL_TABLE)
        .build()
}

fn neighbour(ifindex: u32, ip: Ipv4Addr, mac: MacAddr) -> NeighbourMessage {
    entry(AddressFamily::Inet, NeighbourFlags::empty(), ifindex, ip, mac)
}

fn fdb_entry(ifindex: u32, mac: MacAddr, ip: Ipv4Addr) -> NeighbourMessage {
    entry(AddressFamily::Bridge, NeighbourFlags::Own, ifindex, ip, mac)
}

fn entry(
    family: AddressFamily,
    flags: NeighbourFlags,
    ifindex: u32,
    ip: Ipv4Addr,
    mac: MacAddr,
) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = flags;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    message
}

/// The attributes by which a route is put or found.
fn route_base(ifindex: u32, route: &ObservedRoute) -> RouteMessageBuilder<Ipv4Addr> {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination.network(), route.destination.prefix())
        .output_interface(ifindex);
    if let Some(gateway) = route.gateway {
        builder = builder.gateway(gateway);
    }
    if route.onlink {
        builder = builder.onlink();
    }
    if route.metric != 0 {
        builder = builder.priority(route.metric);
    }
    builder
}

fn new_route(ifindex: u32, route: &ObservedRoute) -> RouteMessage {
    route_base(ifindex, route).protocol(RouteProtocol::Boot).build()
}

/// A routing protocol's number that nobody has, by the subnet. Packets go the same way
/// with each, and who deletes a route needs no number. But the kernel keeps the routes
/// through one device with one protocol in one list, gateways or not, and walks it for each
/// new one: thousands of routes would take a time that grows with their square
/// (`fib_find_info` of net/ipv4/fib_semantics.c, Linux 6.12).
fn spread(subnet: Ipv4Network) -> RouteProtocol {
    let number = u32::from(subnet.network()) >> (32 - u32::from(subnet.prefix().clamp(1, 32)));
    RouteProtocol::Other(SPREAD.start + (number % SPREAD.len() as u32) as u8)
}

/// Whoever made it: any protocol. A route without a gateway is told by its
/// scope from one to the same place with a gateway, which the kernel would
/// otherwise take for it.
fn old_route(ifindex: u32, route: &ObservedRoute) -> RouteMessage {
    let scope = if route.gateway.is_some() { RouteScope::NoWhere } else { RouteScope::Link };
    route_base(ifindex, route).protocol(RouteProtocol::Unspec).scope(scope).build()
}

fn direct(route: &DirectRoute, protocol: RouteProtocol) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination.network(), route.destination.prefix())
        .gateway(route.gateway)
        .output_interface(route.ifindex)
        .protocol(protocol)
        .build()
}

/// Name of the netlink message of an operation.
pub(super) fn call(op: &Op) -> &'static str {
    match op {
        Op::DeleteDevice { .. } => "RTM_DELLINK",
        Op::CreateDevice(_) => "RTM_NEWLINK",
        Op::SetMac(_) | Op::SetMtu(_) | Op::EndProtoDown | Op::SetUp => "RTM_SETLINK",
        Op::SetChecksum(_) => offload::SET,
        Op::AddAddress(_) => "RTM_NEWADDR",
        Op::RemoveAddress(_) => "RTM_DELADDR",
        Op::PutNeighbour(..) | Op::PutFdb(..) => "RTM_NEWNEIGH",
        Op::RemoveNeighbour(..) | Op::RemoveFdb(..) => "RTM_DELNEIGH",
        Op::PutRoute(_) | Op::PutLinkRoute(_) | Op::PutDirect(_) | Op::PutLocal(_) => {
            "RTM_NEWROUTE"
        }
        Op::RemoveRoute(_) | Op::RemoveDirect(_) => "RTM_DELROUTE",
        Op::PutMaps(_) | Op::RemoveMaps(_) => "map operation",
    }
}

/// What the operation is about, as `ip` and `bridge` would print it.
pub(super) fn object(device: &str, op: &Op) -> String {
    match op {
        Op::DeleteDevice { name, .. } => name.clone(),
        Op::CreateDevice(want) => format!(
            "{} type vxlan id {} local {} dev {} dstport {}",
            want.name, want.vni, want.local, want.underlay, want.port
        ),
        Op::SetMac(mac) => format!("{device} address {mac}"),
        Op::SetMtu(mtu) => format!("{device} mtu {mtu}"),
        Op::SetChecksum(by) => format!("{device} checksums by {by}"),
        Op::EndProtoDown => format!("{device} protodown off"),
        Op::SetUp => format!("{device} up"),
        Op::AddAddress(ip) => format!("{ip}/32 dev {device}"),
        Op::PutLocal(ip) => format!("local {ip} dev {device}"),
        Op::RemoveAddress(net) => format!("{net} dev {device}"),
        Op::PutNeighbour(ip, mac) | Op::RemoveNeighbour(ip, mac) => {
            format!("{ip} lladdr {mac} dev {device}")
        }
        Op::PutFdb(mac, ip) | Op::RemoveFdb(mac, ip) => format!("{mac} dst {ip} dev {device}"),
        Op::PutRoute(subnet) => format!("{subnet} via {} dev {device} onlink", subnet.network()),
        Op::PutLinkRoute(network) => format!("{network} dev {device}"),
        Op::RemoveRoute(route) => match route.gateway {
            Some(gateway) => format!("{} via {gateway} dev {device}", route.destination),
            None => format!("{} dev {device}", route.destination),
        },
        Op::PutDirect(route) | Op::RemoveDirect(route) => {
            format!("{} via {} dev {}", route.destination, route.gateway, route.ifindex)
        }
        Op::PutMaps(peer) => peer.subnet.to_string(),
        Op::RemoveMaps(subnet) => subnet.to_string(),
    }
}
