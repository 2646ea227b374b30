use std::net::Ipv4Addr;

use super::*;
use crate::health::{Health, Subject};
use crate::mac::MacAddr;

const OVERLAY: u32 = 9;
const ETH0: u32 = 2;

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn here() -> Here {
    Here {
        network: net("10.5.0.0/16"),
        subnet: net("10.5.1.0/24"),
        overlay: Some(OVERLAY),
        inputs: ["cni0".to_owned()].into(),
    }
}

fn rule(priority: u32, action: Action) -> RoutingRule {
    RoutingRule { action, ..RoutingRule::of_table(priority, MAIN) }
}

fn usual() -> Vec<RoutingRule> {
    [(0, LOCAL), (32_766, MAIN), (32_767, 253)]
        .map(|(priority, table)| rule(priority, Action::Lookup(table)))
        .into()
}

/// The rules of every node, with these.
fn with(rules: impl IntoIterator<Item = RoutingRule>) -> Vec<RoutingRule> {
    let mut all = usual();
    all.extend(rules);
    all.sort_by_key(|rule| rule.priority);
    all
}

fn route(table: u32, to: &str, fate: Fate) -> TableRoute {
    TableRoute { table, destination: net(to), fate }
}

fn by(output: u32, gateway: Option<[u8; 4]>) -> Fate {
    Fate::Leaves { outputs: vec![output], gateway: gateway.map(Ipv4Addr::from) }
}

fn peer(subnet: &str) -> (Ipv4Network, Peer) {
    let subnet = net(subnet);
    let public_ip = Ipv4Addr::new(192, 0, 2, subnet.network().octets()[2]);
    (subnet, Peer { subnet, vtep_mac: MacAddr([2; 6]), public_ip })
}

/// What status would say, with peers 2 and 3, a wider one at 16, and 8, which is direct.
fn told(rules: Vec<RoutingRule>, routes: Vec<TableRoute>) -> Vec<String> {
    let all = ["10.5.2.0/24", "10.5.3.0/24", "10.5.16.0/20", "10.5.20.0/24", "10.5.8.0/24"];
    let all = all.map(peer).into();
    let direct = [net("10.5.8.0/24")].into();
    let ways = Ways::of(&Tables { rules, routes }, &here());
    let peers = Peers { all: &all, direct: &direct };
    let found = ways.detours(peers, &here(), |ifindex| format!("if{ifindex}"));
    if ways.are_straight() {
        assert_eq!(found, Found::well());
    }
    let mut health = Health::default();
    let now = std::time::Instant::now();
    health.report(Subject::Detour, found, now);
    let shown = |line: crate::health::Line| {
        format!("{}: {}", line.what.trim_start_matches("detour "), line.reason)
    };
    health.lines(now).into_iter().map(shown).collect()
}

#[track_caller]
fn blamed(rules: Vec<RoutingRule>, routes: Vec<TableRoute>, expected: &[&str]) {
    let told = told(rules, routes);
    let fits = told.iter().zip(expected).all(|(told, expected)| told.starts_with(expected));
    assert!(fits && told.len() == expected.len(), "{told:#?} instead of {expected:#?}");
}

#[test]
fn a_route_to_a_part_of_a_peers_subnet_is_named() {
    let loses = |to| route(MAIN, to, Fate::Lost("blackhole"));
    blamed(
        usual(),
        vec![loses("10.5.3.128/25"), route(MAIN, "10.5.2.7/32", by(ETH0, Some([192, 0, 2, 1])))],
        &[
            "10.5.2.7 via 192.0.2.1 dev if2 table main: what pods send to a part of peer \
             10.5.2.0/24 is led elsewhere by this route",
            "blackhole 10.5.3.128/25 table main: what pods send to a part of peer 10.5.3.0/24 is \
             lost by this route",
        ],
    );
    // Within the smaller of two peers, and beside it.
    let nested = vec![loses("10.5.20.4/32"), loses("10.5.21.4/32")];
    blamed(
        usual(),
        nested,
        &[
            "blackhole 10.5.20.4 table main: what pods send to a part of peer 10.5.20.0/24",
            "blackhole 10.5.21.4 table main: what pods send to a part of peer 10.5.16.0/20",
        ],
    );
}

