//! Our accepts in the FORWARD chain of legacy iptables (xtables), where its
//! policy is DROP. nft neither sees nor changes that chain, and a packet has to
//! pass both.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use flannel_core::firewall::names::Mine;
use flannel_core::firewall::{Rules, rules};
use ipnetwork::Ipv4Network;

use super::{FirewallError, tool};

/// Tables that legacy iptables has in this thread's network namespace. Asking
/// iptables-legacy itself would create them.
const TABLES: &str = "/proc/thread-self/net/ip_tables_names";

const LIST: [&str; 4] = ["-w", "5", "-S", "FORWARD"];

/// More than the names of all tables take; a longer list is read in the other way.
const LENGTH: usize = 128;

/// Whether this network namespace has any of the old tables.
pub(super) fn has_tables() -> bool {
    std::fs::read_to_string(TABLES).is_ok_and(|tables| !tables.trim().is_empty())
}

/// The old tables of this network namespace.
pub(super) fn tables() -> Vec<String> {
    lines(&std::fs::read_to_string(TABLES).unwrap_or_default())
}

fn lines(tables: &str) -> Vec<String> {
    tables.lines().map(str::to_owned).collect()
}

/// The names of the old tables in a file that stays open: to read it again is one system
/// call, and much less than to open it.
#[derive(Debug, Default)]
pub(super) struct Tables(Option<File>);

impl Tables {
    /// The old tables of the network namespace in which this was called first.
    pub(super) fn names(&mut self) -> Vec<String> {
        let mut bytes = [0; LENGTH];
        if let Some(names) = self.0.as_ref().and_then(|open| again(open, &mut bytes)) {
            return lines(names);
        }
        // The module was not loaded, or has gone.
        self.0 = File::open(TABLES).ok();
        match self.0.as_ref().map(|open| again(open, &mut bytes)) {
            Some(Some(names)) => lines(names),
            Some(None) => tables(),
            None => Vec::new(),
        }
    }
}

fn again<'a>(open: &File, bytes: &'a mut [u8; LENGTH]) -> Option<&'a str> {
    let length = open.read_at(bytes, 0).ok().filter(|length| *length < LENGTH)?;
    str::from_utf8(&bytes[..length]).ok()
}

/// Adds or removes our rules so that a policy of DROP does not stop the overlay. Whether
/// there was anything to do.
pub(super) async fn ensure(rules: &Rules, mine: &Mine) -> Result<bool, FirewallError> {
    let Some((program, chain)) = chain(mine).await? else { return Ok(false) };
    let wanted =
        if chain.drops && rules.forward { rules::legacy_forward(rules) } else { Vec::new() };
    if chain.has(&wanted) {
        return Ok(false);
    }
    // New ones first; of equal rules iptables -D removes the one before.
    for (words, _) in &wanted {
        change(program, "-A", words).await?;
    }
    for old in &chain.ours {
        change(program, "-D", &old.words).await?;
    }
    match self::chain(mine).await? {
        Some((_, chain)) if !chain.has(&wanted) => return Err(tool::in_vain(program.to_owned())),
        _ => {}
    }
    tracing::info!(network = %rules.network, program, chain = "FORWARD", "firewall rules written");
    Ok(true)
}

/// Removes our rules. Whether there were any.
pub(super) async fn remove(mine: &Mine) -> Result<bool, FirewallError> {
    let Some((program, chain)) = chain(mine).await? else { return Ok(false) };
    for old in &chain.ours {
        change(program, "-D", &old.words).await?;
    }
    Ok(!chain.ours.is_empty())
}

