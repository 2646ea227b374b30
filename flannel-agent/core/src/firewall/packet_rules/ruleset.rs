//! A node's rules, as far as they matter for the fast path. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::matches::{Matches, Names};

/// Longest text of a rule, in characters.
const TEXT: usize = 200;

/// Families whose chains see packets of IPv4.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv4 and IPv6.
    Inet,
    /// A bridge's frames.
    Bridge,
    /// A device's frames.
    Netdev,
}

impl Family {
    /// As nft calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }

    /// By nft's name; `None` for those without packets of IPv4.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ip, Self::Inet, Self::Bridge, Self::Netdev]
            .into_iter()
            .find(|family| family.name() == name)
    }
}

/// Where a base chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetfilterHook {
    /// Before routing.
    Prerouting,
    /// To the node itself.
    Input,
    /// Through the node.
    Forward,
    /// From the node itself.
    Output,
    /// After routing.
    Postrouting,
    /// A device receives.
    Ingress,
    /// A device sends.
    Egress,
}

impl NetfilterHook {
    /// By name, in nft's or iptables' way of writing.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "prerouting" => Self::Prerouting,
            "input" => Self::Input,
            "forward" => Self::Forward,
            "output" => Self::Output,
            "postrouting" => Self::Postrouting,
            "ingress" => Self::Ingress,
            "egress" => Self::Egress,
            _ => return None,
        })
    }
}

/// What makes a base chain of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its hook.
    pub hook: NetfilterHook,
    /// It translates: it sees the first packet of a connection only.
    pub nat: bool,
    /// It drops what comes to its end.
    pub drops: bool,
    /// Its devices, at [`NetfilterHook::Ingress`] and [`NetfilterHook::Egress`].
    pub devices: Names,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its family.
    pub family: Family,
    /// Its table.
    pub table: Arc<str>,
    /// Its name.
    pub name: String,
    /// `None`: others jump to it.
    pub base: Option<Base>,
    /// Its rules in order, but for those that do nothing that matters here.
    pub rules: Vec<Rule>,
}

/// What becomes of a packet that a rule matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next rule.
    #[default]
    Continue,
    /// The base chain is done with it: accepted, dropped, queued, ...
    End,
    /// Back to where the chain was jumped to from.
    Return,
    /// Through another chain of the table, and back.
    Jump(String),
    /// Through another chain of the table, and back to where this one was
    /// jumped to from.
    Goto(String),
}

/// Why a rule cannot be repeated for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Judges {
    /// It judges each packet.
    Packet,
    /// It judges by what conntrack has counted in both directions.
    Counters,
    /// It works on the connection as a whole, though only some packets match.
    Connection,
}

/// What a rule does besides, for the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Note {
    /// It tells of packets.
    Log,
    /// It hands flows to the kernel's own fast path.
    Offload,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What it can match.
    pub matches: Matches,
    /// It matches all of that. Else it has conditions that are not in `matches`.
    pub exact: bool,
    /// A condition that differs from packet to packet.
    pub selects: Option<(Judges, Arc<str>)>,
    /// Something that it does, which no program can repeat.
    pub acts: Option<(Judges, Arc<str>)>,
    /// It changes something about the packet or the connection.
    pub effect: bool,
    /// How the packet leaves otherwise than without the rule, if at all (`drop`,
    /// `MARK`, ...).
    pub alters: Option<Arc<str>>,
    /// It ends the packet's way: `drop`, `reject` and the like.
    pub drops: bool,
    /// What the status says of it.
    pub note: Option<Note>,
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Its number in nftables.
    pub handle: Option<u64>,
    /// Its text, if it can be of interest.
    pub text: Option<Arc<str>>,
}

impl Rule {
    /// Whether it may be asked about: it needs its text.
    pub fn is_of_interest(&self) -> bool {
        self.selects.is_some()
            || self.acts.is_some()
            || self.alters.is_some()
            || self.note.is_some()
    }

    /// Whether nothing at all follows from it.
    pub fn is_idle(&self) -> bool {
        !self.is_of_interest() && !self.effect && self.verdict == Verdict::Continue
    }
}

/// All chains that see packets of IPv4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// The chains.
    pub chains: Vec<Chain>,
    /// Some rule keeps packets from conntrack.
    pub notrack: bool,
}

/// Family, table and name of a chain.
pub type ChainKey<'a> = (Family, &'a str, &'a str);

impl Chain {
    /// By what rules refer to it.
    pub fn key(&self) -> ChainKey<'_> {
        (self.family, &self.table, &self.name)
    }
}

impl RuleSet {
    /// Where each chain stands in `chains`.
    pub fn index(&self) -> HashMap<ChainKey<'_>, usize> {
        self.chains.iter().enumerate().map(|(at, chain)| (chain.key(), at)).collect()
    }

    /// Puts other chains in the place of a table's.
    pub fn replace_table(&mut self, family: Family, table: &str, other: Self) {
        self.chains.retain(|chain| chain.family != family || *chain.table != *table);
        self.chains.extend(other.chains);
        self.notrack |= other.notrack;
    }
}

/// A rule's text, cut.
pub fn bounded(text: &str) -> Arc<str> {
    match text.char_indices().nth(TEXT) {
        None => text.into(),
        Some(_) => {
            let kept: String = text.chars().take(TEXT - 3).collect();
            format!("{kept}...").into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(&*bounded("short"), "short");
        let long = bounded(&"ü".repeat(300));
        assert_eq!(long.chars().count(), TEXT);
        assert!(long.ends_with("ü..."));
        assert_eq!(bounded(&"x".repeat(TEXT)).chars().count(), TEXT);
    }
}