#[test]
fn the_local_table_is_asked_first_whatever_the_length() {
    let taken = route(LOCAL, "10.5.2.1/32", Fate::Taken("local"));
    let lost = route(LOCAL, "10.5.2.0/23", Fate::Lost("unreachable"));
    let name = "unreachable 10.5.2.0/23 table local: what pods send to 2 peers, 10.5.2.0/24 among \
                them, is lost";
    let own = "local 10.5.2.1 table local: what pods send to a part of peer 10.5.2.0/24 is taken \
               for the node's own";
    blamed(usual(), vec![taken, lost], &[own, name]);
}

#[test]
fn ways_to_peers_are_right_whoever_made_them() {
    let right = vec![
        route(MAIN, "10.5.3.128/25", by(OVERLAY, Some([10, 5, 3, 0]))),
        route(MAIN, "10.5.8.128/25", by(ETH0, Some([192, 0, 2, 8]))),
        // Wider than the peers' own routes, of our own subnet, and of nobody.
        route(MAIN, "10.5.0.0/18", Fate::Lost("blackhole")),
        route(MAIN, "10.5.99.0/24", by(ETH0, None)),
        route(MAIN, "10.5.3.64/26", Fate::Next),
        route(77, "0.0.0.0/0", by(ETH0, None)),
    ];
    blamed(usual(), right, &[]);
    // The direct one is not reached by the tunnel, nor by another gateway.
    let wrong = vec![route(MAIN, "10.5.8.1/32", by(ETH0, Some([192, 0, 2, 9])))];
    blamed(usual(), wrong, &["10.5.8.1 via 192.0.2.9 dev if2 table main"]);
}

#[test]
fn a_rule_is_named_that_loses_or_asks_another_table() {
    let mut lost = rule(100, Action::Lost("blackhole"));
    lost.to = Some(net("10.5.3.0/24"));
    blamed(
        with([lost.clone()]),
        vec![],
        &["100: from all to 10.5.3.0/24 blackhole: what pods send to peer 10.5.3.0/24 is lost by \
           this rule"],
    );
    lost.to = Some(net("10.5.3.64/26"));
    blamed(with([lost]), vec![], &["100: from all to 10.5.3.64/26 blackhole: what pods send to a"]);
    let mut other = rule(100, Action::Lookup(77));
    other.input = Some("cni0".to_owned());
    let default = || route(77, "0.0.0.0/0", by(ETH0, Some([192, 0, 2, 1])));
    let copy = |to| route(77, to, by(OVERLAY, None));
    blamed(
        with([other.clone()]),
        vec![default(), copy("10.5.2.0/24")],
        &["default via 192.0.2.1 dev if2 table 77: what pods send to 4 peers, 10.5.3.0/24 among \
           them, is led elsewhere by this route, whose table the rule `100: from all iif cni0 \
           lookup 77` asks"],
    );
    // The second is asked for none.
    blamed(with([other.clone()]), vec![copy("10.5.0.0/16"), copy("10.5.8.0/24")], &["10.5.8.0/24"]);
    other.priority = 40_000;
    blamed(with([other]), vec![default()], &[]);
}

