//! Listings of nft 1.0.6 (the rules are in `testdata/nft.rules`).

mod any;

use serde_json::json;

use super::*;
use crate::firewall::packet_rules::exempt::tests::{overlay, resolved};
use crate::firewall::packet_rules::exempt::{Effect, describe};
use crate::firewall::packet_rules::iptables;
use crate::firewall::packet_rules::matches::target;
use crate::firewall::packet_rules::walk::findings;

const LISTING: &[u8] = include_bytes!("../testdata/nft.json");
const OF_IPTABLES: &[u8] = include_bytes!("../testdata/iptables-nft.json");
const SAVED: &str = include_str!("../testdata/iptables.save");

fn read(json: &[u8]) -> (RuleSet, BTreeSet<(Family, String)>) {
    let mut listing = Listing::default();
    listing.add(json).unwrap();
    listing.finish()
}

/// Only this chain's rules of a rule set, each for itself: its text, what of it
/// matters, what it keeps off the fast path.
fn one_by_one(mut rules: RuleSet, chain: &str) -> Vec<(String, String, String)> {
    let at = rules.chains.iter().position(|one| one.name == chain).unwrap();
    let all = std::mem::take(&mut rules.chains[at].rules);
    let mut told: Vec<(String, String, String)> = Vec::new();
    for rule in all {
        // What only alters packets is of no interest for those of pods.
        if rule.selects.is_none() && rule.acts.is_none() && rule.note.is_none() {
            continue;
        }
        let Some(text) = rule.text.clone() else { continue };
        rules.chains[at].rules = vec![rule];
        let found = resolved(&findings(&rules, overlay()));
        let line = found.rules.iter().find(|line| line.rule == *text);
        let line = line.map_or((String::new(), String::new()), |line| {
            let shown = if line.effect == Effect::KernelPath { &line.matches[..] } else { "-" };
            (line.why.clone(), shown.to_owned())
        });
        told.push((text.to_string(), line.0, line.1));
    }
    told.dedup();
    told
}

