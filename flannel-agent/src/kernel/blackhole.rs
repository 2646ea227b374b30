//! Reading, adding and removing blackhole routes.

use std::io;
use std::net::Ipv4Addr;

use flannel_core::blackhole::Blackhole;
use ipnetwork::Ipv4Network;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::KernelError;
use super::answer::{metric, table};
use super::netlink::RealKernel;
use super::socket::{Request, explain};

impl RealKernel {
    pub(super) fn blackhole_routes(&self) -> Result<Vec<Blackhole>, KernelError> {
        let mut ask = RouteMessage::default();
        ask.header.address_family = AddressFamily::Inet;
        ask.header.table = RouteHeader::RT_TABLE_MAIN;
        // The kernel gives these alone, not the thousands of the peers.
        ask.header.kind = RouteType::BlackHole;
        let ask = RouteNetlinkMessage::GetRoute(ask);
        match self.dump("RTM_GETROUTE", "blackhole", &ask, |message| read(&message)) {
            // The kernel makes the table with its first route.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            answer => answer,
        }
    }

    pub(super) fn put_blackhole(&self, route: Blackhole) -> Result<(), KernelError> {
        let message = RouteNetlinkMessage::NewRoute(message(route).build());
        match self.one(&Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }) {
            Err(refused) if refused.errno() != libc::EEXIST => {
                Err(explain("RTM_NEWROUTE", object(route), refused))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn delete_blackhole(&self, route: Blackhole) -> Result<(), KernelError> {
        // Whoever made it: any protocol and scope.
        let message =
            message(route).protocol(RouteProtocol::Unspec).scope(RouteScope::NoWhere).build();
        let message = RouteNetlinkMessage::DelRoute(message);
        match self.one(&Request { message, flags: 0 }) {
            Err(refused) if refused.errno() != libc::ESRCH => {
                Err(explain("RTM_DELROUTE", object(route), refused))
            }
            _ => Ok(()),
        }
    }
}

fn message(route: Blackhole) -> RouteMessageBuilder<Ipv4Addr> {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination.network(), route.destination.prefix())
        .kind(RouteType::BlackHole)
        .protocol(RouteProtocol::Boot);
    if route.metric == 0 { builder } else { builder.priority(route.metric) }
}

fn object(route: Blackhole) -> String {
    format!("blackhole {} metric {}", route.destination, route.metric)
}

fn read(message: &RouteNetlinkMessage) -> Option<Blackhole> {
    let RouteNetlinkMessage::NewRoute(route) = message else { return None };
    if route.header.kind != RouteType::BlackHole
        || table(route) != u32::from(RouteHeader::RT_TABLE_MAIN)
    {
        return None;
    }
    Some(Blackhole { destination: destination(route)?, metric: metric(route) })
}

fn destination(route: &RouteMessage) -> Option<Ipv4Network> {
    let network = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(*ip),
        _ => None,
    })?;
    Ipv4Network::new(network, route.header.destination_prefix_length).ok()
}
