//! Routing rules, and routes that are not ours to what peers have. From the bytes: others'
//! may have attributes that the library does not know.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use flannel_core::detours::{Action, Fate, Headers, Here, RoutingRule, TableRoute, Tables, asked};
use ipnetwork::Ipv4Network;

use super::{Inspector, RTM_GETRULE, RULE_LEN};
use crate::kernel::limits::{RTM_GETROUTE, all};
use crate::kernel::raw::{self, Raw};
use crate::kernel::socket::explain;
use crate::kernel::{KernelError, PROTOCOL, outputs};

/// Length of `struct rtmsg`.
const RTMSG_LEN: usize = 12;
const RTA_DST: u16 = 1;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
/// RTNH_F_DEAD, and RTM_F_CLONED: what was learnt.
const NO_ROUTE: u32 = 0x01 | 0x200;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
/// Since Linux 6.15.
const FRA_SPORT_MASK: u16 = 28;
const FRA_DPORT_MASK: u16 = 29;
/// Attributes that are read, and those that choose no packets: realms, interface groups,
/// protocol.
const PLAIN: [u16; 14] = [0, 1, 2, 3, 4, 6, 11, 13, 14, 15, 21, 22, 23, 24];
/// FRA_PAD, which says nothing.
const FRA_PAD: u16 = 18;
/// FIB_RULE_INVERT.
const INVERTED: u32 = 0x02;

impl Inspector {
    pub(super) fn read_detours(&mut self, here: &Here) -> Result<Tables, KernelError> {
        let mut ask = [0; RULE_LEN];
        ask[0] = libc::AF_INET as u8;
        let rules = self.dump(RTM_GETRULE, "RTM_GETRULE", "all", &ask)?;
        let rules: Vec<RoutingRule> = rules.iter().filter_map(|rule| parse(&rule.body)).collect();
        let tables = asked(&rules, here);
        let pick = |answer: Raw| route(&answer.body, &tables, here);
        let routes = match self.socket()?.pick_raw(RTM_GETROUTE, &all(), pick) {
            Ok(routes) => routes,
            // The kernel makes the tables with their first routes.
            Err(refused) if refused.source.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(refused) => return Err(explain("RTM_GETROUTE", "all".to_owned(), refused)),
        };
        Ok(Tables { rules, routes })
    }
}

fn parse(rule: &[u8]) -> Option<RoutingRule> {
    let [_, to, from, tos, table, _, _, action] = *rule.first_chunk()?;
    let flags = raw::number(rule, 8)?;
    let attributes = rule.get(RULE_LEN..)?;
    let number = |kind| raw::attribute(attributes, kind).and_then(|value| raw::number(value, 0));
    let network = |kind, prefix| {
        let octets: [u8; 4] = raw::attribute(attributes, kind)?.try_into().ok()?;
        Ipv4Network::new(Ipv4Addr::from(octets), prefix).ok()
    };
    let chooses = |(kind, value): (u16, &[u8])| match kind {
        // The kernel tells it of each single port.
        FRA_SPORT_MASK | FRA_DPORT_MASK => value != u16::MAX.to_ne_bytes(),
        kind => !PLAIN.contains(&kind) && kind != FRA_PAD,
    };
    // `struct fib_rule_port_range`.
    let ports = |kind| {
        let [a, b, c, d] = *raw::attribute(attributes, kind)?.first_chunk()?;
        Some((u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])))
    };
    let headers = Headers {
        tos,
        protocol: raw::attribute(attributes, FRA_IP_PROTO).and_then(|value| value.first().copied()),
        source: ports(FRA_SPORT_RANGE),
        destination: ports(FRA_DPORT_RANGE),
    };
    let table = number(FRA_TABLE).unwrap_or_else(|| table.into());
    Some(RoutingRule {
        priority: number(FRA_PRIORITY).unwrap_or(0),
        from: network(FRA_SRC, from),
        to: network(FRA_DST, to),
        input: raw::attribute(attributes, FRA_IIFNAME).map(raw::text),
        headers,
        special: raw::attributes(attributes).any(chooses),
        inverted: flags & INVERTED != 0,
        action: match action {
            1 => Action::Lookup(table),
            2 => number(FRA_GOTO).map_or(Action::Nothing, Action::Goto),
            6 => Action::Lost("blackhole"),
            7 => Action::Lost("unreachable"),
            8 => Action::Lost("prohibit"),
            _ => Action::Nothing,
        },
        // -1: none.
        passes_over: number(FRA_SUPPRESS_PREFIXLEN).and_then(|most| u8::try_from(most).ok()),
    })
}

