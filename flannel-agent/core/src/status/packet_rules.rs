//! Rules that judge each packet and not the connection.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::firewall::packet_rules::exempt::RuleLine;

/// Rules that judge each packet and not the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PacketRulesStatus {
    /// `--packet-rules`.
    pub mode: PacketRulesMode,
    /// The node's rules are known; until then nothing takes the fast path.
    pub read: bool,
    /// What stays on the kernel path because of them.
    pub exempt: Vec<String>,
    /// These rules, and those that log or offload what they see.
    pub rules: Vec<RuleLine>,
    /// Rules that are not in the list.
    pub more: usize,
}

/// `--packet-rules`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum PacketRulesMode {
    /// What rules judge packet by packet stays on the kernel path
    #[default]
    Respect,
    /// Such rules see one packet of a flow in each window
    Ignore,
}
