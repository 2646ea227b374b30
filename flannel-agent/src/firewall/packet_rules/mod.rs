//! Rules that judge each packet and not the connection. No program can repeat
//! their decision for a flow, so the flows that they can match stay on the kernel
//! path.
//!
//! `nft` and `iptables` read listings into a [`ruleset::RuleSet`]; `walk` follows
//! packets through it; `exempt` turns what it finds into the programs'
//! [`Exemption`](flannel_ebpf::abi::Exemption)s. All of these are pure. `read` runs
//! the tools, and `follow` does that when the rules change.

pub mod devices;
mod draft;
pub mod exempt;
mod flags;
pub mod follow;
mod helpers;
pub mod iptables;
mod kinds;
pub mod matches;
pub mod nft;
pub mod ranges;
pub mod read;
pub mod ruleset;
pub mod walk;
mod words;

/// `--packet-rules`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// What rules judge packet by packet stays on the kernel path
    #[default]
    Respect,
    /// Such rules see one packet of a flow in each window
    Ignore,
}
