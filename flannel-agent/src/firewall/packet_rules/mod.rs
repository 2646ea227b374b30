//! Rules that judge each packet and not the connection
//! ([`flannel_core::firewall::packet_rules`]): `read` runs the tools that list
//! them, and `follow` does that when the rules change.

pub mod follow;
pub mod read;

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
