//! The rules by which nodes translate and change connections, in both rule
//! languages. Pure.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::backend::Backend;
use super::kind::{ALL, By, End, Kind, MAPPED};
use super::world::Side;

/// DSCP of requests and of answers behind the rules.
pub const DSCP: [u8; 2] = [0x0a, 0x12];
/// TTL behind the rules: of no packet's that is not odd.
pub const TTL: u8 = 240;
/// Mark of [`Kind::Mark`] and of [`Kind::Everything`].
pub const MARKS: [u32; 2] = [0x10, 0x20];
/// Minor number of the class 1: that is the priority of [`Kind::Priority`] and of
/// [`Kind::Everything`].
pub const CLASSES: [u16; 2] = [0x20, 0x30];
/// Says, as kube-proxy does with another bit, what is to be masqueraded behind a
/// DNAT.
const MARKED: u32 = 0x8000;

/// One rule, of any language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// New connections from here to there go to another end.
    Dnat { from: Ipv4Addr, to: End, end: End, masquerade: bool },
    /// New connections between these get an address of the node.
    Masquerade { from: Ipv4Addr, to: End },
    /// New connections from this end get another.
    Snat { from: End, to: End, end: End },
    /// Forwarded packets with this destination or source port are changed.
    Change { by: Match, change: Change },
}

/// Which packets are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    /// Those that the node's pod sends to this port.
    Requests(Ipv4Addr, u16),
    /// Those that come to the node's pod from this port.
    Answers(Ipv4Addr, u16),
    /// Those to this port.
    To(u16),
    /// Those from this port.
    From(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Dscp(u8),
    Ttl(u8),
    Mark(u32),
    Priority(u16),
}

/// The rules of a node.
fn rules(side: Side) -> Vec<Rule> {
    let pod = side.pod();
    let mut rules = Vec::new();
    for kind in ALL {
        // Of the connections that this node's pod opens, and of those that the
        // other opens, what is this node's part.
        let client = if kind.by() == By::Server { side.other() } else { side };
        let (from, to) = (client.pod(), (client.other().pod(), kind.port()));
        if let Some(service) = kind.service(client) {
            let masquerade = kind.masquerades();
            rules.push(Rule::Dnat { from, to: service, end: to, masquerade });
        } else if kind.masquerades() {
            rules.push(Rule::Masquerade { from, to });
        }
        if kind == Kind::SourceNat {
            rules.extend(MAPPED.map(|port| {
                let ends = kind.ends(side, port, Backend::Vxlan);
                Rule::Snat { from: ends.client, to, end: ends.source }
            }));
        }
        let changes = |by, changes: Vec<Change>| {
            changes.into_iter().map(move |change| Rule::Change { by, change })
        };
        let port = kind.port();
        rules.extend(changes(Match::Requests(pod, port), written(kind, DSCP[0])));
        rules.extend(changes(Match::Answers(pod, port), written(kind, DSCP[1])));
        rules.extend(changes(Match::To(port), carried(kind)));
        rules.extend(changes(Match::From(port), carried(kind)));
    }
    rules
}

/// What is written into packets of a kind.
fn written(kind: Kind, dscp: u8) -> Vec<Change> {
    let mut changes = Vec::new();
    changes.extend(kind.marks_dscp().then_some(Change::Dscp(dscp)));
    changes.extend((kind == Kind::Ttl).then_some(Change::Ttl(TTL)));
    changes
}

/// What packets of a kind carry besides.
fn carried(kind: Kind) -> Vec<Change> {
    match kind {
        Kind::Mark => vec![Change::Mark(MARKS[0])],
        Kind::Priority => vec![Change::Priority(CLASSES[0])],
        Kind::Everything => vec![Change::Mark(MARKS[1]), Change::Priority(CLASSES[1])],
        _ => Vec::new(),
    }
}

/// Protocols that the rules are about; each rule stands there for both.
const PROTOCOLS: [&str; 2] = ["tcp", "udp"];

/// A node's rules for nft.
pub fn nftables(side: Side) -> String {
    let [mut before, mut behind, mut way] = [const { String::new() }; 3];
    for rule in rules(side) {
        let chain = match rule {
            Rule::Dnat { .. } => &mut before,
            Rule::Masquerade { .. } | Rule::Snat { .. } => &mut behind,
            Rule::Change { .. } => &mut way,
        };
        for protocol in PROTOCOLS {
            let _ = writeln!(chain, "{}", nft(rule, protocol));
        }
    }
    format!(
        "table ip kinds {{
            chain before {{
                type nat hook prerouting priority dstnat + 5;
                {before}
            }}
            chain behind {{
                type nat hook postrouting priority srcnat - 5;
                {behind}
                meta mark and {MARKED:#x} == 0 return
                meta mark set meta mark xor {MARKED:#x} masquerade
            }}
            chain change {{
                type filter hook forward priority mangle;
                {way}
            }}
        }}"
    )
}

