//! The data path.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::absent;
use crate::envelope::EnvelopeReport;

/// Which data path carries the packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathStatus {
    /// What carries the packets; empty before it is chosen.
    #[serde(with = "absent")]
    #[schemars(schema_with = "absent::schema::<DatapathKind>")]
    pub mode: Option<DatapathKind>,
    /// Why it is the kernel path, if it was not asked for.
    pub reason: Option<String>,
    /// How the programs hang on the devices; `null` on the kernel path.
    pub attach: Option<Attachment>,
    /// TCP flows are confirmed too.
    pub tcp: bool,
    /// The underlay's XDP program.
    pub xdp: XdpStatus,
    /// The flow table; `null` on the kernel path.
    pub flows: Option<FlowTableStatus>,
    /// What the fast path carries, and why it does not carry the rest.
    #[serde(flatten)]
    pub envelope: EnvelopeReport,
}

/// What carries the packets.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum DatapathKind {
    /// Our programs, and the kernel path for the rest.
    #[serde(rename = "ebpf")]
    Ebpf,
    /// The kernel path.
    #[serde(rename = "kernel")]
    Kernel,
    /// The udp backend's proxy.
    #[serde(rename = "udp proxy")]
    UdpProxy,
}

impl DatapathKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ebpf, Self::Kernel, Self::UdpProxy];

    /// As status shows it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Kernel => "kernel",
            Self::UdpProxy => "udp proxy",
        }
    }

    /// In one word, for the label of a metric.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Kernel => "kernel",
            Self::UdpProxy => "udp",
        }
    }
}

impl fmt::Display for DatapathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// How programs hang on devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Attachment {
    /// By tcx links.
    #[serde(rename = "tcx")]
    Tcx,
    /// By filters of a clsact qdisc.
    #[serde(rename = "clsact")]
    Clsact,
    /// Not at all so far.
    #[default]
    #[serde(rename = "not attached")]
    None,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::None => "not attached",
        })
    }
}

/// Whether the underlay's XDP program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct XdpStatus {
    /// Where it runs.
    pub mode: XdpPlace,
    /// Why it is off, if nobody switched it off.
    pub reason: Option<String>,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum XdpPlace {
    /// In the card's driver.
    Native,
    /// Nowhere.
    #[default]
    Off,
}

impl fmt::Display for XdpPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Off => "off",
        })
    }
}

/// Room for flows, and how fast it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowTableStatus {
    /// Entries that the table holds.
    pub size: u32,
    /// New entries within `--fast-path-window`, lately. More than `size`: flows
    /// are evicted before their time.
    pub new_per_window: Option<u64>,
}