#[test]
fn rules_about_other_packets_are_not_blamed() {
    let lost = rule(100, Action::Lost("prohibit"));
    for other in [
        RoutingRule { special: true, ..lost.clone() },
        RoutingRule { from: Some(net("10.5.7.0/24")), ..lost.clone() },
        RoutingRule { to: Some(net("10.6.0.0/16")), ..lost.clone() },
        RoutingRule { to: Some(net("10.5.0.0/16")), inverted: true, ..lost.clone() },
        RoutingRule { inverted: true, ..lost.clone() },
        RoutingRule { input: Some("eth0".to_owned()), ..lost.clone() },
        RoutingRule { action: Action::Nothing, ..lost.clone() },
        RoutingRule { action: Action::Lookup(77), ..lost.clone() },
    ] {
        assert!(
            Ways::of(&Tables { rules: with([other.clone()]), routes: vec![] }, &here()).steps.len()
                <= 3
        );
        blamed(with([other]), vec![], &[]);
    }
    for ours in [
        RoutingRule { special: true, inverted: true, ..lost.clone() },
        RoutingRule { from: Some(net("10.5.7.0/24")), inverted: true, ..lost.clone() },
        RoutingRule { from: Some(net("10.5.1.64/26")), ..lost.clone() },
        RoutingRule { from: Some(net("10.0.0.0/8")), ..lost.clone() },
    ] {
        assert_eq!(told(with([ours.clone()]), vec![]).len(), 1, "{ours:?}");
    }
}

fn tcp(port: u16) -> Headers {
    Headers { protocol: Some(6), destination: Some((port, port)), ..Headers::default() }
}

#[test]
fn a_rule_about_some_headers_is_told_with_them() {
    let lost = RoutingRule { headers: tcp(443), ..rule(100, Action::Lost("blackhole")) };
    blamed(
        with([lost.clone()]),
        vec![],
        &["100: from all ipproto tcp dport 443 blackhole: what pods send with ipproto tcp dport \
           443 to 5 peers, 10.5.2.0/24 among them, is lost by this rule"],
    );
    // What it leaves goes on to the next rule.
    let all = rule(200, Action::Lost("prohibit"));
    blamed(with([lost.clone(), all]), vec![], &["100: ", "200: from all prohibit"]);
    let headers = Headers { tos: 0x10, source: Some((1, 9)), ..Headers::default() };
    let other =
        RoutingRule { headers, to: Some(net("10.5.3.0/25")), ..rule(90, Action::Lookup(7)) };
    blamed(
        with([other]),
        vec![route(7, "0.0.0.0/0", by(ETH0, None))],
        &["default dev if2 table 7: what pods send with tos 0x10 sport 1-9 to a part of peer \
           10.5.3.0/24 is led elsewhere by this route, whose table the rule `90: from all to \
           10.5.3.0/25 tos 0x10 sport 1-9 lookup 7` asks"],
    );
    // An earlier rule has decided.
    let any_tcp = Headers { destination: None, ..tcp(443) };
    for (earlier, told) in [(tcp(443), 0), (any_tcp, 0), (tcp(80), 1)] {
        let earlier = RoutingRule { headers: earlier, ..rule(50, Action::Lookup(MAIN)) };
        assert_eq!(self::told(with([earlier, lost.clone()]), vec![]).len(), told);
    }
    // All but these, and what nothing can be said of.
    let skipped = RoutingRule { headers: tcp(443), ..rule(50, Action::Goto(200)) };
    blamed(with([skipped]), vec![], &[]);
    blamed(with([RoutingRule { inverted: true, ..lost.clone() }]), vec![], &[]);
    blamed(with([RoutingRule { special: true, ..lost }]), vec![], &[]);
}

#[test]
fn the_usual_rules_of_others_are_no_detours() {
    let marked = |priority, action| RoutingRule { special: true, ..rule(priority, action) };
    let to_lo = |table| route(table, "0.0.0.0/0", Fate::Taken("local"));
    let away = |table| route(table, "0.0.0.0/0", by(7, None));
    let tailscale = [
        marked(5210, Action::Lookup(MAIN)),
        marked(5230, Action::Lookup(253)),
        marked(5250, Action::Lost("unreachable")),
        rule(5270, Action::Lookup(52)),
    ];
    let theirs = vec![route(52, "100.100.100.100/32", by(7, None))];
    blamed(with(tailscale), theirs, &[]);
    let cilium = [marked(9, Action::Lookup(2004)), marked(10, Action::Lookup(2005))];
    blamed(with(cilium), vec![to_lo(2004), away(2005)], &[]);
    let mut pod = rule(1536, Action::Lookup(2));
    pod.from = Some(net("10.6.3.9/32"));
    let aws = [marked(1024, Action::Lookup(MAIN)), pod];
    blamed(with(aws), vec![away(2)], &[]);
    let vrf = marked(1000, Action::Nothing);
    let calico = RoutingRule { inverted: true, ..marked(99, Action::Lookup(1)) };
    blamed(with([vrf, calico]), vec![route(1, "10.6.0.0/16", by(7, None))], &[]);
}

