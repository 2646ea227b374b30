//! The rule set as text for `iptables-restore --noflush`. Pure.
//!
//! Chains and jumps are those of flannel, and so is the order. A restore
//! changes a table in one step: declaring a chain empties it, so the new rules
//! take the old ones' place and no packet meets a table without either.
//! As in nft, a digest in each comment tells whether a rule is as it was
//! written; the jumps have flannel's own comments, so that flannel finds them
//! when it comes back.

use std::fmt::Write;

use ipnetwork::Ipv4Network;

use super::Rules;
use super::names::{Mine, Names};
use super::rules::{FORWARD, MARK, MASQUERADE, commented, is_ours, source_ports};
use super::saved::Table;
use super::upstream::{self, Place};

/// A chain of ours and the base chain that jumps to it.
struct Chain<'a> {
    table: &'static str,
    base: &'static str,
    name: &'a str,
    tag: &'static str,
}

fn chains(names: &Names) -> [Chain<'_>; 2] {
    [
        Chain { table: "nat", base: "POSTROUTING", name: &names.postrouting, tag: MASQUERADE },
        Chain { table: "filter", base: "FORWARD", name: &names.forward, tag: FORWARD },
    ]
}

impl Chain<'_> {
    /// The jump, behind `-A BASE `.
    fn jump(&self) -> String {
        format!("-m comment --comment \"{}\" -j {}", self.tag, self.name)
    }

    /// The wanted rules: match, target and the comment between them.
    fn rules(&self, rules: &Rules) -> Vec<(String, String)> {
        let list = match self.table {
            "nat" if rules.masquerade => masquerade(rules),
            "filter" if rules.forward => forward(rules),
            _ => Vec::new(),
        };
        list.into_iter()
            .map(|(matches, target)| {
                let (_, comment) = commented(self.tag, format!("{matches} -j {target}"));
                let rule = format!("{matches} -m comment --comment \"{comment}\" -j {target}");
                (rule, comment)
            })
            .collect()
    }
}

fn masquerade(rules: &Rules) -> Vec<(String, String)> {
    let Rules { network, subnet, .. } = rules;
    let (low, high) = source_ports(rules.vxlan_port);
    let random = if rules.fully_random { " --random-fully" } else { "" };
    let outwards = format!("-s {network} ! -d 224.0.0.0/4");
    let inwards = format!("! -s {network} -d {network}");
    let give_back = || "RETURN".to_owned();
    let masquerade = format!("MASQUERADE{random}");
    let ported = format!("MASQUERADE --to-ports {low}-{high}{random}");
    vec![
        (format!("-m mark --mark {MARK}/{MARK}"), give_back()),
        (format!("-s {subnet} -d {network}"), give_back()),
        (format!("-s {network} -d {subnet}"), give_back()),
        (format!("! -s {network} -d {subnet}"), give_back()),
        (format!("{outwards} -p udp"), ported.clone()),
        (outwards, masquerade.clone()),
        (format!("{inwards} -p udp"), ported),
        (inwards, masquerade),
    ]
}

fn forward(rules: &Rules) -> Vec<(String, String)> {
    ["-s", "-d"].map(|side| (format!("{side} {}", rules.network), "ACCEPT".to_owned())).into()
}

/// The input of `iptables-restore --noflush` that makes our rules exactly
/// these and removes what flannel left for these nodes; `None` when all is so.
/// Without rules, ours go too; without nodes as well, flannel's stay. Chains whose
/// rules are about networks of others stay in any case, and ours are beside them.
pub fn plan(
    found: &[Table],
    rules: Option<&Rules>,
    nodes: &[Place],
    mine: &Mine,
) -> Option<String> {
    let flannels = Names::flannels();
    let beside = mine.networks().map(Names::beside).collect::<Vec<_>>();
    let none = Table::default();
    let table_of =
        |chain: &Chain<'_>| found.iter().find(|table| table.name == chain.table).unwrap_or(&none);
    let moved = chains(&flannels).iter().any(|chain| is_anothers(chain, table_of(chain), mine))
        || beside.iter().any(|names| chains(names).iter().any(|at| table_of(at).has(at.name)));
    let own = rules.filter(|_| moved).map(|rules| Names::beside(rules.network));
    let mut text = String::new();
    for place in 0..2 {
        let table = table_of(&chains(&flannels)[place]);
        let mut all = Vec::new();
        for names in std::iter::once(&flannels).chain(&beside) {
            let chain = &chains(names)[place];
            let wanted = rules.filter(|_| names == own.as_ref().unwrap_or(&flannels));
            if !is_anothers(chain, table, mine) {
                all.extend(lines(chain, table, wanted, rules.is_some() || !nodes.is_empty()));
            }
        }
        all.extend(upstream::removal(table, nodes));
        if !all.is_empty() {
            let _ = writeln!(text, "*{}\n{}\nCOMMIT", table_name(place), all.join("\n"));
        }
    }
    (!text.is_empty()).then_some(text)
}

