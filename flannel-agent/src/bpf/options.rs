//! The flags of the eBPF data path.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flannel_core::status::PacketRulesMode;
use flannel_ebpf::abi::{self, program};
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::flag;

/// Default of `--pin-dir`.
pub const PIN_DIR: &str = "/sys/fs/bpf/flannel";

/// When packets take the fast path, and for how long.
#[derive(Args, Clone, Copy, Debug)]
pub struct FastPathOptions {
    /// Whether rules that judge each packet (limit, quota, queue, helpers, ...) keep
    /// the flows that they match on the kernel's path
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub packet_rules: PacketRulesMode,
    /// When the eBPF programs bypass the kernel's path
    #[arg(long = "fast-path", value_enum, value_name = "MODE", default_value_t)]
    pub mode: FastPath,
    /// How long a flow stays on the fast path before the kernel sees a packet
    /// of it again: seconds, or with a unit (100ms to 20s)
    #[arg(long = "fast-path-window", value_name = "TIME", default_value = "5s",
          value_parser = flag::fast_path_window)]
    pub window: Duration,
}

/// How the programs and their maps are made, where they hang, and what they check.
#[derive(Args, Clone, Debug)]
pub struct ProgramOptions {
    /// Flows that the fast path remembers at a time (1,024 to 8,388,608)
    #[arg(long, value_name = "FLOWS", default_value_t = abi::MAX_FLOWS,
          value_parser = clap::value_parser!(u32).range(1024..=8_388_608))]
    pub flow_table_size: u32,
    /// What happens to packets from the overlay with a source that is not
    /// their sender's
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub verify_source: VerifySource,
    /// How the programs are attached
    #[arg(long, value_enum, value_name = "HOOK", default_value_t)]
    pub attach: AttachMode,
    /// How long the kernel waits for its CPUs while programs are attached by tcx
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub grace_periods: GracePeriodMode,
    /// Whether packets lose their tunnel before GRO, in the underlay's driver
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub xdp: XdpMode,
    /// Attach only to pods' interfaces whose names match
    #[arg(long, value_name = "REGEX", value_parser = Regex::new)]
    pub attach_iface: Option<Regex>,
    /// Directory in bpffs to pin maps and links in
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
}

/// What a node begins with, by which it is known which programs it needs at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Peers are reached by a tunnel.
    pub tunnel: bool,
    /// Peers are reached without a tunnel.
    pub direct: bool,
    /// Nothing begins without the programs of pods.
    pub pods: bool,
    /// The underlay may take the XDP program.
    pub card: bool,
}

impl Needs {
    /// All that a node may ever need. `card`: the XDP program, too.
    pub const fn all(card: bool) -> Self {
        Self { tunnel: true, direct: true, pods: true, card }
    }

    /// Whether a program has to be there at once.
    pub fn has(self, program: &str) -> bool {
        match program {
            program::FROM_UNDERLAY => true,
            program::TO_OVERLAY | program::FROM_OVERLAY => self.tunnel,
            program::TO_UNDERLAY => self.direct,
            program::FROM_WIRE => self.card,
            _ => self.pods,
        }
    }
}

/// `--fast-path`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FastPath {
    /// For flows that the kernel was seen to forward unchanged
    #[default]
    Confirmed,
    /// For TCP connections from their first packet on, too, if the kernel
    /// forwarded the last one between the same client and service unchanged
    Eager,
    /// Never: the programs only count and check
    Off,
}

/// `--verify-source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifySource {
    /// Drop and count.
    #[default]
    Drop,
    /// Count only.
    Count,
    /// Do not look.
    Off,
}

/// `--attach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// tcx where the kernel has it, else clsact.
    #[default]
    Auto,
    /// tcx links only.
    Tcx,
    /// clsact filters only.
    Clsact,
}

/// `--grace-periods`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GracePeriodMode {
    /// Some 0.1 ms for each program: `/sys/kernel/rcu_expedited` is 1 meanwhile
    #[default]
    Expedited,
    /// Some 15 ms for each program: the setting is left alone
    Normal,
}

/// `--xdp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native where the underlay is a network card whose driver has it
    #[default]
    Auto,
    /// In the driver, whatever the underlay is
    Native,
    /// Refused, with the reason in the status: it does not go together with TC
    Generic,
    /// Not at all
    Off,
}
