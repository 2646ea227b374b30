//! Masquerade and forward rules of the overlay.

mod chains;
pub mod chosen;
pub mod fake;
pub mod iptables;
mod legacy;
pub mod nft;
pub mod packet_rules;
pub mod rules;
mod saved;
mod tool;
pub mod upstream;

use std::future::Future;

use ipnetwork::Ipv4Network;

/// `--firewall`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
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

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The overlay network.
    pub network: Ipv4Network,
    /// Our subnet.
    pub subnet: Ipv4Network,
    /// Masquerade traffic that leaves the overlay (`--ip-masq`).
    pub masquerade: bool,
    /// Accept forwarded packets of the overlay (`--iptables-forward-rules`).
    pub forward: bool,
    /// Masquerade from random source ports (not `--ip-masq-fully-random-disable`).
    pub fully_random: bool,
    /// UDP port of the tunnel: masquerade must not use it as a source port,
    /// since answers to it would be taken for VXLAN.
    pub vxlan_port: u16,
}

/// The verbs that reconciling needs: `nft::Nft` is the real one,
/// `fake::FakeFirewall` remembers.
pub trait Firewall: Send + Sync + 'static {
    /// Makes our rules exactly these, in one transaction; changes nothing when
    /// they are there already.
    fn ensure(&self, rules: &Rules) -> impl Future<Output = Result<(), FirewallError>> + Send;

    /// Removes all our rules; nothing else.
    fn remove(&self) -> impl Future<Output = Result<(), FirewallError>> + Send;
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
