//! Routes with an MTU or a hop limit of their own. From the bytes. Pure.

use std::net::Ipv4Addr;

use flannel_core::limits::{Asked, LimitedRoute, Limits};
use ipnetwork::Ipv4Network;

use super::raw;

pub(super) const RTM_GETROUTE: u16 = 26;
/// Length of `struct rtmsg`.
const RTMSG_LEN: usize = 12;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_METRICS: u16 = 8;
const RTA_IP_PROTO: u16 = 27;
const RTA_DPORT: u16 = 29;
const RTAX_MTU: u16 = 2;
const RTAX_HOPLIMIT: u16 = 10;
/// RTM_F_FIB_MATCH: what the route says, and not what was learnt since. Since Linux 4.13.
const FIB_MATCH: u32 = 0x2000;
/// RT_TABLE_MAIN.
const MAIN: u8 = 254;
/// RT_TABLE_LOCAL: the node's own addresses.
const LOCAL: u8 = 255;
/// RTN_UNICAST.
const UNICAST: u8 = 1;

/// Asks for the routes of all tables.
pub(super) fn all() -> Vec<u8> {
    let mut ask = vec![0; RTMSG_LEN];
    ask[0] = libc::AF_INET as u8;
    ask
}

/// Asks for the route of one packet.
pub(super) fn question(asked: &Asked) -> Vec<u8> {
    let mut ask = all();
    ask[1] = 32;
    ask[8..12].copy_from_slice(&FIB_MATCH.to_ne_bytes());
    raw::put(&mut ask, RTA_DST, &asked.destination.octets());
    let Some(end) = asked.tunnel else { return ask };
    if !end.source.is_unspecified() {
        ask[2] = 32;
        raw::put(&mut ask, RTA_SRC, &end.source.octets());
    }
    if end.port != 0 {
        raw::put(&mut ask, RTA_IP_PROTO, &[libc::IPPROTO_UDP as u8]);
        raw::put(&mut ask, RTA_DPORT, &end.port.to_be_bytes());
    }
    if end.vrf != 0 {
        raw::put(&mut ask, RTA_OIF, &end.vrf.to_ne_bytes());
    }
    ask
}

/// What a route says.
pub(super) fn of(route: &[u8]) -> Limits {
    let attributes = route.get(RTMSG_LEN..).unwrap_or_default();
    let metrics = raw::attribute(attributes, RTA_METRICS).unwrap_or_default();
    let metric = |kind| {
        let value = raw::attribute(metrics, kind).and_then(|value| raw::number(value, 0));
        value.filter(|value| *value != 0)
    };
    Limits { mtu: metric(RTAX_MTU), hop_limit: metric(RTAX_HOPLIMIT).is_some() }
}

/// A route by which packets may leave, if it says anything.
pub(super) fn limited(route: &[u8]) -> Option<LimitedRoute> {
    let table = *route.get(4)?;
    if table == LOCAL || *route.get(7)? != UNICAST {
        return None;
    }
    let limits = of(route);
    if !limits.any() {
        return None;
    }
    let destination: Option<[u8; 4]> =
        raw::attribute(route.get(RTMSG_LEN..)?, RTA_DST).and_then(|octets| octets.try_into().ok());
    let address = destination.map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from);
    let destination = Ipv4Network::new(address, *route.get(1)?).ok()?;
    Some(LimitedRoute { destination, main: table == MAIN, limits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(table: u8, kind: u8, metrics: &[(u16, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; RTMSG_LEN];
        (bytes[1], bytes[4], bytes[7]) = (24, table, kind);
        raw::put(&mut bytes, RTA_DST, &[192, 0, 2, 0]);
        let mut nested = Vec::new();
        metrics.iter().for_each(|(kind, value)| raw::put(&mut nested, *kind, &value.to_ne_bytes()));
        raw::put(&mut bytes, RTA_METRICS | 0x8000, &nested);
        bytes
    }

    #[test]
    fn a_route_is_limited_by_mtu_or_hop_limit() {
        let destination = "192.0.2.0/24".parse().unwrap();
        let limits = |mtu, hop_limit| Limits { mtu, hop_limit };
        let found = limited(&route(MAIN, UNICAST, &[(RTAX_MTU, 1300)]));
        let narrow = LimitedRoute { destination, main: true, limits: limits(Some(1300), false) };
        assert_eq!(found, Some(narrow));
        // A lock, and an initial congestion window, say nothing.
        let found = limited(&route(100, UNICAST, &[(1, 4), (11, 30), (RTAX_HOPLIMIT, 9)]));
        let marked = LimitedRoute { destination, main: false, limits: limits(None, true) };
        assert_eq!(found, Some(marked));
        for nothing in [
            route(MAIN, UNICAST, &[(11, 30)]),
            route(MAIN, UNICAST, &[(RTAX_MTU, 0)]),
            route(LOCAL, UNICAST, &[(RTAX_MTU, 1300)]),
            route(MAIN, 7, &[(RTAX_MTU, 1300)]),
            vec![2],
        ] {
            assert_eq!(limited(&nothing), None);
        }
    }
}
