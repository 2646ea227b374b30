//! The rule set as nft text, and what is there of it as nft's JSON. Pure.
//!
//! The rules are those that flannel makes with iptables: pods are masqueraded
//! towards everything outside the overlay, and forwarding from and to the
//! overlay is accepted. They live in a table of our own (flannel's name for
//! it, so that ours replaces flannel's). Each rule's comment has a digest of
//! its text, which is how a rule that somebody changed, moved or removed is
//! found without comparing nft's forms of writing.
//!
//! An `accept` in our table does not overrule a policy of DROP in another:
//! where `ip filter FORWARD` (iptables-nft; docker sets that policy) has it,
//! the same two rules are appended there.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;

use super::Rules;

/// Our table, as flannel calls it.
pub const TABLE: &str = "flannel-ipv4";
/// Flannel's table for IPv6.
pub const TABLE_V6: &str = "flannel-ipv6";
/// Comment of rules that masquerade, as flannel's.
pub(super) const MASQUERADE: &str = "flanneld masq";
/// Comment of rules that accept forwarding, as flannel's.
pub(super) const FORWARD: &str = "flanneld forward";
/// kube-proxy's and others' mark of "do not masquerade again".
pub(super) const MARK: &str = "0x4000";

/// A base chain of our table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: &'static str,
    priority: i32,
    /// Rules with the comment each carries.
    rules: Vec<(String, String)>,
}

pub(super) fn commented(tag: &str, rule: String) -> (String, String) {
    let mut hasher = DefaultHasher::new();
    rule.hash(&mut hasher);
    let comment = format!("{tag} {:08x}", hasher.finish() >> 32);
    (rule, comment)
}

fn chains(rules: &Rules) -> Vec<Chain> {
    let mut chains = Vec::new();
    if rules.masquerade {
        chains.push(Chain {
            name: "postrtg",
            kind: "nat",
            hook: "postrouting",
            priority: 100,
            rules: masquerade(rules),
        });
    }
    if rules.forward {
        chains.push(Chain {
            name: "forward",
            kind: "filter",
            hook: "forward",
            priority: 0,
            rules: forward(rules),
        });
    }
    chains
}

fn masquerade(rules: &Rules) -> Vec<(String, String)> {
    let Rules { network, subnet, .. } = rules;
    let (low, high) = source_ports(rules.vxlan_port);
    let random = if rules.fully_random { " fully-random" } else { "" };
    let outwards = format!("ip saddr {network} ip daddr != 224.0.0.0/4");
    let inwards = format!("ip saddr != {network} ip daddr {network}");
    [
        format!("meta mark & {MARK} == {MARK} return"),
        format!("ip saddr {subnet} ip daddr {network} return"),
        format!("ip saddr {network} ip daddr {subnet} return"),
        format!("ip saddr != {network} ip daddr {subnet} return"),
        format!("{outwards} meta l4proto udp masquerade to :{low}-{high}{random}"),
        format!("{outwards} masquerade{random}"),
        format!("{inwards} meta l4proto udp masquerade to :{low}-{high}{random}"),
        format!("{inwards} masquerade{random}"),
    ]
    .into_iter()
    .map(|rule| commented(MASQUERADE, rule))
    .collect()
}

/// The longer of the two ranges of unprivileged ports beside the tunnel's (a
/// NAT statement takes one range).
pub(super) fn source_ports(vxlan_port: u16) -> (u16, u16) {
    const LOWEST: u16 = 1024;
    match vxlan_port {
        port if port < LOWEST => (LOWEST, u16::MAX),
        port if u16::MAX - port > port - LOWEST => (port + 1, u16::MAX),
        port => (LOWEST, port - 1),
    }
}