fn nft(rule: Rule, protocol: &str) -> String {
    let towards = |from: Ipv4Addr, to: End| {
        format!("ip saddr {from} ip daddr {} {protocol} dport {}", to.0, to.1)
    };
    match rule {
        Rule::Dnat { from, to, end, masquerade } => {
            let mark = format!("meta mark set meta mark or {MARKED:#x} ");
            let mark = if masquerade { mark } else { String::new() };
            format!("{} {mark}dnat to {}:{}", towards(from, to), end.0, end.1)
        }
        Rule::Masquerade { from, to } => format!("{} masquerade", towards(from, to)),
        Rule::Snat { from, to, end } => format!(
            "{} {protocol} sport {} snat to {}:{}",
            towards(from.0, to),
            from.1,
            end.0,
            end.1
        ),
        Rule::Change { by, change } => {
            let by = match by {
                Match::Requests(pod, port) => format!("ip saddr {pod} {protocol} dport {port}"),
                Match::Answers(pod, port) => format!("ip daddr {pod} {protocol} sport {port}"),
                Match::To(port) => format!("{protocol} dport {port}"),
                Match::From(port) => format!("{protocol} sport {port}"),
            };
            let change = match change {
                Change::Dscp(value) => format!("ip dscp set {value:#x}"),
                Change::Ttl(value) => format!("ip ttl set {value}"),
                Change::Mark(bit) => format!("meta mark set meta mark or {bit:#x}"),
                Change::Priority(minor) => format!("meta priority set 1:{minor:x}"),
            };
            format!("{by} {change}")
        }
    }
}

/// A node's rules for iptables-restore.
pub fn iptables(side: Side) -> String {
    let [mut nat, mut mangle] = [const { String::new() }; 2];
    for rule in rules(side) {
        let table = if matches!(rule, Rule::Change { .. }) { &mut mangle } else { &mut nat };
        for protocol in PROTOCOLS {
            table.push_str(&xtables(rule, protocol));
        }
    }
    format!(
        "*nat
:KINDS-POSTROUTING - [0:0]
{nat}-A POSTROUTING -j KINDS-POSTROUTING
-A KINDS-POSTROUTING -m mark ! --mark {MARKED:#x}/{MARKED:#x} -j RETURN
-A KINDS-POSTROUTING -j MARK --set-xmark {MARKED:#x}/0x0
-A KINDS-POSTROUTING -j MASQUERADE
COMMIT
*mangle
{mangle}COMMIT
"
    )
}

fn xtables(rule: Rule, protocol: &str) -> String {
    let towards =
        |from: Ipv4Addr, to: End| format!("-s {from} -d {} -p {protocol} --dport {}", to.0, to.1);
    match rule {
        Rule::Dnat { from, to, end, masquerade } => {
            let matches = towards(from, to);
            let mark =
                format!("-A PREROUTING {matches} -j MARK --set-xmark {MARKED:#x}/{MARKED:#x}\n");
            let mark = if masquerade { mark } else { String::new() };
            format!("{mark}-A PREROUTING {matches} -j DNAT --to-destination {}:{}\n", end.0, end.1)
        }
        Rule::Masquerade { from, to } => {
            format!("-A POSTROUTING {} -j MASQUERADE\n", towards(from, to))
        }
        Rule::Snat { from, to, end } => format!(
            "-A POSTROUTING {} --sport {} -j SNAT --to-source {}:{}\n",
            towards(from.0, to),
            from.1,
            end.0,
            end.1
        ),
        Rule::Change { by, change } => {
            let by = match by {
                Match::Requests(pod, port) => format!("-s {pod} -p {protocol} --dport {port}"),
                Match::Answers(pod, port) => format!("-d {pod} -p {protocol} --sport {port}"),
                Match::To(port) => format!("-p {protocol} --dport {port}"),
                Match::From(port) => format!("-p {protocol} --sport {port}"),
            };
            let change = match change {
                Change::Dscp(value) => format!("DSCP --set-dscp {value:#x}"),
                Change::Ttl(value) => format!("TTL --ttl-set {value}"),
                Change::Mark(bit) => format!("MARK --set-xmark {bit:#x}/{bit:#x}"),
                Change::Priority(minor) => format!("CLASSIFY --set-class 1:{minor:x}"),
            };
            format!("-A FORWARD {by} -j {change}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{LEFT, RIGHT};

    #[test]
    fn both_languages_have_every_rule_of_both_protocols() {
        for side in [LEFT, RIGHT] {
            let rules = rules(side);
            let nftables = nftables(side);
            let iptables = iptables(side);
            for rule in &rules {
                for protocol in PROTOCOLS {
                    assert!(nftables.contains(&nft(*rule, protocol)), "{rule:?}");
                    assert!(iptables.contains(&xtables(*rule, protocol)), "{rule:?}");
                }
            }
            let services = rules.iter().filter(|rule| matches!(rule, Rule::Dnat { .. }));
            assert_eq!(services.count(), ALL.iter().filter_map(|kind| kind.service(side)).count());
        }
    }

    #[test]
    fn a_node_translates_for_its_pod_and_publishes_for_the_other() {
        let text = nftables(LEFT);
        let own = Kind::Service.service(LEFT).unwrap().0;
        let (left, right) = (LEFT.pod(), RIGHT.pod());
        assert!(
            text.contains(&format!("ip saddr {left} ip daddr {own} tcp dport 80 dnat to {right}:"))
        );
        let published = Kind::PublishedByPeer.service(RIGHT).unwrap().0;
        assert_eq!(published, LEFT.address(201));
        assert!(text.contains(&format!(
            "ip saddr {right} ip daddr {published} udp dport 80 dnat to {left}:"
        )));
    }
}
