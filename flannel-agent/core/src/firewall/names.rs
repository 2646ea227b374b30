//! What tables and chains are called. Flannel's names as long as no rules of another
//! overlay network are there: two agents, or an agent and flanneld, may run on a node.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use ipnetwork::Ipv4Network;

/// Our table in nftables, as flannel calls it.
pub const TABLE: &str = "flannel-ipv4";
/// The nat chain of flannel 0.20 and later.
const POSTROUTING: &str = "FLANNEL-POSTRTG";
/// Its filter chain.
const FORWARD: &str = "FLANNEL-FWD";

/// Names of one network's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The table of nftables.
    pub table: String,
    /// The nat chain of iptables.
    pub postrouting: String,
    /// The filter chain of iptables.
    pub forward: String,
}

impl Names {
    /// Flannel's.
    pub fn flannels() -> Self {
        Self::with("")
    }

    /// Those of a network beside another one that has flannel's.
    pub fn beside(network: Ipv4Network) -> Self {
        let mut hasher = DefaultHasher::new();
        network.hash(&mut hasher);
        Self::with(&format!("-{:08x}", hasher.finish() >> 32))
    }

    fn with(suffix: &str) -> Self {
        Self {
            table: format!("{TABLE}{suffix}"),
            postrouting: format!("{}{suffix}", POSTROUTING),
            forward: format!("{}{suffix}", FORWARD),
        }
    }
}

/// The overlay networks that rules may be about to be ours: now, and before the
/// network config was changed. Without any, all are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mine(BTreeSet<Ipv4Network>);

impl FromIterator<Ipv4Network> for Mine {
    fn from_iter<I: IntoIterator<Item = Ipv4Network>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

impl Mine {
    /// More of them.
    pub fn add(&mut self, networks: impl Iterator<Item = Ipv4Network>) {
        self.0.extend(networks);
    }

    /// The networks.
    pub fn networks(&self) -> impl Iterator<Item = Ipv4Network> {
        self.0.iter().copied()
    }

    /// Whether rules with these networks are another overlay's: they name some,
    /// and none of ours.
    pub fn excludes<'a>(&self, named: impl IntoIterator<Item = &'a Ipv4Network>) -> bool {
        let mut named = named.into_iter().peekable();
        !self.0.is_empty()
            && named.peek().is_some()
            && !named.any(|network| self.0.contains(network))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    #[test]
    fn each_network_has_names_that_iptables_takes() {
        let (one, other) = (Names::beside(net("10.5.0.0/16")), Names::beside(net("10.6.0.0/16")));
        assert_ne!(one, other);
        assert_ne!(one, Names::flannels());
        assert!(one.postrouting.len() <= 28, "{}", one.postrouting);
        assert_eq!(Names::flannels().table, "flannel-ipv4");
    }

    #[test]
    fn rules_that_name_only_other_networks_are_anothers() {
        let mine: Mine = [net("10.5.0.0/16")].into_iter().collect();
        let (own, other) = (net("10.5.0.0/16"), net("10.6.0.0/16"));
        assert!(mine.excludes([&other]));
        assert!(!mine.excludes([&other, &own]) && !mine.excludes([]));
        assert!(!Mine::default().excludes([&other]));
    }
}
