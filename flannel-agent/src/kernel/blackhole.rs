//! The blackhole route of our own subnet: what nothing more specific leads to
//! is dropped here, instead of leaving by the default route and coming back.
//!
//! flanneld gives it metric 0. The bridge of the pods has a connected route of
//! the same prefix and metric: if that is there first, the kernel refuses the
//! blackhole, and if it comes second, the kernel never uses it and the pods get
//! nothing. Ours has the highest metric, so every other route goes before it,
//! and the metric tells that it is ours.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::KernelError;
use super::answer::{metric, table};
use super::netlink::{RealKernel, explain};
use super::socket::Request;

/// Metric of ours.
pub const METRIC: u32 = u32::MAX;

/// A blackhole route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blackhole {
    /// What is dropped.
    pub destination: Ipv4Network,
    /// Priority (RTA_PRIORITY).
    pub metric: u32,
}

impl Blackhole {
    /// Ours for this subnet.
    pub fn ours(subnet: Ipv4Network) -> Self {
        Self { destination: subnet, metric: METRIC }
    }

    /// Whether we made it.
    pub fn is_ours(&self) -> bool {
        self.metric == METRIC
    }
}

/// The routes to remove, then the one to add. With a `wanted` subnet,
/// flanneld's route for it goes, too.
pub fn diff(
    wanted: Option<Ipv4Network>,
    present: &[Blackhole],
) -> (Vec<Blackhole>, Option<Blackhole>) {
    let ours = wanted.map(Blackhole::ours);
    let flannelds = wanted.map(|destination| Blackhole { destination, metric: 0 });
    let stale = |route: &&Blackhole| {
        let route = **route;
        Some(route) == flannelds || (route.is_ours() && Some(route) != ours)
    };
    let removed = present.iter().filter(stale).copied().collect();
    (removed, ours.filter(|ours| !present.contains(ours)))
}

impl RealKernel {
    pub(super) fn blackhole_routes(&self) -> Result<Vec<Blackhole>, KernelError> {
        let mut ask = RouteMessage::default();
        ask.header.address_family = AddressFamily::Inet;
        ask.header.table = RouteHeader::RT_TABLE_MAIN;
        // The kernel gives these alone, not the thousands of the peers.
        ask.header.kind = RouteType::BlackHole;
        let ask = RouteNetlinkMessage::GetRoute(ask);
        let routes = self.dump("RTM_GETROUTE", "blackhole", &ask)?;
        Ok(routes.iter().filter_map(read).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, metric: u32) -> Blackhole {
        Blackhole { destination: destination.parse().unwrap(), metric }
    }

    #[test]
    fn ours_and_flannelds_are_told_from_others() {
        let subnet = "10.5.1.0/24".parse().unwrap();
        let ours = Blackhole::ours(subnet);
        let others = [route("10.5.1.0/24", 7), route("10.5.0.0/16", 0), route("192.168.0.0/16", 0)];
        assert_eq!(diff(Some(subnet), &others), (vec![], Some(ours)));
        assert_eq!(diff(Some(subnet), &[ours]), (vec![], None));
        assert_eq!(diff(None, &others), (vec![], None));
        assert_eq!(diff(None, &[ours, others[0]]), (vec![ours], None));
        let flannelds = route("10.5.1.0/24", 0);
        assert_eq!(diff(Some(subnet), &[flannelds, ours]), (vec![flannelds], None));
        assert_eq!(diff(None, &[flannelds]), (vec![], None));
        let before = route("10.5.9.0/24", METRIC);
        assert_eq!(diff(Some(subnet), &[before]), (vec![before], Some(ours)));
    }
}
