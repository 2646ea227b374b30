//! A listing of iptables 1.8.9, each rule for itself.

use super::*;
use crate::firewall::packet_rules::exempt::tests::{overlay, resolved};
use crate::firewall::packet_rules::exempt::{Effect, describe};
use crate::firewall::packet_rules::walk::findings;

const SAVED: &str = include_str!("../testdata/iptables.save");

/// What one rule of a table keeps off the fast path, and why.
fn judged(table: &str, rule: &str) -> (String, Vec<String>) {
    let chains = [
        ":PREROUTING ACCEPT [0:0]",
        ":INPUT ACCEPT [0:0]",
        ":FORWARD ACCEPT [0:0]",
        ":OUTPUT ACCEPT [0:0]",
        ":POSTROUTING ACCEPT [0:0]",
        ":syn-flood - [0:0]",
    ];
    let text = format!("*{table}\n{}\n{rule}\nCOMMIT\n", chains.join("\n"));
    let found = resolved(&findings(&read(&text), overlay()));
    let why = found.rules.first().map(|line| match line.effect {
        Effect::KernelPath => line.why.clone(),
        _ => "-".to_owned(),
    });
    (why.unwrap_or_default(), found.exemptions.iter().map(describe).collect())
}

const ALL: &[&str] = &["TCP and UDP"];

/// A part of each rule of the listing, what of it matters, and what that keeps off the
/// fast path.
const EXPECTED: &[(&str, &str, &[&str])] = &[
    // raw
    ("CT --helper ftp", "ct helper", &["TCP to port 21, with the answers"]),
    ("-j CT --notrack", "", &[]),
    ("-j NOTRACK", "", &[]),
    // mangle
    ("-j TEE", "TEE", &["TCP and UDP to 1.2.3.4/32"]),
    ("-j TCPMSS", "", &[]),
    ("-j DSCP", "", &[]),
    ("-j MARK", "", &[]),
    ("-j CLASSIFY", "", &[]),
    ("-j TTL", "", &[]),
    // filter
    ("--ctstate RELATED,ESTABLISHED -j ACCEPT", "", &[]),
    ("SYN -j syn-flood", "", &[]),
    ("--hashlimit-name foo", "", &[]),
    (
        "-m connbytes",
        "connbytes",
        &[
            "TCP to port 21, with the answers",
            "TCP to port 80, with the answers",
            "TCP to ports 1000-2000, with the answers",
        ],
    ),
    ("-m quota", "quota", &["UDP from ports 0-52", "UDP from ports 54-65535"]),
    ("denied: -j DROP", "-", &[]),
    ("-j NFLOG", "-", &[]),
    ("-m string", "string", &["TCP"]),
    ("-m u32", "u32", ALL),
    ("-m statistic", "statistic", ALL),
    ("-m recent --set", "", &[]),
    ("-m recent --update", "", &[]),
    ("-m length", "length", ALL),
    ("-j NFQUEUE", "NFQUEUE", ALL),
    ("-m connlimit", "", &[]),
    ("a \\\"quoted\\\" one -j", "", &[]),
    ("-m tcpmss", "", &[]),
    ("-g syn-flood", "", &[]),
    ("-p icmp", "", &[]),
    ("-m addrtype", "limit", ALL),
    ("-m bpf", "bpf", ALL),
    ("-m ecn", "ecn", ALL),
    ("-m dscp", "", &[]),
    ("-m tos", "", &[]),
    ("-m ttl", "", &[]),
    ("-m physdev", "", &[]),
    ("255.0.255.0", "limit", &["TCP and UDP from 10.0.0.0/8"]),
    ("-f -j DROP", "", &[]),
    ("-j SYNPROXY", "SYNPROXY", &["TCP to port 80, with the answers"]),
    ("-j IDLETIMER", "IDLETIMER", ALL),
    ("-j RATEEST", "RATEEST", ALL),
    ("-m helper", "", &[]),
    ("-m connlabel", "", &[]),
    ("--tcp-option 8", "tcp option", &["TCP"]),
    ("-m cpu", "", &[]),
    ("--hashlimit-name -j", "-", &[]),
    ("-A syn-flood", "", &[]),
];