#[test]
fn rules_of_nftables() {
    let told = one_by_one(read(LISTING).0, "forward");
    let expected = [
        ("udp dport 5300 limit rate over 100/second drop", "limit", "UDP to port 5300"),
        (
            "iifname lo oifname { cni0, eth* } ip saddr @nets tcp dport { 80, 443, 1000-2000 } \
             quota over 5 mbytes drop",
            "",
            "",
        ),
        ("tcp flags syn limit rate 1/second accept", "", ""),
        (
            r#"tcp dport 21 ct helper set "ftp-std""#,
            "ct helper",
            "TCP to port 21, with the answers",
        ),
        ("ct bytes > 100000 drop", "ct bytes", "TCP and UDP, with the answers"),
        ("ct original packets > 10 drop", "ct packets", "TCP and UDP, with the answers"),
        (
            "update @dyn { ip saddr limit rate over 10/second } drop",
            "limit in a set",
            "TCP and UDP",
        ),
        ("meter m { ip saddr limit rate 10/second } accept", "limit in a set", "TCP and UDP"),
        ("ip saddr @lims drop", "limit in a set", "TCP and UDP from 10.5.1.1/32"),
        ("numgen mod 2 mode random offset 0 0 drop", "numgen", "TCP and UDP"),
        ("numgen mod 3 mode inc offset 0 vmap { 0,accept, 1,drop }", "numgen", "TCP and UDP"),
        (r#"limit name "lim" drop"#, "limit", "TCP and UDP"),
        (r#"quota name "q" drop"#, "quota", "TCP and UDP"),
        (r#"log prefix "x ""#, "log", "-"),
        (r#"limit rate 3/minute log prefix "denied ""#, "log", "-"),
        ("@th,64,8 1 drop", "payload", "TCP and UDP"),
        ("@ih,0,32 1 drop", "payload", "TCP and UDP"),
        ("meta length 1000-1500 drop", "meta length", "TCP and UDP"),
        ("ip length > 1000 drop", "ip length", "TCP and UDP"),
        (
            "tcp dport 80 synproxy flags timestamp,sack-perm mss 1460 wscale 7",
            "synproxy",
            "TCP to port 80, with the answers",
        ),
        (
            "meta l4proto tcp ip saddr != 10.0.0.0/8 ip daddr 10.5.0.0/16 limit rate 1 \
             kbytes/second drop",
            "limit",
            "TCP",
        ),
        ("ip saddr 10.5.1.0/24 limit rate 1/second drop", "limit", "TCP and UDP from 10.5.1.0/24"),
        ("iif lo iifkind veth limit rate 1/second drop", "", ""),
        ("th dport 53 limit rate 1/second drop", "limit", "TCP and UDP to port 53"),
        ("meta random > 10 drop", "meta random", "TCP and UDP"),
    ];
    for (told, expected) in told.iter().zip(&expected) {
        assert_eq!((&*told.0, &*told.1, &*told.2), *expected);
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
}

#[test]
fn chains_of_all_families_and_none_that_nothing_leads_to() {
    let (rules, opaque) = read(LISTING);
    assert!(rules.notrack && opaque.is_empty());
    let found = findings(&rules, overlay());
    let places: BTreeSet<(Family, String)> =
        found.rules.iter().filter_map(|one| one.place.clone()).map(|at| (at.0, at.2)).collect();
    let named = |family, names: &[&str]| {
        names.iter().map(|name| (family, (*name).to_owned())).collect::<Vec<_>>()
    };
    let expected: BTreeSet<(Family, String)> = [
        named(Family::Inet, &["a", "forward"]),
        named(Family::Netdev, &["eg", "in", "in1"]),
        named(Family::Ip, &["d"]),
    ]
    .concat()
    .into_iter()
    .collect();
    assert_eq!(places, expected);
    assert!(found.rules.iter().all(|one| one.place.is_none() || one.handle.is_some()));
}

#[test]
fn devices_come_from_the_kernel_or_from_nft() {
    let key = (Family::Netdev, "n".to_owned(), "in".to_owned());
    let mut listing = Listing::new(Devices::from([(key, vec!["veth*".to_owned()])]));
    listing.add(LISTING).unwrap();
    let chain = |name: &str, dev: &Value| {
        json!({"chain": {"family": "netdev", "table": "n", "name": name, "type": "filter",
            "hook": "ingress", "prio": 0, "policy": "accept", "dev": dev}})
    };
    let more = json!({"nftables": [chain("x", &json!("eth0")), chain("y", &json!(["a", "b"]))]});
    listing.add(more.to_string().as_bytes()).unwrap();
    let (rules, _) = listing.finish();
    let devices = |name: &str| {
        let of = |chain: &&Chain| chain.family == Family::Netdev && chain.name == name;
        let chain = rules.chains.iter().find(of).unwrap();
        chain.base.as_ref().unwrap().devices.clone()
    };
    assert_eq!(devices("in"), Names::of(["veth*"]));
    assert_eq!(devices("in1"), Names::Any, "nobody says");
    assert_eq!(devices("x"), Names::of(["eth0"]));
    assert_eq!(devices("y"), Names::of(["a", "b"]));
}

#[test]
fn names_of_iptables_matches_are_enough_to_be_careful() {
    let (rules, opaque) = read(OF_IPTABLES);
    assert_eq!(opaque, BTreeSet::from([(Family::Ip, "filter".to_owned())]));
    let told = one_by_one(rules, "FORWARD");
    let of = |part: &str| {
        let found = told.iter().find(|(text, ..)| text.contains(part));
        found.map(|(_, why, shown)| format!("{why}: {shown}")).unwrap_or_default()
    };
    for (part, expected) in [
        ("match hashlimit", ""),
        ("match connbytes", "connbytes: TCP, with the answers"),
        ("match quota", "quota: UDP from ports 0-52; UDP from ports 54-65535"),
        ("match string", "string: TCP"),
        ("match u32", "u32: TCP and UDP"),
        ("match statistic", "statistic: TCP and UDP"),
        ("match length", "length: TCP and UDP"),
        ("target NFQUEUE", "NFQUEUE: TCP and UDP"),
        ("target TCPMSS", ""),
        ("target SYNPROXY", "SYNPROXY: TCP to port 80, with the answers"),
        ("log prefix", "log: -"),
    ] {
        let found = of(part);
        let found = if found == ": " { String::new() } else { found };
        assert_eq!(found, expected, "{part}");
    }
}

#[test]
fn iptables_tells_more_than_nft_shows() {
    let exempt = |rules: &RuleSet| {
        let found = resolved(&findings(rules, overlay())).exemptions;
        found.iter().map(describe).collect::<Vec<String>>()
    };
    let only = |rules: &mut RuleSet, part: &str| {
        for chain in &mut rules.chains {
            chain.rules.retain(|rule| rule.text.as_ref().is_some_and(|text| text.contains(part)));
        }
    };
    // The ports of multiport are hidden from nft.
    let mut hidden = read(OF_IPTABLES).0;
    only(&mut hidden, "connbytes");
    assert_eq!(exempt(&hidden), ["TCP, with the answers"]);
    let mut shown = hidden.clone();
    let mut saved = iptables::read(SAVED);
    only(&mut saved, "connbytes");
    shown.replace_table(Family::Ip, "filter", saved);
    assert_eq!(
        exempt(&shown),
        [
            "TCP to port 21, with the answers",
            "TCP to port 80, with the answers",
            "TCP to ports 1000-2000, with the answers",
        ]
    );
}

fn forward_with(extra: &[Value], rules: &[Value]) -> Vec<String> {
    let chain = json!({"chain": {"family": "ip", "table": "t", "name": "f", "type": "filter",
        "hook": "forward", "prio": 0, "policy": "accept"}});
    let rules = rules.iter().map(|expr| {
        json!({"rule": {"family": "ip", "table": "t", "chain": "f", "handle": 7, "expr": expr}})
    });
    let items: Vec<Value> = extra.iter().cloned().chain([chain]).chain(rules).collect();
    let (rules, _) = read(json!({ "nftables": items }).to_string().as_bytes());
    resolved(&findings(&rules, overlay())).exemptions.iter().map(describe).collect()
}

fn forward(rule: Value) -> Vec<String> {
    forward_with(&[], &[rule])
}

fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

#[test]
fn comparisons_of_all_kinds() {
    let limit = || json!({"limit": {"rate": 1, "burst": 5, "per": "second"}});
    let with = |op: &str, left: Value, right: Value| {
        let condition = json!({"match": {"op": op, "left": left, "right": right}});
        forward(json!([condition, limit(), {"drop": null}]))
    };
    let dport = || field("tcp", "dport");
    assert_eq!(with("<", dport(), json!(1024)), ["TCP to ports 0-1023"]);
    assert_eq!(with(">", dport(), json!(1024)), ["TCP to ports 1025-65535"]);
    assert_eq!(with("<=", dport(), json!(1024)), ["TCP to ports 0-1024"]);
    assert_eq!(with(">=", dport(), json!(1024)), ["TCP to ports 1024-65535"]);
    assert_eq!(with("<", dport(), json!(0)), [""; 0]);
    assert_eq!(with("==", dport(), json!("http-alt")), ["TCP"], "a name of a port");
    assert_eq!(
        with("==", dport(), json!({"set": [{"elem": {"val": 7, "comment": "x"}}]})),
        ["TCP to port 7"]
    );
    assert_eq!(with("==", dport(), json!("@gone")), ["TCP"]);
    assert_eq!(with("==", field("ip", "protocol"), json!({"set": ["tcp", "icmp"]})), ["TCP"]);
    assert_eq!(with("!=", json!({"meta": {"key": "l4proto"}}), json!(6)), ["UDP"]);
    assert_eq!(with("==", json!({"meta": {"key": "nfproto"}}), json!("ipv6")), [""; 0]);
    assert_eq!(with("!=", json!({"meta": {"key": "nfproto"}}), json!("ipv6")), ["TCP and UDP"]);
    assert_eq!(with("==", json!({"meta": {"key": "protocol"}}), json!("arp")), [""; 0]);
    assert_eq!(with("==", field("icmp", "type"), json!("echo-request")), [""; 0]);
    assert_eq!(with("==", field("ip6", "saddr"), json!("::1")), [""; 0]);
    let names = json!({"set": ["veth*", "cni0"]});
    assert_eq!(with("==", json!({"meta": {"key": "iifname"}}), names), ["TCP and UDP, outwards"]);
    assert_eq!(with("!=", json!({"meta": {"key": "iifname"}}), json!("cni0")), ["TCP and UDP"]);
    let state = || json!({"ct": {"key": "state"}});
    assert_eq!(with("in", state(), json!(["new", "related"])), ["UDP"]);
    assert_eq!(with("!=", state(), json!("established")), ["UDP"]);
    assert_eq!(with("!", state(), json!(["established", "related", "new"])), ["TCP and UDP"]);
    let both = json!({"concat": [field("ip", "daddr"), field("udp", "dport")]});
    let pairs = json!({"set": [
        {"concat": [{"prefix": {"addr": "10.5.2.0", "len": 24}}, 53]},
        {"concat": ["10.5.3.1", {"range": [60, 61]}]},
    ]});
    assert_eq!(
        with("==", both, pairs),
        [
            "UDP to 10.5.2.0/24 port 53",
            "UDP to 10.5.2.0/24 ports 60-61",
            "UDP to 10.5.3.1/32 port 53",
            "UDP to 10.5.3.1/32 ports 60-61",
        ]
    );
}

#[test]
fn flags_of_tcp() {
    let flags = || field("tcp", "flags");
    let masked = |mask: Value| json!({"&": [flags(), mask]});
    let with = |op: &str, left: Value, right: Value| {
        forward(json!([{"match": {"op": op, "left": left, "right": right}}, {"drop": null}]))
    };
    // A drop alone is a decision of conntrack's kind unless it is about data.
    assert_eq!(with("in", flags(), json!("syn")), [""; 0]);
    assert_eq!(with("==", masked(json!(["fin", "syn"])), json!(["fin", "syn"])), [""; 0]);
    assert_eq!(with("==", masked(json!({"|": ["fin", "syn"]})), json!(0)), [""; 0]);
    assert_eq!(with("==", flags(), json!({"set": ["syn", ["syn", "ack"]]})), [""; 0]);
    assert_eq!(with("in", flags(), json!("psh")), ["TCP"]);
    assert_eq!(with("!", flags(), json!(["psh", "urg"])), ["TCP"]);
    assert_eq!(with("in", flags(), json!({"new": "kind"})), ["TCP"]);
}

#[test]
fn verdict_maps_lead_where_they_say() {
    let a = json!({"chain": {"family": "ip", "table": "t", "name": "a", "handle": 9}});
    let in_a = json!({"rule": {"family": "ip", "table": "t", "chain": "a", "expr": [
        {"limit": "x"}, {"drop": null}]}});
    let map = |elements: Value| {
        json!({"map": {"family": "ip", "table": "t", "name": "vm", "map": "verdict",
            "type": "inet_service", "elem": elements}})
    };
    let jump = || json!({"jump": {"target": "a"}});
    let by_name = json!([{"vmap": {"key": field("udp", "dport"), "data": "@vm"}}]);
    let few = map(json!([[53, jump()], [54, {"accept": null}]]));
    let found = forward_with(&[few, a.clone(), in_a.clone()], std::slice::from_ref(&by_name));
    assert_eq!(found, ["UDP to port 53"]);
    let many: Vec<Value> = (0..2000).map(|port| json!([port, jump()])).collect();
    let found = forward_with(&[map(json!(many)), a.clone(), in_a.clone()], &[by_name]);
    assert_eq!(found, ["TCP and UDP"]);
    // What is accepted as established comes no further.
    let states = json!([{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [
        ["established", {"accept": null}], ["related", {"accept": null}],
        ["invalid", {"drop": null}]]}}}]);
    let limit = json!([{"limit": {"rate": 1, "per": "second"}}, {"drop": null}]);
    assert_eq!(forward_with(&[], &[states, limit]), ["UDP"]);
    let unknown = json!([{"vmap": {"key": field("udp", "dport"), "data": "@gone"}}]);
    assert_eq!(forward_with(&[], &[unknown]), ["TCP and UDP"]);
}

#[test]
fn what_nobody_knows_counts() {
    for rule in [
        json!([{"brandnew": {"a": 1}}]),
        json!([{"a": 1, "b": 2}]),
        json!("text"),
        json!([7]),
        json!([{"match": {"op": "==", "left": {"brandnew": 1}, "right": 1}}, {"drop": null}]),
        json!([{"match": {"op": "==", "left": {"meta": {"key": "brandnew"}}, "right": 1}},
            {"drop": null}]),
        json!([{"match": {"op": "==", "left": {"ct": {"key": "brandnew"}}, "right": 1}},
            {"drop": null}]),
        json!([{"xt": {"type": "match", "name": "brandnew"}}, {"drop": null}]),
        json!([{"xt": {"type": "target", "name": "BRANDNEW"}}]),
        json!([{"xt": 1}]),
        json!([{"jump": 1}]),
        json!([{"mangle": {"key": {"payload": {"protocol": "ip", "field": "id"}}, "value": 1}}]),
        json!([{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"numgen": {"mod": 2}}}}]),
    ] {
        assert_eq!(forward(rule.clone()), ["TCP and UDP"], "{rule}");
    }
    // Its other matches are read all the same.
    let dport = json!({"match": {"op": "==", "left": field("udp", "dport"), "right": 5}});
    assert_eq!(forward(json!([dport, {"brandnew": 1}])), ["UDP to port 5"]);
}

#[test]
fn what_belongs_to_the_flow_does_not_count() {
    for rule in [
        json!([{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}]),
        json!([{"mangle": {"key": {"meta": {"key": "priority"}}, "value": "1:20"}}]),
        json!([{"mangle": {"key": {"ct": {"key": "label"}}, "value": 1}}]),
        json!([{"mangle": {"key": {"payload": {"protocol": "ip", "field": "ttl"}}, "value": 5}}]),
        json!([{"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}},
            "value": {"rt": {"key": "mtu"}}}}]),
        json!([{"match": {"op": "==", "left": {"meta": {"key": "hour"}}, "right": "8:00"}},
            {"drop": null}]),
        json!([{"ct count": {"val": 20}}, {"drop": null}]),
        json!([{"counter": {"packets": 1, "bytes": 2}}]),
        json!([{"notrack": null}]),
        json!([{"flow": {"op": "add", "flowtable": "@ft"}}]),
        json!([{"set": {"op": "add", "elem": field("ip", "saddr"), "set": "@s"}}]),
        json!([{"log": null}]),
        json!([]),
        Value::Null,
    ] {
        assert_eq!(forward(rule.clone()), [""; 0], "{rule}");
    }
}