fn forward(rules: &Rules) -> Vec<(String, String)> {
    let network = rules.network;
    [format!("ip saddr {network} counter accept"), format!("ip daddr {network} counter accept")]
        .into_iter()
        .map(|rule| commented(FORWARD, rule))
        .collect()
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    table: Option<Vec<FoundChain>>,
    forward: Option<FoundForward>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FoundChain {
    name: String,
    base: Option<(String, String, i32, String)>,
    /// Handle and comment of each rule.
    rules: Vec<(u64, Option<String>)>,
}

impl FoundChain {
    fn ours(&self) -> impl Iterator<Item = u64> {
        let rules = self.rules.iter();
        rules
            .filter(|(_, comment)| comment.as_deref().is_some_and(is_ours))
            .map(|(handle, _)| *handle)
    }

    /// Whether all its rules are ours.
    fn is_ours(&self) -> bool {
        self.ours().count() == self.rules.len()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FoundForward {
    drops: bool,
    /// Handle and comment of our rules in it.
    ours: Vec<(u64, String)>,
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Item {
    chain: Option<ChainItem>,
    rule: Option<RuleItem>,
}

#[derive(Deserialize)]
struct ChainItem {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    hook: Option<String>,
    prio: Option<i32>,
    policy: Option<String>,
}

#[derive(Deserialize)]
struct RuleItem {
    chain: String,
    handle: u64,
    comment: Option<String>,
}

impl Found {
    /// Reads the JSON of `nft -j list table ip flannel-ipv4` and of
    /// `nft -j list chain ip filter FORWARD`; `None` where there is no such thing.
    ///
    /// # Errors
    /// When it is not nft's JSON.
    pub fn parse(table: Option<&str>, forward: Option<&str>) -> Result<Self, serde_json::Error> {
        Ok(Self {
            table: table.map(parse_table).transpose()?,
            forward: forward.map(parse_forward).transpose()?,
        })
    }
}

fn parse_table(json: &str) -> Result<Vec<FoundChain>, serde_json::Error> {
    let listing: Listing = serde_json::from_str(json)?;
    let mut chains: Vec<FoundChain> = Vec::new();
    for item in listing.nftables {
        if let Some(chain) = item.chain {
            let base = match (chain.kind, chain.hook, chain.prio) {
                (Some(kind), Some(hook), Some(prio)) => {
                    Some((kind, hook, prio, chain.policy.unwrap_or_else(|| "accept".to_owned())))
                }
                _ => None,
            };
            chains.push(FoundChain { name: chain.name, base, rules: Vec::new() });
        }
        if let Some(rule) = item.rule
            && let Some(chain) = chains.iter_mut().find(|chain| chain.name == rule.chain)
        {
            chain.rules.push((rule.handle, rule.comment));
        }
    }
    Ok(chains)
}

fn parse_forward(json: &str) -> Result<FoundForward, serde_json::Error> {
    let listing: Listing = serde_json::from_str(json)?;
    let mut forward = FoundForward::default();
    for item in listing.nftables {
        if let Some(chain) = item.chain {
            forward.drops = chain.policy.as_deref() == Some("drop");
        }
        if let Some(rule) = item.rule
            && let Some(comment) = rule.comment.filter(|comment| is_ours(comment))
        {
            forward.ours.push((rule.handle, comment));
        }
    }
    Ok(forward)
}

/// Whether a comment is one that we write. Flannel's rules have no digest in
/// theirs: they are not ours.
pub fn is_ours(comment: &str) -> bool {
    [FORWARD, MASQUERADE]
        .iter()
        .filter_map(|tag| comment.strip_prefix(tag)?.strip_prefix(' '))
        .any(|digest| digest.len() == 8 && digest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The transaction for `nft -f -` that makes our rules exactly these; `None`
/// when they are there.
pub fn script(rules: &Rules, found: &Found) -> Option<String> {
    let mut text = String::new();
    let chains = chains(rules);
    if !found.table.as_ref().is_some_and(|table| same(table, &chains)) {
        write_table(&mut text, &chains);
    }
    if let Some(have) = &found.forward {
        let want = if have.drops && rules.forward { forward(rules) } else { Vec::new() };
        let in_place = have.ours.iter().map(|(_, comment)| comment);
        if !in_place.eq(want.iter().map(|(_, comment)| comment)) {
            delete_ours(&mut text, have);
            for (rule, comment) in want {
                let _ = writeln!(text, "add rule ip filter FORWARD {rule} comment \"{comment}\"");
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

/// The transaction that removes our rules; `None` when there are none. Flannel may
/// use the table already: its rules and chains stay, unless they are to go too.
pub fn removal(found: &Found, flannels_too: bool) -> Option<String> {
    let mut text = String::new();
    match found.table.as_deref() {
        Some(chains) if flannels_too || chains.iter().all(FoundChain::is_ours) => {
            let _ = writeln!(text, "delete table ip {TABLE}");
        }
        Some(chains) => {
            for chain in chains {
                remove_from(&mut text, chain);
            }
        }
        None => {}
    }
    if let Some(forward) = &found.forward {
        delete_ours(&mut text, forward);
    }
    (!text.is_empty()).then_some(text)
}

fn remove_from(text: &mut String, chain: &FoundChain) {
    let name = &chain.name;
    if chain.is_ours() {
        let _ = writeln!(text, "flush chain ip {TABLE} {name}\ndelete chain ip {TABLE} {name}");
        return;
    }
    for handle in chain.ours() {
        let _ = writeln!(text, "delete rule ip {TABLE} {name} handle {handle}");
    }
}

fn delete_ours(text: &mut String, forward: &FoundForward) {
    for (handle, _) in &forward.ours {
        let _ = writeln!(text, "delete rule ip filter FORWARD handle {handle}");
    }
}

fn same(found: &[FoundChain], want: &[Chain]) -> bool {
    found.len() == want.len()
        && want.iter().all(|want| {
            found.iter().any(|found| {
                let base = found.base.as_ref();
                found.name == want.name
                    && base.is_some_and(|(kind, hook, priority, policy)| {
                        (kind.as_str(), hook.as_str(), *priority, policy.as_str())
                            == (want.kind, want.hook, want.priority, "accept")
                    })
                    && found
                        .rules
                        .iter()
                        .map(|(_, comment)| comment.as_deref())
                        .eq(want.rules.iter().map(|(_, comment)| Some(comment.as_str())))
            })
        })
}

/// Adding first makes the deletion succeed whether the table exists or not;
/// all within one transaction.
fn write_table(text: &mut String, chains: &[Chain]) {
    let _ = writeln!(text, "add table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{");
    for chain in chains {
        let Chain { name, kind, hook, priority, rules } = chain;
        let _ = writeln!(text, "  chain {name} {{");
        let _ = writeln!(text, "    type {kind} hook {hook} priority {priority}; policy accept;");
        for (rule, comment) in rules {
            let _ = writeln!(text, "    {rule} comment \"{comment}\"");
        }
        let _ = writeln!(text, "  }}");
    }
    let _ = writeln!(text, "}}");
}

/// The two rules for a legacy iptables FORWARD chain: arguments behind `-A FORWARD`.
pub fn legacy_forward(rules: &Rules) -> Vec<(Vec<String>, String)> {
    let network = rules.network.to_string();
    ["-s", "-d"]
        .into_iter()
        .map(|side| {
            let (matched, comment) = commented(FORWARD, format!("legacy {side} {network}"));
            drop(matched);
            let words = [side, &network, "-m", "comment", "--comment", &comment, "-j", "ACCEPT"];
            (words.iter().map(|word| (*word).to_owned()).collect(), comment)
        })
        .collect()
}

#[cfg(test)]
mod tests {
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

    /// The listing that nft would give for our table.
    fn listing(rules: &Rules) -> serde_json::Value {
        let mut items = vec![serde_json::json!({"metainfo": {"version": "1.0.6"}})];
        for chain in chains(rules) {
            items.push(serde_json::json!({"chain": {"family": "ip", "table": TABLE,
                "name": chain.name, "handle": 1, "type": chain.kind, "hook": chain.hook,
                "prio": chain.priority, "policy": "accept"}}));
            for (handle, (_, comment)) in chain.rules.iter().enumerate() {
                items.push(serde_json::json!({"rule": {"family": "ip", "table": TABLE,
                    "chain": chain.name, "handle": handle, "comment": comment, "expr": []}}));
            }
        }
        serde_json::json!({ "nftables": items })
    }

    fn found(listing: &serde_json::Value) -> Found {
        Found::parse(Some(&listing.to_string()), None).unwrap()
    }

    #[test]
    fn masquerade_is_flannels_list() {
        let text: Vec<String> = masquerade(&rules()).into_iter().map(|(rule, _)| rule).collect();
        assert_eq!(
            text,
            [
                "meta mark & 0x4000 == 0x4000 return",
                "ip saddr 10.5.1.0/24 ip daddr 10.5.0.0/16 return",
                "ip saddr 10.5.0.0/16 ip daddr 10.5.1.0/24 return",
                "ip saddr != 10.5.0.0/16 ip daddr 10.5.1.0/24 return",
                "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 meta l4proto udp \
                 masquerade to :8473-65535 fully-random",
                "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
                "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 meta l4proto udp \
                 masquerade to :8473-65535 fully-random",
                "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
            ]
        );
    }

    #[test]
    fn flags_leave_rules_and_words_out() {
        let plain = Rules { forward: false, fully_random: false, ..rules() };
        let text = script(&plain, &Found::default()).unwrap();
        assert!(!text.contains("random") && !text.contains("chain forward"), "{text}");
        let found = Found::parse(None, Some(&forward_listing("drop", &[]))).unwrap();
        let text = script(&plain, &found).unwrap();
        assert!(!text.contains("FORWARD"), "{text}");
    }

    #[test]
    fn source_ports_leave_the_tunnels_port_out() {
        for (port, range) in [
            (8472, (8473, 65535)),
            (4789, (4790, 65535)),
            (1024, (1025, 65535)),
            (1, (1024, 65535)),
            (65535, (1024, 65534)),
            (60000, (1024, 59999)),
        ] {
            assert_eq!(source_ports(port), range);
            assert!(!(range.0..=range.1).contains(&port));
        }
    }

    #[test]
    fn an_equal_table_is_left_alone() {
        assert_eq!(script(&rules(), &found(&listing(&rules()))), None);
    }

    #[test]
    fn any_difference_rewrites_the_table() {
        let differs = |change: &dyn Fn(&mut Vec<serde_json::Value>)| {
            let mut listing = listing(&rules());
            change(listing["nftables"].as_array_mut().unwrap());
            let script = script(&rules(), &found(&listing)).unwrap();
            assert!(
                script.starts_with("add table ip flannel-ipv4\ndelete table ip flannel-ipv4\n")
            );
        };
        differs(&|items| drop(items.pop()));
        differs(&|items| items.swap(2, 3));
        differs(&|items| items[1]["chain"]["prio"] = 50.into());
        differs(&|items| items[1]["chain"]["policy"] = "drop".into());
        differs(&|items| items[2]["rule"]["comment"] = "something else".into());
        differs(&|items| {
            items.push(serde_json::json!({"rule": {"chain": "forward", "handle": 99}}));
        });
        let other = Rules { subnet: "10.5.2.0/24".parse().unwrap(), ..rules() };
        assert!(script(&other, &found(&listing(&rules()))).is_some());
        let other = Rules { masquerade: false, ..rules() };
        let text = script(&other, &found(&listing(&rules()))).unwrap();
        assert!(!text.contains("postrtg") && text.contains("chain forward"), "{text}");
        assert!(script(&rules(), &Found::default()).is_some());
    }

    fn forward_listing(policy: &str, comments: &[&str]) -> String {
        let mut items = vec![serde_json::json!({"chain": {"family": "ip", "table": "filter",
            "name": "FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 0,
            "policy": policy}})];
        for (handle, comment) in comments.iter().enumerate() {
            items.push(serde_json::json!({"rule": {"chain": "FORWARD", "handle": handle + 7,
                "comment": comment, "expr": []}}));
        }
        serde_json::json!({ "nftables": items }).to_string()
    }

    #[test]
    fn a_forward_policy_of_drop_gets_our_accepts_once() {
        let table = listing(&rules()).to_string();
        let with =
            |forward: &str| script(&rules(), &Found::parse(Some(&table), Some(forward)).unwrap());
        let comments: Vec<String> =
            forward(&rules()).into_iter().map(|(_, comment)| comment).collect();
        assert_eq!(
            with(&forward_listing("drop", &["someone's"])).unwrap(),
            format!(
                "add rule ip filter FORWARD ip saddr 10.5.0.0/16 counter accept comment \"{}\"\n\
                 add rule ip filter FORWARD ip daddr 10.5.0.0/16 counter accept comment \"{}\"\n",
                comments[0], comments[1]
            )
        );
        let both = ["someone's", &comments[0], &comments[1]];
        assert_eq!(with(&forward_listing("drop", &both)), None);
        // One is missing: both are made again, in order.
        let text = with(&forward_listing("drop", &both[..2])).unwrap();
        assert!(text.starts_with("delete rule ip filter FORWARD handle 8\nadd rule"), "{text}");
        assert_eq!(with(&forward_listing("accept", &["someone's"])), None);
        assert_eq!(
            with(&forward_listing("accept", &both)).unwrap(),
            "delete rule ip filter FORWARD handle 8\ndelete rule ip filter FORWARD handle 9\n"
        );
    }

    #[test]
    fn rules_that_flannel_has_made_meanwhile_stay() {
        let (masquerade, forward) = (masquerade(&rules()), forward(&rules()));
        let ours = masquerade.len() + forward.len();
        let removal_of = |change: &dyn Fn(&mut Vec<serde_json::Value>)| {
            let mut listing = listing(&rules());
            change(listing["nftables"].as_array_mut().unwrap());
            removal(&found(&listing), false).unwrap_or_default()
        };
        // All of it is flannel's.
        let text = removal_of(&|items| {
            for item in items {
                if item["rule"].is_object() {
                    item["rule"]["comment"] = serde_json::Value::Null;
                }
            }
        });
        assert_eq!(text, "");
        let foreign = Found::parse(
            Some(
                r#"{"nftables":[{"chain":{"name":"c"}},
            {"rule":{"chain":"c","handle":1}}]}"#,
            ),
            None,
        );
        let text = removal(&foreign.unwrap(), true).unwrap();
        assert_eq!(text, "delete table ip flannel-ipv4\n");
        // One chain is.
        let text = removal_of(&|items| {
            items.retain(|item| item["rule"]["chain"] != "postrtg");
            items.push(serde_json::json!({"rule": {"chain": "postrtg", "handle": 99,
                "comment": MASQUERADE}}));
        });
        assert_eq!(
            text,
            "flush chain ip flannel-ipv4 forward\ndelete chain ip flannel-ipv4 forward\n"
        );
        // Both wrote into the same chains.
        let text = removal_of(&|items| {
            for chain in ["postrtg", "forward"] {
                items.push(serde_json::json!({"rule": {"chain": chain, "handle": 99}}));
            }
        });
        assert_eq!(text.matches("delete rule ip flannel-ipv4").count(), ours, "{text}");
        assert!(!text.contains("handle 99") && !text.contains("chain ip"), "{text}");
    }

    #[test]
    fn removal_takes_only_what_is_ours() {
        let comment = &forward(&rules())[0].1;
        let forward =
            forward_listing("drop", &["someone's", FORWARD, comment, "flanneld forwarding"]);
        let found = Found::parse(Some(&listing(&rules()).to_string()), Some(&forward)).unwrap();
        assert_eq!(
            removal(&found, false).unwrap(),
            "delete table ip flannel-ipv4\ndelete rule ip filter FORWARD handle 9\n"
        );
        assert_eq!(removal(&Found::default(), true), None);
    }
}
