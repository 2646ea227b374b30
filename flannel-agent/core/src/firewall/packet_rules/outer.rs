//! Rules about the tunnel's packets that go out. What the programs send goes past
//! OUTPUT and POSTROUTING, so what such a rule could alter is left to the kernel.
//! Pure.

use super::devices::Devices;
use super::matches::mark;
use super::ranges::Addresses;
use super::walk::{Findings, RuleFinding, RuleScope};

/// A rule that may drop or change the tunnel's packets to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OuterRule {
    /// It is about packets with a firewall mark only.
    pub marked: bool,
    /// Family, table and chain.
    pub chain: String,
    /// Its text, at most 200 characters.
    pub rule: String,
    /// What it does (`drop`, `DSCP`, ...).
    pub does: String,
}

/// The rules that matter on a node with these devices. `has_peer` says whether a
/// peer has one of some addresses.
pub fn rules(
    findings: &Findings,
    devices: &Devices,
    has_peer: impl Fn(&Addresses) -> bool,
) -> Vec<OuterRule> {
    let may_match = |scope: &&RuleScope| {
        let matches = &scope.matches;
        devices.tunnel_leaves(&matches.output, &matches.source) && has_peer(&matches.destination)
    };
    let of_finding = |finding: &RuleFinding| {
        let mut scopes = finding.scopes.iter().filter(may_match).peekable();
        scopes.peek()?;
        let (family, table, chain) = finding.place.as_ref()?;
        Some(OuterRule {
            marked: scopes.all(|scope| scope.matches.marks & mark::NONE == 0),
            chain: format!("{} {table} {chain}", family.name()),
            rule: finding.text.to_string(),
            does: finding.why.to_string(),
        })
    };
    findings.outer.iter().filter_map(of_finding).collect()
}

#[cfg(test)]
mod tests;
