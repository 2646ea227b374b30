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

use std::collections::BTreeSet;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use ipnetwork::Ipv4Network;
use serde::Deserialize;

use super::Rules;
use super::names::{Mine, Names};

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
    /// Networks that the rules name.
    named: BTreeSet<Ipv4Network>,
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
    /// Handle, comment and networks of agents' rules in it.
    ours: Vec<(u64, String, BTreeSet<Ipv4Network>)>,
}

impl FoundForward {
    fn of<'a>(&'a self, mine: &'a Mine) -> impl Iterator<Item = (u64, &'a str)> {
        let rules = self.ours.iter().filter(|(_, _, named)| !mine.excludes(named));
        rules.map(|(handle, comment, _)| (*handle, comment.as_str()))
    }
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
    #[serde(default)]
    expr: serde_json::Value,
}

/// The networks in a rule's expressions.
fn named(expression: &serde_json::Value, networks: &mut BTreeSet<Ipv4Network>) {
    use serde_json::Value;
    match expression {
        Value::Array(all) => all.iter().for_each(|one| named(one, networks)),
        Value::Object(members) => {
            let prefix = members.get("prefix").and_then(|prefix| {
                let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
                Ipv4Network::new(prefix.get("addr")?.as_str()?.parse().ok()?, length).ok()
            });
            networks.extend(prefix.filter(|prefix| !prefix.ip().is_multicast()));
            members.values().for_each(|one| named(one, networks));
        }
        _ => {}
    }
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

    /// Whether the table is there, and is another overlay network's.
    pub fn is_anothers(&self, mine: &Mine) -> bool {
        let chains = self.table.iter().flatten();
        mine.excludes(chains.flat_map(|chain| &chain.named))
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
            chains.push(FoundChain {
                name: chain.name,
                base,
                rules: Vec::new(),
                named: BTreeSet::new(),
            });
        }
        if let Some(rule) = item.rule
            && let Some(chain) = chains.iter_mut().find(|chain| chain.name == rule.chain)
        {
            chain.rules.push((rule.handle, rule.comment));
            named(&rule.expr, &mut chain.named);
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
            let mut networks = BTreeSet::new();
            named(&rule.expr, &mut networks);
            forward.ours.push((rule.handle, comment, networks));
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
pub fn script(rules: &Rules, found: &Found, names: &Names, mine: &Mine) -> Option<String> {
    let mut text = String::new();
    let chains = chains(rules);
    if !found.table.as_ref().is_some_and(|table| same(table, &chains)) {
        write_table(&mut text, &names.table, &chains);
    }
    if let Some(have) = &found.forward {
        let want = if have.drops && rules.forward { forward(rules) } else { Vec::new() };
        let in_place = have.of(mine).map(|(_, comment)| comment);
        if !in_place.eq(want.iter().map(|(_, comment)| comment.as_str())) {
            delete_ours(&mut text, have, mine);
            for (rule, comment) in want {
                let _ = writeln!(text, "add rule ip filter FORWARD {rule} comment \"{comment}\"");
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

/// The transaction that removes our rules; `None` when there are none. Flannel may
/// use the table already: its rules and chains stay, unless they are to go too. So
/// does a table of another overlay network.
pub fn removal(found: &Found, flannels_too: bool, names: &Names, mine: &Mine) -> Option<String> {
    let mut text = String::new();
    let table = &names.table;
    match found.table.as_deref() {
        Some(_) if found.is_anothers(mine) => {}
        Some(chains) if flannels_too || chains.iter().all(FoundChain::is_ours) => {
            let _ = writeln!(text, "delete table ip {table}");
        }
        Some(chains) => {
            for chain in chains {
                remove_from(&mut text, table, chain);
            }
        }
        None => {}
    }
    if let Some(forward) = &found.forward {
        delete_ours(&mut text, forward, mine);
    }
    (!text.is_empty()).then_some(text)
}

fn remove_from(text: &mut String, table: &str, chain: &FoundChain) {
    let name = &chain.name;
    if chain.is_ours() {
        let _ = writeln!(text, "flush chain ip {table} {name}\ndelete chain ip {table} {name}");
        return;
    }
    for handle in chain.ours() {
        let _ = writeln!(text, "delete rule ip {table} {name} handle {handle}");
    }
}

fn delete_ours(text: &mut String, forward: &FoundForward, mine: &Mine) {
    for (handle, _) in forward.of(mine) {
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
fn write_table(text: &mut String, table: &str, chains: &[Chain]) {
    let _ = writeln!(text, "add table ip {table}\ndelete table ip {table}\ntable ip {table} {{");
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
mod tests;