async fn chain(mine: &Mine) -> Result<Option<(&'static str, Chain)>, FirewallError> {
    let tables = std::fs::read_to_string(TABLES).unwrap_or_default();
    if !tables.lines().any(|table| table == "filter") {
        return Ok(None);
    }
    for program in ["iptables-legacy", "iptables"] {
        if program == "iptables" && !is_legacy(program).await? {
            continue;
        }
        if let Some(output) = tool::run(program, &LIST, "").await? {
            if output.status.success() {
                let mut chain = Chain::parse(&String::from_utf8_lossy(&output.stdout));
                chain.ours.retain(|rule| !mine.excludes(&rule.named()));
                return Ok(Some((program, chain)));
            }
            let call = tool::call(program, &LIST);
            return Err(FirewallError { call, reason: tool::complaint(&output) });
        }
    }
    tracing::debug!("iptables-legacy not found; the legacy filter table is left alone");
    Ok(None)
}

/// Whether a program named `iptables` works on the legacy tables.
pub(super) async fn is_legacy(program: &str) -> Result<bool, FirewallError> {
    let output = tool::run(program, &["--version"], "").await?;
    Ok(output.is_some_and(|output| !String::from_utf8_lossy(&output.stdout).contains("nf_tables")))
}

async fn change(program: &str, verb: &str, words: &[String]) -> Result<(), FirewallError> {
    let mut arguments = vec!["-w", "5", verb, "FORWARD"];
    arguments.extend(words.iter().map(String::as_str));
    let call = || tool::call(program, &arguments);
    match tool::run(program, &arguments, "").await? {
        Some(output) if output.status.success() => Ok(()),
        Some(output) => Err(FirewallError { call: call(), reason: tool::complaint(&output) }),
        None => Err(FirewallError { call: call(), reason: "the program has gone".to_owned() }),
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Chain {
    drops: bool,
    ours: Vec<OwnRule>,
}

#[derive(Debug, PartialEq, Eq)]
struct OwnRule {
    /// Arguments behind `-D FORWARD`.
    words: Vec<String>,
    comment: String,
}

impl OwnRule {
    fn named(&self) -> Vec<Ipv4Network> {
        self.words.iter().filter_map(|word| word.parse().ok()).collect()
    }
}

impl Chain {
    /// Whether these rules, with their comments, are all that there are of ours.
    fn has(&self, wanted: &[(Vec<String>, String)]) -> bool {
        let in_place = self.ours.iter().map(|rule| rule.comment.as_str());
        in_place.eq(wanted.iter().map(|(_, comment)| comment.as_str()))
    }

    /// Reads `iptables -S FORWARD`.
    fn parse(listing: &str) -> Self {
        let mut chain = Self::default();
        for line in listing.lines() {
            if let Some(policy) = line.strip_prefix("-P FORWARD ") {
                chain.drops = policy == "DROP";
            } else if let Some(rule) = line.strip_prefix("-A FORWARD ") {
                chain.ours.extend(own_rule(rule));
            }
        }
        chain
    }
}

/// The only quoted word in a rule of ours is its comment.
fn own_rule(rule: &str) -> Option<OwnRule> {
    let mut parts = rule.split('"');
    let (before, comment, after) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !rules::is_ours(comment) {
        return None;
    }
    let words = before
        .split_whitespace()
        .chain([comment])
        .chain(after.split_whitespace())
        .map(str::to_owned)
        .collect();
    Some(OwnRule { words, comment: comment.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_rules_are_recognised() {
        let listing = "-P FORWARD DROP\n\
            -A FORWARD -m conntrack --ctstate INVALID -j DROP\n\
            -A FORWARD -s 10.5.0.0/16 -m comment --comment \"flanneld forward 0a1b2c3d\" -j ACCEPT\n\
            -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
            -A FORWARD -m comment --comment \"another's rule\" -j ACCEPT\n";
        let chain = Chain::parse(listing);
        assert!(chain.drops);
        assert_eq!(chain.ours.len(), 1);
        assert_eq!(
            chain.ours[0].words,
            [
                "-s",
                "10.5.0.0/16",
                "-m",
                "comment",
                "--comment",
                "flanneld forward 0a1b2c3d",
                "-j",
                "ACCEPT"
            ]
        );
        assert_eq!(Chain::parse("-P FORWARD ACCEPT\n"), Chain::default());
    }
}