fn route(route: &[u8], tables: &BTreeSet<u32>, here: &Here) -> Option<TableRoute> {
    let [_, prefix, _, tos, table, protocol, _, kind] = *route.first_chunk()?;
    let attributes = route.get(RTMSG_LEN..)?;
    let number = |kind| raw::attribute(attributes, kind).and_then(|value| raw::number(value, 0));
    let table = number(RTA_TABLE).unwrap_or_else(|| table.into());
    if tos != 0 || !tables.contains(&table) || raw::number(route, 8)? & NO_ROUTE != 0 {
        return None;
    }
    let address = |kind| {
        let octets: [u8; 4] = raw::attribute(attributes, kind)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let destination = address(RTA_DST).unwrap_or(Ipv4Addr::UNSPECIFIED);
    let destination = Ipv4Network::new(destination, prefix).ok()?;
    let fate = match kind {
        1 => Fate::Leaves { outputs: outputs::all(attributes), gateway: address(RTA_GATEWAY) },
        2 => Fate::Taken("local"),
        3 => Fate::Taken("broadcast"),
        4 => Fate::Taken("anycast"),
        6 => Fate::Lost("blackhole"),
        7 => Fate::Lost("unreachable"),
        8 => Fate::Lost("prohibit"),
        9 => Fate::Next,
        _ => return None,
    };
    let through = match &fate {
        Fate::Leaves { outputs, .. } => here.overlay.is_some_and(|overlay| *outputs == [overlay]),
        _ => false,
    };
    let ours = kind == 1 && (through || protocol == PROTOCOL);
    here.matters(table, destination, ours).then_some(TableRoute { table, destination, fate })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Here {
        Here {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.1.0/24".parse().unwrap(),
            overlay: Some(9),
            inputs: BTreeSet::new(),
        }
    }

    fn message(header: [u8; 8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = [header.as_slice(), &[0; 4]].concat();
        attributes.iter().for_each(|(kind, value)| raw::put(&mut bytes, *kind, value));
        bytes
    }

    #[test]
    fn a_rule_is_read_and_one_that_asks_for_more_is_special() {
        let none = u32::MAX.to_ne_bytes();
        let (priority, table) = (100_u32.to_ne_bytes(), 7777_u32.to_ne_bytes());
        let plain: [(u16, &[u8]); 6] = [
            (FRA_PRIORITY, &priority),
            (FRA_TABLE, &table),
            (FRA_SUPPRESS_PREFIXLEN, &none),
            (FRA_DST, &[10, 5, 3, 0]),
            (FRA_IIFNAME, b"cni0\0"),
            (21, &[3]),
        ];
        let header = [2, 24, 0, 0, 252, 0, 0, 1];
        let expected = RoutingRule {
            priority: 100,
            from: None,
            to: Some("10.5.3.0/24".parse().unwrap()),
            input: Some("cni0".to_owned()),
            headers: Headers::default(),
            special: false,
            inverted: false,
            action: Action::Lookup(7777),
            passes_over: None,
        };
        assert_eq!(parse(&message(header, &plain)), Some(expected.clone()));
        // FRA_FWMARK, FRA_OIFNAME, FRA_L3MDEV, and one of the future.
        for kind in [10, 17, 19, 99] {
            let mut more = plain.to_vec();
            more.push((kind, &[1, 0, 0, 0]));
            let special = RoutingRule { special: true, ..expected.clone() };
            assert_eq!(parse(&message(header, &more)), Some(special), "{kind}");
        }
        let mut with_headers = plain.to_vec();
        let ports = [80_u16, 90].map(u16::to_ne_bytes).concat();
        with_headers.extend([(FRA_IP_PROTO, &[6][..]), (FRA_DPORT_RANGE, &ports)]);
        let single = u16::MAX.to_ne_bytes();
        with_headers.push((FRA_DPORT_MASK, &single));
        let headers =
            Headers { tos: 0, protocol: Some(6), source: None, destination: Some((80, 90)) };
        let read = parse(&message(header, &with_headers));
        assert_eq!(read, Some(RoutingRule { headers, ..expected }));
        with_headers.push((FRA_SPORT_MASK, &[0, 1]));
        assert!(parse(&message(header, &with_headers)).unwrap().special);
        let mut inverted = message([2, 0, 0, 0x10, 254, 0, 0, 7], &[]);
        inverted[8] = INVERTED as u8;
        let read = parse(&inverted).unwrap();
        assert!(read.inverted && !read.special && read.headers.tos == 0x10);
        assert_eq!(read.action, Action::Lost("unreachable"));
        assert_eq!(parse(&[2; 7]), None);
    }

    #[test]
    fn of_routes_those_are_read_that_may_lead_elsewhere() {
        let tables = [254, 255, 300].into();
        let output = |output: u32| output.to_ne_bytes();
        let read = |header: [u8; 8], to: [u8; 4], by: u32| {
            let (to, by) = (to, output(by));
            route(&message(header, &[(RTA_DST, &to), (4, &by)]), &tables, &here())
        };
        let (main, unicast) = (254, 1);
        let header =
            |prefix, tos, table, protocol, kind| [2, prefix, 0, tos, table, protocol, 0, kind];
        let inner = read(header(25, 0, main, 3, unicast), [10, 5, 3, 128], 2).unwrap();
        let fate = Fate::Leaves { outputs: vec![2], gateway: None };
        let destination = "10.5.3.128/25".parse().unwrap();
        assert_eq!(inner, TableRoute { table: 254, destination, fate });
        let lost = read(header(25, 0, main, 3, 6), [10, 5, 3, 128], 0).unwrap();
        assert_eq!(lost.fate, Fate::Lost("blackhole"));
        for other in [
            read(header(25, 0, main, 3, unicast), [10, 5, 3, 128], 9),
            read(header(25, 0, main, PROTOCOL, unicast), [10, 5, 3, 128], 2),
            read(header(25, 0x10, main, 3, unicast), [10, 5, 3, 128], 2),
            read(header(25, 0, 100, 3, unicast), [10, 5, 3, 128], 2),
            read(header(32, 0, main, 3, unicast), [10, 5, 1, 7], 2),
            read(header(8, 0, main, 3, unicast), [10, 0, 0, 0], 2),
            read(header(24, 0, main, 3, unicast), [10, 6, 3, 0], 2),
        ] {
            assert_eq!(other, None);
        }
        assert!(read(header(8, 0, 255, 2, 2), [10, 0, 0, 0], 1).is_some());
        let table = 300_u32.to_ne_bytes();
        let default = message(header(0, 0, 252, 3, unicast), &[(RTA_TABLE, &table)]);
        assert_eq!(route(&default, &tables, &here()).unwrap().table, 300);
        let mut learnt = default;
        learnt[9] = 2;
        assert_eq!(route(&learnt, &tables, &here()), None);
    }
}
