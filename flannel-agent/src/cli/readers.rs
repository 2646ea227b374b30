//! The flags of the commands that look into a node.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flannel_core::flows::Filter;
use flannel_core::status::FlowProto;
use ipnetwork::Ipv4Network;

use super::doctor::TracedProtocol;
use super::{PIN_DIR, STATE_DIR, SUBNET_FILE};
use crate::flag;
use crate::source::options::EtcdOptions;

/// The flags of `events`.
#[derive(Args, Clone, Debug)]
pub struct EventsArgs {
    /// Print JSON; with --follow an object for each event
    #[arg(long)]
    pub json: bool,
    /// Go on with what comes, until it is interrupted
    #[arg(long)]
    pub follow: bool,
    /// Only those of this time: 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub since: Option<Duration>,
    /// Directory with the agent's state
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
}

/// The flags of `flows`.
#[derive(Args, Clone, Debug)]
pub struct FlowsArgs {
    /// Print JSON; with --follow an object for each flow
    #[arg(long)]
    pub json: bool,
    /// Go on with flows that come or go another way, until it is interrupted
    #[arg(long)]
    pub follow: bool,
    /// Only flows of this pod, or of pods in this network
    #[arg(long, value_name = "IP|CIDR")]
    pub pod: Option<Ipv4Network>,
    /// Only flows of this peer: its subnet, or an address of it
    #[arg(long, value_name = "IP|CIDR")]
    pub peer: Option<Ipv4Network>,
    /// Only flows from or to this port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Only flows of this protocol
    #[arg(long, value_enum, value_name = "PROTO")]
    pub proto: Option<FlowProto>,
    /// Directory in bpffs with the pinned maps and links
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Directory with the agent's state
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
}

impl FlowsArgs {
    /// Which flows are wanted.
    pub fn filter(&self) -> Filter {
        Filter { pod: self.pod, peer: self.peer, port: self.port, proto: self.proto }
    }
}

/// The flags of `monitor`.
#[derive(Args, Clone, Debug)]
pub struct MonitorArgs {
    /// Print JSON: an object for each packet
    #[arg(long)]
    pub json: bool,
    /// Only packets of this pod, or of pods in this network
    #[arg(long, value_name = "IP|CIDR")]
    pub pod: Option<Ipv4Network>,
    /// Only packets of this peer: its subnet, its PublicIP, or an address of it
    #[arg(long, value_name = "IP|CIDR")]
    pub peer: Option<Ipv4Network>,
    /// Only packets from or to this port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Only packets of this protocol
    #[arg(long, value_enum, value_name = "PROTO")]
    pub proto: Option<TracedProtocol>,
    /// Only packets with this outcome (fast_encap), or one of a family (kernel,
    /// forged, drop); repeatable
    #[arg(long = "outcome", value_name = "OUTCOME", value_parser = flag::outcomes)]
    pub outcomes: Vec<u64>,
    /// Packets that are told in a second on each CPU, at most (1 to 100000)
    #[arg(long, value_name = "COUNT", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// Also packets that no counter counts: of the node itself, or within it
    #[arg(long, conflicts_with = "outcomes")]
    pub all: bool,
    /// Stop after this time: 10s, 2m [default: when it is interrupted]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub time: Option<Duration>,
    /// Directory in bpffs with the pinned maps and links
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Directory with the agent's state
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
}

/// The flags of `sysdump`.
#[derive(Args, Clone, Debug)]
pub struct SysdumpArgs {
    /// Print JSON: what is in the archive
    #[arg(long)]
    pub json: bool,
    /// The archive to write [default: flannel-sysdump-HOST-TIME.tar.gz here]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Port where the agent serves /metrics
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,
    /// Directory in bpffs with the pinned maps and links
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Directory with the agent's state
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
    /// The file with the node's subnet
    #[arg(long, value_name = "FILE", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdOptions,
}