#[test]
fn every_rule_of_a_listing() {
    let tables = saved::parse(SAVED);
    let rules = tables
        .iter()
        .filter(|table| table.name != "nat")
        .flat_map(|table| table.rules.iter().map(|rule| (table.name.as_str(), rule.as_str())));
    let mut tried = vec![false; EXPECTED.len()];
    for (table, rule) in rules {
        let at = EXPECTED.iter().position(|(part, ..)| rule.contains(part));
        let at = at.unwrap_or_else(|| panic!("nothing is expected of {rule}"));
        tried[at] = true;
        let (_, why, exempt) = EXPECTED[at];
        let found = judged(table, rule);
        assert_eq!((found.0.as_str(), found.1.as_slice()), (why, &owned(exempt)[..]), "{rule}");
    }
    let missing: Vec<&str> =
        EXPECTED.iter().zip(&tried).filter(|(_, tried)| !**tried).map(|(one, _)| one.0).collect();
    assert_eq!(missing, [""; 0], "not in the listing");
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn the_whole_listing_at_once() {
    let rules = read(SAVED);
    assert!(rules.notrack);
    assert!(rules.chains.iter().all(|chain| &*chain.table != "nat"));
    let syn_flood = rules.chains.iter().find(|chain| chain.name == "syn-flood").unwrap();
    assert_eq!(syn_flood.base, None);
    assert!(!resolved(&findings(&rules, overlay())).exemptions.is_empty());
}

#[test]
fn words_that_look_like_options() {
    for rule in [
        r#"-A FORWARD -p udp -m comment --comment "-p tcp -j" -m limit --limit 1/sec -j DROP"#,
        "-A FORWARD -p udp -m comment --comment -j -m limit --limit 1/sec -j DROP",
        "-A FORWARD -p udp -m hashlimit --hashlimit-upto 1/sec --hashlimit-name -s -j DROP",
        "-A FORWARD -p udp -m limit --limit 1/sec -j DROP --nflog-prefix -p",
        "-A FORWARD -p udp -m string --string --dport --algo bm -j DROP",
    ] {
        assert_eq!(judged("filter", rule).1, ["UDP"], "{rule}");
    }
}

#[test]
fn addresses_and_ports_of_all_forms() {
    let with = |matches: &str| {
        judged("filter", &format!("-A FORWARD {matches} -m limit --limit 1/sec -j DROP")).1
    };
    assert_eq!(with("-s 10.5.1.1/32"), ["TCP and UDP from 10.5.1.1/32"]);
    assert_eq!(with("-s 10.5.1.1"), ["TCP and UDP from 10.5.1.1/32"]);
    assert_eq!(with("! -s 10.5.0.0/255.0.255.0"), ["TCP and UDP"], "a part of a larger one");
    assert_eq!(with("-s 10.5.1.0/33"), ["TCP and UDP"], "no network");
    let range = "-m iprange --src-range 10.5.1.2-10.5.1.3";
    assert_eq!(with(range), ["TCP and UDP from 10.5.1.2/31"]);
    assert_eq!(with("-p udp -m udp --dport :53"), ["UDP to ports 0-53"]);
    assert_eq!(with("-p udp -m udp ! --dport 1:"), ["UDP to port 0"]);
    assert_eq!(with("-p udp -m udp --dport dns"), ["UDP"]);
    assert_eq!(with("-p udp -m multiport --ports 5,6"), ["UDP"], "of either side");
    assert_eq!(with("-p 17"), ["UDP"]);
    assert_eq!(with("-m conntrack --ctstate DNAT"), ["TCP and UDP"]);
    assert_eq!(with("-m conntrack ! --ctstate NEW"), ["TCP and UDP"]);
    assert_eq!(with("-m conntrack ! --ctstate RELATED,ESTABLISHED"), ["UDP"]);
    let counted = "-m set --match-set some src --packets-gt 9 -j DROP";
    assert_eq!(judged("filter", &format!("-A FORWARD {counted}")).0, "set counters");
}

#[test]
fn unknown_targets_count() {
    assert_eq!(judged("filter", "-A FORWARD -p tcp -j BRANDNEW").1, ["TCP"]);
    assert_eq!(judged("filter", "-A FORWARD -p tcp -m brandnew -j DROP").1, ["TCP"]);
    assert_eq!(judged("filter", "-A FORWARD -p tcp -m brandnew -j LOG").0, "-");
}