fn table_name(place: usize) -> &'static str {
    ["nat", "filter"][place]
}

/// Whether a chain is another overlay network's.
fn is_anothers(chain: &Chain<'_>, table: &Table, mine: &Mine) -> bool {
    let named = |rule: &str| {
        let words: Vec<&str> = rule.split_whitespace().collect();
        let networks = words.windows(2).filter(|pair| matches!(pair[0], "-s" | "-d"));
        networks.filter_map(|pair| pair[1].parse::<Ipv4Network>().ok()).collect::<Vec<_>>()
    };
    let named: Vec<Ipv4Network> = table.rules_of(chain.name).flat_map(named).collect();
    mine.excludes(named.iter().filter(|network| !network.ip().is_multicast()))
}

/// `flannels_too`: rules of flannel in the chain give way to ours, or go with them.
fn lines(
    chain: &Chain<'_>,
    table: &Table,
    rules: Option<&Rules>,
    flannels_too: bool,
) -> Vec<String> {
    let Chain { base, name, .. } = chain;
    let want = rules.map(|rules| chain.rules(rules)).unwrap_or_default();
    if !flannels_too {
        let (ours, others): (Vec<&str>, Vec<&str>) =
            table.rules_of(name).partition(|rule| comment(rule).is_some_and(is_ours));
        if !others.is_empty() {
            return ours.iter().map(|rule| format!("-D {name} {rule}")).collect();
        }
    }
    let mut lines = Vec::new();
    let jump = chain.jump();
    let mut jumps = 0;
    let mut old = Vec::new();
    for rule in table.rules_of(base) {
        if rule == jump && !want.is_empty() && jumps == 0 {
            jumps += 1;
        } else if upstream::jumps_to(rule, name) {
            old.push(format!("-D {base} {rule}"));
        }
    }
    if want.is_empty() {
        if table.has(name) {
            old.push(format!("-F {name}"));
            // Somebody else's jump keeps the chain.
            let start = format!("-A {base} ");
            let mut others = table.rules.iter().filter(|rule| !rule.starts_with(&start));
            if !others.any(|rule| upstream::jumps_to(rule, name)) {
                old.push(format!("-X {name}"));
            }
        }
    } else {
        let comments = table.rules_of(name).map(comment);
        if !comments.eq(want.iter().map(|(_, comment)| Some(comment.as_str()))) {
            lines.push(format!(":{name} - [0:0]"));
            lines.extend(want.iter().map(|(rule, _)| format!("-A {name} {rule}")));
        }
        if jumps == 0 {
            lines.push(format!("-A {base} {jump}"));
        }
    }
    lines.extend(old);
    lines
}