#[test]
fn what_is_no_listing_is_an_error() {
    for bytes in [&b""[..], b"{}", b"[]", b"{\"nftables\": 1}", b"{\"nftables\": [}", b"\xff"] {
        assert!(Listing::default().add(bytes).is_err(), "{bytes:?}");
    }
    let half = &LISTING[..LISTING.len() / 2];
    assert!(Listing::default().add(half).is_err(), "a listing that breaks off");
}

#[test]
fn the_type_of_the_destination_tells_the_node_from_others() {
    let read = |flags: Value, right: Value| {
        let left = json!({"fib": {"result": "type", "flags": flags}});
        let rule = json!([{"match": {"op": "!=", "left": left, "right": right}}, {"drop": null}]);
        let context = Context { sets: &Sets::default(), family: Family::Ip, table: "t" };
        let rule = statement::read(&rule, &context).remove(0).finish().unwrap();
        (rule.matches.targets, rule.exact)
    };
    assert_eq!(read(json!(["daddr"]), json!("local")), (target::OTHERS, true));
    assert_eq!(read(json!("daddr"), json!("local")), (target::OTHERS, true));
    let set = json!({"set": ["local", "broadcast"]});
    assert_eq!(read(json!(["daddr"]), set), (target::OTHERS, false));
    for other in [json!(["daddr", "iif"]), json!(["saddr"])] {
        assert_eq!(read(other, json!("local")), (target::ALL, false));
    }
}
