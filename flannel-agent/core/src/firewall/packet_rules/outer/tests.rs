//! From rules as they are listed to those that matter for the tunnel's packets.

use super::*;
use crate::firewall::packet_rules::devices::tests::node;
use crate::firewall::packet_rules::exempt::tests::overlay;
use crate::firewall::packet_rules::iptables;
use crate::firewall::packet_rules::nft::Listing;
use crate::firewall::packet_rules::ruleset::RuleSet;
use crate::firewall::packet_rules::walk;

const PEER: u32 = u32::from_be_bytes([192, 0, 2, 7]);

fn found(rules: &RuleSet) -> Vec<OuterRule> {
    let has_peer = |addresses: &Addresses| !addresses.and(&Addresses::prefix(PEER, 32)).is_empty();
    super::rules(&walk::findings(rules, overlay()), &node(false), has_peer)
}

/// Rules of iptables' table `filter`, or with another table in front (`mangle: ...`).
fn iptables(policy: &str, rules: &[&str]) -> Vec<(String, bool)> {
    let table = |name: &str| {
        let mut text = format!("*{name}\n");
        for chain in ["PREROUTING", "INPUT", "FORWARD", "POSTROUTING"] {
            text.push_str(&format!(":{chain} ACCEPT [0:0]\n"));
        }
        let policy = if name == "filter" { policy } else { "ACCEPT" };
        text.push_str(&format!(":OUTPUT {policy} [0:0]\n:one - [0:0]\n"));
        for rule in rules {
            match rule.split_once(": ") {
                Some((other, rule)) if other == name => text.push_str(&format!("-A {rule}\n")),
                None if name == "filter" => text.push_str(&format!("-A {rule}\n")),
                _ => {}
            }
        }
        text + "COMMIT\n"
    };
    let text = table("filter") + &table("mangle") + &table("nat") + &table("raw");
    found(&iptables::read(&text)).into_iter().map(|rule| (rule.does, rule.marked)).collect()
}

fn accepting(rules: &[&str]) -> Vec<(String, bool)> {
    iptables("ACCEPT", rules)
}

fn of_nft(policy: &str, rule: &str) -> Vec<(String, bool)> {
    let json = format!(
        r#"{{"nftables":[
            {{"chain":{{"family":"inet","table":"t","name":"out","type":"filter","hook":"output",
                        "prio":0,"policy":"{policy}"}}}},
            {{"rule":{{"family":"inet","table":"t","chain":"out","handle":4,"expr":{rule}}}}}]}}"#
    );
    let mut listing = Listing::new(Default::default());
    listing.add(json.as_bytes()).unwrap();
    found(&listing.finish().0).into_iter().map(|rule| (rule.does, rule.marked)).collect()
}

#[test]
fn what_drops_or_changes_tunnel_packets_matters() {
    for (rule, does) in [
        ("OUTPUT -p udp -m udp --dport 8472 -j DROP", "DROP"),
        ("OUTPUT -d 192.0.2.0/24 -j REJECT", "REJECT"),
        ("OUTPUT -p udp -m udp --dport 8000:9000 -m limit --limit 1/sec -j DROP", "DROP"),
        ("OUTPUT -p udp -m set --match-set bad dst -j DROP", "DROP"),
        ("OUTPUT -o eth0 -p udp -j NFQUEUE --queue-num 1", "NFQUEUE"),
        ("mangle: POSTROUTING -p udp -m udp --dport 8472 -j DSCP --set-dscp 0x2e", "DSCP"),
        ("mangle: OUTPUT -p udp -m udp --dport 8472 -j MARK --set-xmark 0x1/0x1", "MARK"),
        ("mangle: POSTROUTING -o eth0 -j CLASSIFY --set-class 1:10", "CLASSIFY"),
        ("mangle: OUTPUT -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff", "CONNMARK"),
        ("mangle: POSTROUTING -j TTL --ttl-set 5", "TTL"),
    ] {
        assert_eq!(accepting(&[rule]), [(does.to_owned(), false)], "{rule}");
    }
    // By way of another chain.
    let jump = ["OUTPUT -p udp -j one", "one -m udp --dport 8472 -j DROP"];
    assert_eq!(accepting(&jump), [("DROP".to_owned(), false)]);
}

#[test]
fn what_leaves_them_as_they_are_does_not() {
    for rule in [
        "OUTPUT -p udp -m udp --dport 53 -j DROP",
        "OUTPUT -p tcp -j DROP",
        "OUTPUT -d 169.254.169.254/32 -j DROP",
        "OUTPUT -s 192.0.2.99/32 -j DROP",
        "OUTPUT ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP",
        "OUTPUT -o lo -p udp -j DROP",
        "OUTPUT -i eth0 -j DROP",
        "OUTPUT -m owner --uid-owner 1000 -j DROP",
        "OUTPUT -m conntrack --ctstate INVALID -j DROP",
        "OUTPUT -p udp -m udp --dport 8472 -j ACCEPT",
        "OUTPUT -p udp -m udp --dport 8472 -m limit --limit 1/sec -j LOG",
        "FORWARD -p udp -m udp --dport 8472 -j DROP",
        "INPUT -p udp -m udp --dport 8472 -j DROP",
        "mangle: OUTPUT -p udp -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff",
        "raw: OUTPUT -p udp -m udp --dport 8472 -j CT --notrack",
        "nat: POSTROUTING -o eth0 -j MASQUERADE",
    ] {
        assert_eq!(accepting(&[rule]), [], "{rule}");
    }
}