#[test]
fn a_vpn_that_asks_the_main_table_first_is_no_detour() {
    let mut main = rule(100, Action::Lookup(MAIN));
    main.passes_over = Some(0);
    let mut vpn = rule(101, Action::Lookup(51_820));
    (vpn.special, vpn.inverted) = (true, true);
    let default = || vec![route(51_820, "0.0.0.0/0", by(7, None))];
    blamed(with([main.clone(), vpn.clone()]), default(), &[]);
    assert_eq!(asked(&with([main.clone(), vpn.clone()]), &here()), [LOCAL, MAIN].into());
    blamed(
        with([vpn.clone()]),
        default(),
        &["default dev if7 table 51820: what pods send to 5 peers"],
    );
    // One that passes over the routes to peers, too.
    main.passes_over = Some(28);
    blamed(
        with([main, vpn]),
        default(),
        &["default dev if7 table 51820: what pods send to 5 peers"],
    );
}

#[test]
fn the_first_rule_that_decides_is_the_last_to_be_asked() {
    let lost = rule(100, Action::Lost("unreachable"));
    let skipped = [rule(50, Action::Goto(200)), lost.clone(), rule(200, Action::Nothing)];
    blamed(with(skipped), vec![], &[]);
    let throw =
        vec![route(77, "10.5.3.0/24", Fate::Next), route(77, "0.0.0.0/0", by(OVERLAY, None))];
    let asks = [rule(60, Action::Lookup(77)), lost];
    blamed(
        with(asks),
        throw,
        &[
            "100: from all unreachable: what pods send to peer 10.5.3.0/24",
            "default dev if9 table 77: what pods send to peer 10.5.8.0/24",
        ],
    );
    // Nobody asks for the routes to peers.
    let mut none = usual();
    none.remove(1);
    blamed(
        none,
        vec![],
        &["ip rule: what pods send to 5 peers, 10.5.2.0/24 among them, is lost: no rule"],
    );
}

#[test]
fn many_are_counted() {
    let routes =
        (0..20).map(|last| route(MAIN, &format!("10.5.2.{last}/32"), Fate::Lost("prohibit")));
    let told = told(usual(), routes.collect());
    assert_eq!(told.len(), 9);
    assert!(told.iter().any(|line| line.contains("12 more")), "{told:?}");
}

#[test]
fn thousands_of_peers_and_of_routes_are_looked_through_once() {
    let subnets = (0..5000_u32).map(|number| {
        let first = u32::from(Ipv4Addr::new(10, 128, 0, 0)) + (number << 8);
        Ipv4Network::new(first.into(), 24).unwrap()
    });
    let subnets: Vec<Ipv4Network> = subnets.collect();
    let mut routes: Vec<TableRoute> = subnets
        .iter()
        .map(|subnet| TableRoute { table: 77, destination: *subnet, fate: by(OVERLAY, None) })
        .collect();
    routes.push(route(77, "0.0.0.0/0", by(ETH0, None)));
    let gone = routes.remove(4000).destination;
    let rules = with([rule(100, Action::Lookup(77))]);
    let all = subnets.iter().map(|subnet| peer(&subnet.to_string())).collect();
    let here = Here { network: net("10.0.0.0/8"), ..here() };
    let ways = Ways::of(&Tables { rules, routes }, &here);
    let peers = Peers { all: &all, direct: &BTreeSet::new() };
    let found = ways.detours(peers, &here, |_| "eth0".to_owned());
    let text = format!("{found:?}");
    assert!(text.contains(&format!("peer {gone}")) && !text.contains("among them"), "{text}");
}
