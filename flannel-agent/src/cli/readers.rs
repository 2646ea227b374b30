//! The flags of the commands that look into a node.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flannel_core::flows::FlowFilter;
use flannel_core::status::FlowProto;
use ipnetwork::Ipv4Network;

use super::common::{PinDirArg, ReaderArgs, SubnetFileArg};
use super::doctor::TracedProtocol;
use crate::flag;
use crate::source::options::EtcdOptions;

/// The flags of `events`.
#[derive(Args, Clone, Debug)]
pub struct EventsArgs {
    /// How it prints, and which agent is asked
    #[command(flatten)]
    pub reader: ReaderArgs,
    /// Go on with what comes, until it is interrupted; with --json an object a line
    #[arg(long)]
    pub follow: bool,
    /// Only those of this time: 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = flag::time)]
    pub since: Option<Duration>,
}

/// Which end and port flows or packets are of.
#[derive(Args, Clone, Copy, Debug)]
pub struct EndsArgs {
    /// Only what is of this pod, or of pods in this network
    #[arg(long, value_name = "IP|CIDR")]
    pub pod: Option<Ipv4Network>,
    /// Only what is of this peer: its subnet, or an address of it; monitor takes its
    /// PublicIP, too
    #[arg(long, value_name = "IP|CIDR")]
    pub peer: Option<Ipv4Network>,
    /// Only what is from or to this port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
}

/// The flags of `flows`.
#[derive(Args, Clone, Debug)]
pub struct FlowsArgs {
    /// How it prints, and which agent is asked
    #[command(flatten)]
    pub reader: ReaderArgs,
    /// Go on with flows that come or go another way, until it is interrupted; with --json
    /// an object a line
    #[arg(long)]
    pub follow: bool,
    /// Which flows are told
    #[command(flatten)]
    pub ends: EndsArgs,
    /// Only flows of this protocol
    #[arg(long, value_enum, value_name = "PROTO")]
    pub proto: Option<FlowProto>,
    /// Where the programs' maps are
    #[command(flatten)]
    pub pins: PinDirArg,
}

impl FlowsArgs {
    /// Which flows are wanted.
    pub fn filter(&self) -> FlowFilter {
        let EndsArgs { pod, peer, port } = self.ends;
        FlowFilter { pod, peer, port, proto: self.proto }
    }
}

/// The flags of `monitor`.
#[derive(Args, Clone, Debug)]
pub struct MonitorArgs {
    /// How it prints, and which agent is asked
    #[command(flatten)]
    pub reader: ReaderArgs,
    /// Which packets are told
    #[command(flatten)]
    pub ends: EndsArgs,
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
    #[arg(long, value_name = "TIME", value_parser = flag::time)]
    pub time: Option<Duration>,
    /// Where the programs' maps are
    #[command(flatten)]
    pub pins: PinDirArg,
}

/// The flags of `sysdump`.
#[derive(Args, Clone, Debug)]
pub struct SysdumpArgs {
    /// How it prints, and which agent is asked
    #[command(flatten)]
    pub reader: ReaderArgs,
    /// The archive to write [default: flannel-sysdump-HOST-TIME.tar.gz here]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Port where the agent serves /metrics
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,
    /// Where the programs' maps are
    #[command(flatten)]
    pub pins: PinDirArg,
    /// Where subnet.env is
    #[command(flatten)]
    pub subnet_file: SubnetFileArg,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdOptions,
}
