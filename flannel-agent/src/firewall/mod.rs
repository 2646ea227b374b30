//! Masquerade and forward rules of the overlay.

pub mod chosen;
pub mod fake;
pub mod iptables;
mod legacy;
pub mod nft;
mod options;
pub mod packet_rules;
mod present;
mod tool;

use std::future::Future;

use flannel_core::firewall::Rules;
use serde::{Deserialize, Serialize};

use crate::task::Panicked;

pub use self::options::RuleOptions;

/// `--firewall`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// iptables where the node has rules of legacy iptables, else nftables
    #[default]
    Auto,
    /// A table of our own in nftables
    Nftables,
    /// Chains of our own, by the iptables programs in PATH
    Iptables,
    /// No rules: somebody else takes care of them
    None,
}

/// The firewall in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Why it is this one.
    pub reason: String,
}

/// The verbs that reconciling needs: `chosen::Later` is the real one,
/// `fake::FakeFirewall` remembers.
pub trait Firewall: Send + Sync + 'static {
    /// Decides, once, by which programs the rules are kept; to be asked before
    /// anything else.
    fn choose(&self) -> impl Future<Output = Result<Description, FirewallError>> + Send;

    /// Makes our rules exactly these, in one transaction; changes nothing when
    /// they are there already. Whether it had to write.
    fn ensure(&self, rules: &Rules) -> impl Future<Output = Result<bool, FirewallError>> + Send;
}

/// A rule set that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {reason}")]
pub struct FirewallError {
    /// The command.
    pub call: String,
    /// What it said.
    pub reason: String,
}

impl From<Panicked> for FirewallError {
    fn from(panicked: Panicked) -> Self {
        Self { call: "keep the firewall's rules".to_owned(), reason: panicked.to_string() }
    }
}