/// The comment of a rule as printed.
fn comment(rule: &str) -> Option<&str> {
    rule.split_once("--comment \"")?.1.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::super::saved;
    use super::*;

    fn rules() -> Rules {
        Rules {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.1.0/24".parse().unwrap(),
            masquerade: true,
            forward: true,
            fully_random: true,
            vxlan_port: 8472,
        }
    }

    fn made(found: &[Table], rules: Option<&Rules>, nodes: &[Place]) -> Option<String> {
        plan(found, rules, nodes, &Mine::default())
    }

    #[test]
    fn another_networks_chains_stay() {
        let other = Rules {
            network: "10.6.0.0/16".parse().unwrap(),
            subnet: "10.6.1.0/24".parse().unwrap(),
            ..rules()
        };
        let [mine, theirs] =
            [rules().network, other.network].map(|net| [net].into_iter().collect());
        let first = plan(&[], Some(&other), &[], &theirs).unwrap();
        let node = Place { network: rules().network, subnet: rules().subnet };
        let there = saved::parse(&first);
        assert_eq!(plan(&there, None, &[node], &mine), None);
        assert_eq!(plan(&there, None, &[], &mine), None);
        let text = plan(&there, Some(&rules()), &[node], &mine).unwrap();
        let chain = Names::beside(rules().network).postrouting;
        assert!(text.contains(&format!("-j {chain}\n")), "{text}");
        assert!(
            !text.contains("10.6.") && !text.contains("-D ") && !text.contains("-F "),
            "{text}"
        );
        // Both are there.
        let mut both = saved::parse(&first);
        for (table, ours) in both.iter_mut().zip(saved::parse(&text)) {
            table.chains.extend(ours.chains);
            table.rules.extend(ours.rules);
        }
        assert_eq!(plan(&both, Some(&rules()), &[node], &mine), None);
        assert_eq!(plan(&both, Some(&other), &[], &theirs), None);
        // The other one has gone: ours stay where they are, and go from there.
        let alone = saved::parse(&text);
        assert_eq!(plan(&alone, Some(&rules()), &[node], &mine), None);
        let text = plan(&both, None, &[], &mine).unwrap();
        assert_eq!(text.matches("-X FLANNEL-").count(), 2, "{text}");
        assert!(text.contains(&format!("-X {chain}\n")), "{text}");
    }

    fn without_comments(text: &str) -> Vec<String> {
        let comment = regex::Regex::new(" -m comment --comment \"[^\"]*\"").unwrap();
        text.lines().map(|line| comment.replace(line, "").into_owned()).collect()
    }

    #[test]
    fn the_list_is_flannels() {
        let text = made(&[], Some(&rules()), &[]).unwrap();
        assert_eq!(
            without_comments(&text),
            [
                "*nat",
                ":FLANNEL-POSTRTG - [0:0]",
                "-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN",
                "-A FLANNEL-POSTRTG -s 10.5.1.0/24 -d 10.5.0.0/16 -j RETURN",
                "-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.1.0/24 -j RETURN",
                "-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.1.0/24 -j RETURN",
                "-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -p udp -j MASQUERADE --to-ports 8473-65535 --random-fully",
                "-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
                "-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -p udp -j MASQUERADE --to-ports 8473-65535 --random-fully",
                "-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -j MASQUERADE --random-fully",
                "-A POSTROUTING -j FLANNEL-POSTRTG",
                "COMMIT",
                "*filter",
                ":FLANNEL-FWD - [0:0]",
                "-A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT",
                "-A FLANNEL-FWD -d 10.5.0.0/16 -j ACCEPT",
                "-A FORWARD -j FLANNEL-FWD",
                "COMMIT",
            ]
        );
        let plain = Rules { fully_random: false, ..rules() };
        assert!(!made(&[], Some(&plain), &[]).unwrap().contains("random"));
    }

    #[test]
    fn what_is_written_is_left_alone_and_goes_with_the_flags() {
        let written = saved::parse(&made(&[], Some(&rules()), &[]).unwrap());
        assert_eq!(made(&written, Some(&rules()), &[]), None);
        let off = Rules { forward: false, masquerade: false, ..rules() };
        let text = made(&written, Some(&off), &[]).unwrap();
        assert_eq!(
            without_comments(&text),
            [
                "*nat",
                "-D POSTROUTING -j FLANNEL-POSTRTG",
                "-F FLANNEL-POSTRTG",
                "-X FLANNEL-POSTRTG",
                "COMMIT",
                "*filter",
                "-D FORWARD -j FLANNEL-FWD",
                "-F FLANNEL-FWD",
                "-X FLANNEL-FWD",
                "COMMIT",
            ]
        );
        assert_eq!(made(&written, None, &[]), Some(text));
        assert_eq!(made(&[], None, &[]), None);
    }

    #[test]
    fn chains_that_flannel_uses_stay() {
        let node = Place { network: rules().network, subnet: rules().subnet };
        let written = made(&[], Some(&rules()), &[]).unwrap();
        let digest = regex::Regex::new(" [0-9a-f]{8}\"").unwrap();
        let flannels = saved::parse(&digest.replace_all(&written, "\""));
        assert_eq!(made(&flannels, None, &[]), None);
        assert!(made(&flannels, None, &[node]).unwrap().contains("-X FLANNEL-POSTRTG"));
        // Flannel has put its rules behind ours.
        let mut mixed = saved::parse(&written);
        for (table, flannels) in mixed.iter_mut().zip(&flannels) {
            let own = |rule: &&String| rule.starts_with("-A FLANNEL-");
            table.rules.extend(flannels.rules.iter().filter(own).cloned());
        }
        let text = made(&mixed, None, &[]).unwrap();
        assert_eq!(text.matches("-D FLANNEL-").count(), 10, "{text}");
        assert!(!text.contains("-X") && !text.contains("-F ") && !text.contains("-D P"), "{text}");
        assert_eq!(digest.find_iter(&text).count(), 10, "{text}");
    }
}
