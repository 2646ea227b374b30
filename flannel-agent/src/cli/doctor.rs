//! The flags of the commands that examine a node.

use std::net::Ipv4Addr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use flannel_core::trace::facts::Protocol;
use flannel_ebpf::wire;
use ipnetwork::Ipv4Network;

use super::common::{PinDirArg, ReaderArgs, SubnetFileArg};
use crate::flag;
use crate::source::options::EtcdOptions;

/// The flags of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// How it prints, and which agent is asked
    #[command(flatten)]
    pub reader: ReaderArgs,
    /// Only what is not well
    #[arg(long)]
    pub quiet: bool,
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

/// The flags of `connectivity`.
#[derive(Args, Clone, Debug)]
pub struct ConnectivityArgs {
    /// How it prints, and which agent is asked
    #[command(flatten)]
    pub reader: ReaderArgs,
    /// Only peers with this PublicIP, with a subnet in this network, or with this address
    /// of a pod; repeatable [default: all]
    #[arg(long = "peer", value_name = "IP|NETWORK")]
    pub peers: Vec<Ipv4Network>,
    /// Port of the peers' responders [default: the daemon's --connectivity-port]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Packets of each kind in a second, at most (1 to 10000)
    #[arg(long, value_name = "COUNT", default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// How long an answer may take: seconds, or with a unit (1s, 500ms)
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = flag::patience)]
    pub patience: Duration,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdOptions,
}

/// The arguments of `trace`.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// Source address
    #[arg(value_name = "SOURCE")]
    pub source: Ipv4Addr,
    /// Destination address
    #[arg(value_name = "DESTINATION")]
    pub destination: Ipv4Addr,
    /// Protocol
    #[arg(value_enum, value_name = "PROTOCOL", default_value_t)]
    pub protocol: TracedProtocol,
    /// Destination port [default: any]
    #[arg(value_name = "PORT")]
    pub port: Option<u16>,
    /// Watch the programs' counters for this time: seconds, or with a unit (5s, 500ms)
    #[arg(long, value_name = "TIME", value_parser = flag::patience)]
    pub live: Option<Duration>,
    /// How it prints, and which agent is asked
    #[command(flatten)]
    pub reader: ReaderArgs,
    /// Where the programs' maps are
    #[command(flatten)]
    pub pins: PinDirArg,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdOptions,
}

/// The protocol of a traced packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TracedProtocol {
    /// TCP
    #[default]
    Tcp,
    /// UDP
    Udp,
    /// ICMP
    Icmp,
}

impl TracedProtocol {
    /// Its number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => wire::TCP,
            Self::Udp => wire::UDP,
            Self::Icmp => wire::ICMP,
        }
    }
}

impl From<TracedProtocol> for Protocol {
    fn from(protocol: TracedProtocol) -> Self {
        match protocol {
            TracedProtocol::Tcp => Self::Tcp,
            TracedProtocol::Udp => Self::Udp,
            TracedProtocol::Icmp => Self::Icmp,
        }
    }
}