#[test]
fn an_earlier_rule_may_let_them_pass() {
    let accept = "OUTPUT -p udp -m udp --dport 8472 -j ACCEPT";
    let drop = "OUTPUT -j DROP";
    assert_eq!(accepting(&[accept, drop]), []);
    assert_eq!(accepting(&[drop, accept]), [("DROP".to_owned(), false)]);
    // It holds for some of them only.
    for some in ["-d 192.0.2.0/28", "-m limit --limit 9/sec", "-m conntrack --ctstate ESTABLISHED"]
    {
        let accept = format!("OUTPUT {some} -j ACCEPT");
        assert_eq!(accepting(&[&accept, drop]), [("DROP".to_owned(), false)], "{some}");
    }
    let both = "OUTPUT -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT";
    assert_eq!(accepting(&[both, drop]), []);
    // Some may be kept from conntrack.
    let notrack = "raw: OUTPUT -j NOTRACK";
    assert_eq!(accepting(&[notrack, both, drop]), [("DROP".to_owned(), false)]);
}

#[test]
fn a_policy_drops_what_no_rule_has_accepted() {
    assert_eq!(iptables("DROP", &[]), [("policy".to_owned(), false)]);
    assert_eq!(iptables("DROP", &["OUTPUT -p tcp -j ACCEPT"]), [("policy".to_owned(), false)]);
    assert_eq!(iptables("DROP", &["OUTPUT -p udp -m udp --dport 8472 -j ACCEPT"]), []);
    assert_eq!(iptables("DROP", &["OUTPUT -j one", "one -p udp -j ACCEPT"]), []);
    assert_eq!(of_nft("drop", r#"[{"accept":null}]"#), []);
    assert_eq!(of_nft("drop", r#"[{"counter":null}]"#), [("policy".to_owned(), false)]);
}

#[test]
fn rules_for_marked_packets_are_told_apart() {
    // As kubelet has it on every node.
    let kubelet = "OUTPUT -m mark --mark 0x8000/0x8000 -j DROP";
    assert_eq!(accepting(&[kubelet]), [("DROP".to_owned(), true)]);
    for any in ["! --mark 0x8000/0x8000", "--mark 0x0/0xff", "--mark 0"] {
        let rule = format!("OUTPUT -m mark {any} -j DROP");
        assert_eq!(accepting(&[&rule]), [("DROP".to_owned(), false)], "{any}");
    }
    // That of the connection is another one.
    let connection = "OUTPUT -m connmark --mark 0x1 -j DROP";
    assert_eq!(accepting(&[connection]), [("DROP".to_owned(), false)]);
    let mark = |comparison: &str| format!(r#"[{{"match":{comparison}}},{{"drop":null}}]"#);
    let masked = r#"{"op":"==","left":{"&":[{"meta":{"key":"mark"}},32768]},"right":32768}"#;
    let other = r#"{"op":"!=","left":{"meta":{"key":"mark"}},"right":7}"#;
    let some = r#"{"op":"!=","left":{"meta":{"key":"mark"}},"right":0}"#;
    for (comparison, marked) in [(masked, true), (other, false), (some, true)] {
        let found = of_nft("accept", &mark(comparison));
        assert_eq!(found, [("drop".to_owned(), marked)], "{comparison}");
    }
}

#[test]
fn nftables_says_it_otherwise() {
    let set_dscp =
        r#"[{"mangle":{"key":{"payload":{"protocol":"ip","field":"dscp"}},"value":46}}]"#;
    assert_eq!(of_nft("accept", set_dscp), [("dscp set".to_owned(), false)]);
    let set_mark = r#"[{"mangle":{"key":{"meta":{"key":"mark"}},"value":1}}]"#;
    assert_eq!(of_nft("accept", set_mark), [("meta mark set".to_owned(), false)]);
    let owner =
        r#"[{"match":{"op":"!=","left":{"meta":{"key":"skuid"}},"right":0}},{"drop":null}]"#;
    assert_eq!(of_nft("accept", owner), []);
    let loopback =
        r#"[{"match":{"op":"==","left":{"meta":{"key":"oifname"}},"right":"lo"}},{"drop":null}]"#;
    assert_eq!(of_nft("accept", loopback), []);
    let connection = r#"[{"mangle":{"key":{"ct":{"key":"mark"}},"value":1}}]"#;
    assert_eq!(of_nft("accept", connection), []);
}
