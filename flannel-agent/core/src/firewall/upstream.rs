//! What flannel's versions leave in iptables. Pure.
//!
//! Since 0.20 the rules are in chains of flannel's name, before that they are
//! straight in `POSTROUTING` and `FORWARD`, at first without comments: those
//! are taken for flannel's only where the whole set is there with the values of
//! this node.

use ipnetwork::Ipv4Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;
use super::saved::Table;

/// The nat chain of 0.5.
const FIRST: &str = "FLANNEL";

/// A node's place in an overlay network: what rules are made from.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct Place {
    /// The overlay network.
    #[schemars(with = "String")]
    pub network: Ipv4Network,
    /// The node's subnet.
    #[schemars(with = "String")]
    pub subnet: Ipv4Network,
}

/// Whether a rule's target is this chain.
pub(super) fn jumps_to(rule: &str, chain: &str) -> bool {
    let words: Vec<&str> = rule.split_whitespace().collect();
    words.windows(2).any(|pair| matches!(pair[0], "-j" | "-g") && pair[1] == chain)
}

/// Lines for `iptables-restore` that remove flannel's rules outside the chains
/// of 0.20 and later.
pub(super) fn removal(table: &Table, nodes: &[Place]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for node in nodes {
        let (base, sets) = match table.name.as_str() {
            "nat" => ("POSTROUTING", masquerade_sets(*node)),
            "filter" => ("FORWARD", vec![forward_set(*node)]),
            _ => continue,
        };
        for set in sets {
            let found: Vec<&str> = table
                .rules_of(base)
                .filter(|rule| set.iter().any(|wanted| *wanted == bare(rule)))
                .collect();
            let whole = set.iter().all(|wanted| found.iter().any(|rule| bare(rule) == *wanted));
            for rule in found {
                let line = format!("-D {base} {rule}");
                if (whole || is_flannels(rule)) && !lines.contains(&line) {
                    lines.push(line);
                }
            }
        }
        if table.name == "nat" {
            // Both nodes may be of one network.
            let more = first(table, *node);
            if !more.iter().any(|line| lines.contains(line)) {
                lines.extend(more);
            }
        }
    }
    lines
}

/// 0.5: the chain `FLANNEL` with what leads to it.
fn first(table: &Table, Place { network, .. }: Place) -> Vec<String> {
    let chain = [format!("-d {network} -j ACCEPT"), "! -d 224.0.0.0/4 -j MASQUERADE".to_owned()];
    let jump = format!("-s {network} -j {FIRST}");
    let inwards = format!("! -s {network} -d {network} -j MASQUERADE");
    if !table.rules_of(FIRST).eq(chain.iter().map(String::as_str)) {
        return Vec::new();
    }
    let mut lines: Vec<String> = table
        .rules_of("POSTROUTING")
        .filter(|rule| *rule == jump || *rule == inwards)
        .map(|rule| format!("-D POSTROUTING {rule}"))
        .collect();
    let jumps = table.rules.iter().filter(|rule| jumps_to(rule, FIRST)).count();
    if jumps == lines.iter().filter(|line| jumps_to(line, FIRST)).count() {
        lines.extend([format!("-F {FIRST}"), format!("-X {FIRST}")]);
    }
    lines
}

/// Of 0.11 and later without chains: the four rules and their order since.
fn masquerade_sets(Place { network, subnet }: Place) -> Vec<Vec<String>> {
    vec![vec![
        format!("-s {network} -d {network} -j RETURN"),
        format!("-s {network} ! -d 224.0.0.0/4 -j MASQUERADE"),
        format!("! -s {network} -d {subnet} -j RETURN"),
        format!("! -s {network} -d {network} -j MASQUERADE"),
    ]]
}

fn forward_set(Place { network, .. }: Place) -> Vec<String> {
    vec![format!("-s {network} -j ACCEPT"), format!("-d {network} -j ACCEPT")]
}

fn is_flannels(rule: &str) -> bool {
    [rules::MASQUERADE, rules::FORWARD]
        .iter()
        .any(|tag| rule.contains(&format!("--comment \"{tag}\"")))
}

/// A rule without flannel's comment and without the flag that newer
/// iptables adds.
fn bare(rule: &str) -> String {
    let mut rule = rule.to_owned();
    for tag in [rules::MASQUERADE, rules::FORWARD] {
        rule = rule.replace(&format!(" -m comment --comment \"{tag}\""), "");
    }
    rule.replace(" --random-fully", "")
}

#[cfg(test)]
mod tests {
    use super::super::saved;
    use super::*;

    const NODE: &str = "10.5.1.0/24";

    fn node() -> Place {
        Place { network: "10.5.0.0/16".parse().unwrap(), subnet: NODE.parse().unwrap() }
    }

    const STRAIGHT: &str = "*nat\n:POSTROUTING ACCEPT [0:0]\n\
        -A POSTROUTING -s 10.5.0.0/16 -d 10.5.0.0/16 -j RETURN\n\
        -A POSTROUTING -s 10.5.0.0/16 -o eth9 -j MASQUERADE\n\
        -A POSTROUTING -s 10.5.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\n\
        -A POSTROUTING ! -s 10.5.0.0/16 -d 10.5.1.0/24 -j RETURN\n\
        -A POSTROUTING ! -s 10.5.0.0/16 -d 10.5.0.0/16 -j MASQUERADE --random-fully\nCOMMIT\n";

    #[test]
    fn a_whole_set_goes_and_what_resembles_it_stays() {
        let lines = removal(&saved::parse(STRAIGHT)[0], &[node(), node()]);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines.iter().all(|line| !line.contains("eth9")));
        let other = Place { subnet: "10.5.2.0/24".parse().unwrap(), ..node() };
        assert_eq!(removal(&saved::parse(STRAIGHT)[0], &[other]), [""; 0]);
        let part = STRAIGHT.replace("-d 10.5.1.0/24 -j RETURN", "-d 10.9.0.0/16 -j RETURN");
        assert_eq!(removal(&saved::parse(&part)[0], &[node()]), [""; 0]);
    }

    #[test]
    fn the_first_chain_goes_only_with_flannels_rules() {
        let text = "*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL - [0:0]\n\
            -A POSTROUTING -s 10.5.0.0/16 -j FLANNEL\n\
            -A POSTROUTING ! -s 10.5.0.0/16 -d 10.5.0.0/16 -j MASQUERADE\n\
            -A FLANNEL -d 10.5.0.0/16 -j ACCEPT\n\
            -A FLANNEL ! -d 224.0.0.0/4 -j MASQUERADE\nCOMMIT\n";
        assert_eq!(
            removal(&saved::parse(text)[0], &[node()]),
            [
                "-D POSTROUTING -s 10.5.0.0/16 -j FLANNEL",
                "-D POSTROUTING ! -s 10.5.0.0/16 -d 10.5.0.0/16 -j MASQUERADE",
                "-F FLANNEL",
                "-X FLANNEL",
            ]
        );
        let moved = Place { subnet: "10.5.7.0/24".parse().unwrap(), ..node() };
        assert_eq!(removal(&saved::parse(text)[0], &[node(), moved]).len(), 4);
        let other = text.replace("224.0.0.0/4", "225.0.0.0/8");
        assert_eq!(removal(&saved::parse(&other)[0], &[node()]), [""; 0]);
    }
}
