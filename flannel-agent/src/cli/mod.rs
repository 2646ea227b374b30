//! The command line: flannel's flags and our own, in Go's style and in the
//! usual one, and `FLANNELD_*` from the environment.

mod doctor;
mod etcd;
mod flannel;
mod go_style;
mod klog;
mod readers;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use flannel_core::config::NetworkConfig;
use flannel_core::underlay::Wish;
use regex::Regex;
use serde::Serialize;

pub use self::doctor::{CheckArgs, ConnectivityArgs, TraceArgs, TracedProtocol};
pub use self::etcd::{EtcdArgs, MigrateFrom, MigrateTo};
pub use self::flannel::WithoutEffect;
pub use self::klog::Klog;
pub use self::readers::{EventsArgs, FlowsArgs, SysdumpArgs};
pub use self::values::Secret;
use crate::bpf::{AttachMode, FastPath, VerifySource, XdpMode};
use crate::logging;
use crate::source::options::EtcdApi;

const STATE_DIR: &str = "/var/lib/flannel-ebpf";
const PIN_DIR: &str = "/sys/fs/bpf/flannel";
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Bounds of `--subnet-lease-renew-margin` in minutes: below the lease's 24 h.
const RENEW_MARGIN: std::ops::RangeInclusive<i64> = 1..=1439;

/// flannel's daemon for etcd clusters, with an eBPF VXLAN data plane.
#[derive(Debug, Parser)]
#[command(
    name = "flannel-agent",
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "Without a command it runs as the daemon. Flags may have one dash or two. Every flag of \
                  the daemon can also be given in the environment: FLANNELD_ and its name in capitals \
                  with _ for -, such as FLANNELD_ETCD_ENDPOINTS. The command line goes first. An empty \
                  value means that the flag is not set."
)]
pub struct Cli {
    /// What to do; `None`: run the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The daemon's flags.
    #[command(flatten)]
    pub daemon: Options,
    /// What was left out of command line and environment, and why.
    #[arg(skip)]
    pub warnings: Vec<String>,
}

/// Everything but running the daemon.
#[derive(Debug, Subcommand)]
#[command(args_override_self = true)]
pub enum Command {
    /// Show the state of this node's agent
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Directory with the agent's state
        #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Show the other nodes and their traffic
    Peers {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Directory with the agent's state
        #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Show what the agent did or noticed lately, and why
    Events(EventsArgs),
    /// Show the flows that the programs know, and why some are the kernel's
    Flows(FlowsArgs),
    /// Collect what a report needs into one archive, without secrets
    Sysdump(SysdumpArgs),
    /// Look for what is wrong with this node, and say what helps
    #[command(
        after_help = "Exit code: 0 well, 10 degraded or not all could be looked at, 20 broken."
    )]
    Check(CheckArgs),
    /// Try which peers are reached through the overlay
    #[command(after_help = "Exit code: 0 all are reached, 10 some are not, 20 none is.")]
    Connectivity(ConnectivityArgs),
    /// Tell hop by hop what would happen to a packet on this node, and why
    #[command(after_help = "Exit code: 0 it passes, 20 it or its answer is lost.")]
    Trace(TraceArgs),
    /// Remove everything from this node that the agent made
    Cleanup {
        /// Directory with the agent's state
        #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
        state_dir: PathBuf,
        /// Directory in bpffs with the pinned maps and links
        #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
        pin_dir: PathBuf,
        /// The file with the node's subnet
        #[arg(long, value_name = "FILE", default_value = SUBNET_FILE)]
        subnet_file: PathBuf,
        /// Go on even if an agent is running, or another network namespace uses
        /// the pins
        #[arg(long)]
        force: bool,
        /// Leave device (but udp's), routes, neighbours, FDB and subnet.env for
        /// flanneld, which goes on with them
        #[arg(long)]
        keep_device: bool,
    },
    /// Put this node's firewall rules back while no agent runs
    KeepRules {
        /// Directory with the agent's state
        #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Copy the network config and the leases from one API of etcd to the other
    Migrate {
        /// API to copy from
        #[arg(long, value_enum, value_name = "API")]
        from: MigrateFrom,
        /// API to copy to
        #[arg(long, value_enum, value_name = "API")]
        to: MigrateTo,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// How etcd is reached
        #[command(flatten)]
        etcd: EtcdArgs,
    },
    /// Load and pin the programs, for an agent that starts
    #[command(hide = true)]
    LoadPrograms {
        /// Directory in bpffs
        #[arg(long, value_name = "DIR")]
        pin_dir: PathBuf,
        /// As the daemon's flag
        #[arg(long)]
        flow_table_size: u32,
        /// The XDP program too
        #[arg(long)]
        card: bool,
    },
    /// Print a script that lets a shell complete flags and commands
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page
    Man {
        /// Write the pages of all commands into this directory instead
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// The daemon's flags.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How etcd is reached.
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// API of etcd that the leases are in
    #[arg(long, value_enum, value_name = "API", default_value_t)]
    pub etcd_api: EtcdApi,
    /// Interface of the underlay, by name or address; repeatable, the first
    /// that exists is taken [default: the default route's]
    #[arg(long, value_name = "NAME|IP", action = ArgAction::Append)]
    pub iface: Vec<String>,
    /// Interface of the underlay by a regular expression, tried on all
    /// addresses, then on all names; repeatable, after every --iface
    #[arg(long, value_name = "REGEX", action = ArgAction::Append, value_parser = Regex::new)]
    pub iface_regex: Vec<Regex>,
    /// Interface and source address of the route to this address are the
    /// underlay's, if no --iface and no --iface-regex fits
    #[arg(long, value_name = "IP")]
    pub iface_can_reach: Option<Ipv4Addr>,
    /// Address that the other nodes reach this one at; need not be a local one
    /// [default: the interface's]
    #[arg(long, value_name = "IP")]
    pub public_ip: Option<Ipv4Addr>,
    /// File to write the node's subnet and MTU to
    #[arg(long, value_name = "FILE", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// Masquerade traffic that leaves the overlay
    #[arg(long, value_name = "BOOL", value_parser = values::go_bool, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", default_value = "false",
          action = ArgAction::Set)]
    pub ip_masq: bool,
    /// Masquerade without random source ports
    #[arg(long, value_name = "BOOL", value_parser = values::go_bool, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", default_value = "false",
          action = ArgAction::Set)]
    pub ip_masq_fully_random_disable: bool,
    /// Accept forwarded packets of the overlay in the firewall
    #[arg(long, value_name = "BOOL", value_parser = values::go_bool, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", default_value = "true",
          action = ArgAction::Set)]
    pub iptables_forward_rules: bool,
    /// Drop packets to addresses of our subnet that nothing more specific
    /// leads to, with a blackhole route
    #[arg(long, value_name = "BOOL", value_parser = values::go_bool, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", default_value = "false",
          action = ArgAction::Set)]
    pub ip_blackhole_route: bool,
    /// Address to serve /healthz, /readyz and /metrics on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub healthz_ip: String,
    /// TCP port to serve /healthz, /readyz and /metrics on; 0: do not
    #[arg(long, value_name = "PORT", default_value_t = 0, allow_negative_numbers = true,
          value_parser = values::port)]
    healthz_port: i32,
    /// UDP and TCP port to answer `connectivity` of other nodes on, at our address of
    /// the overlay; 0: do not
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub connectivity_port: u16,
    /// Tell packets and bytes of each peer in /metrics
    #[arg(long, value_name = "BOOL", value_parser = values::go_bool, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", default_value = "false",
          action = ArgAction::Set)]
    pub metrics_peers: bool,
    /// Minutes before a lease's end at which it is renewed (1 to 1439)
    #[arg(long, value_name = "MINUTES", default_value_t = 60, allow_negative_numbers = true,
          value_parser = values::go_int)]
    subnet_lease_renew_margin: i64,
    /// What to do when our lease is deleted, runs out or is taken by another node
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    pub on_lost_lease: OnLostLease,
    /// Form of the log
    #[arg(long, value_enum, value_name = "FORM", default_value_t)]
    pub log_format: logging::Format,
    /// What carries the packets
    #[arg(long, value_enum, value_name = "PATH", default_value_t)]
    pub datapath: DatapathMode,
    /// Where the firewall's rules go
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    pub firewall: crate::firewall::Mode,
    /// Whether rules that judge each packet (limit, quota, queue, helpers, ...) keep
    /// the flows that they match on the kernel's path
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub packet_rules: flannel_core::status::PacketRulesMode,
    /// When the eBPF programs bypass the kernel's path
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub fast_path: FastPath,
    /// How long a flow stays on the fast path before the kernel sees a packet
    /// of it again: seconds, or with a unit (100ms to 20s)
    #[arg(long, value_name = "TIME", default_value = "5s",
          value_parser = values::fast_path_window)]
    pub fast_path_window: Duration,
    /// Flows that the fast path remembers at a time (1,024 to 8,388,608)
    #[arg(long, value_name = "FLOWS", default_value_t = flannel_ebpf::abi::MAX_FLOWS,
          value_parser = clap::value_parser!(u32).range(1024..=8_388_608))]
    pub flow_table_size: u32,
    /// What happens to packets from the overlay with a source that is not
    /// their sender's
    #[arg(long, value_enum, value_name = "MODE", default_value_t = VerifySource::default())]
    pub verify_source: VerifySource,
    /// How the programs are attached
    #[arg(long, value_enum, value_name = "HOOK", default_value_t = AttachMode::default())]
    pub attach: AttachMode,
    /// Whether packets lose their tunnel before GRO, in the underlay's driver
    #[arg(long, value_enum, value_name = "MODE", default_value_t = XdpMode::default())]
    pub xdp: XdpMode,
    /// Attach only to pods' interfaces whose names match
    #[arg(long, value_name = "REGEX", value_parser = Regex::new)]
    pub attach_iface: Option<Regex>,
    /// Directory in bpffs to pin maps and links in
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Directory for what has to outlive the agent
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
    /// Seconds between full comparisons with the kernel's state (1 to 86400)
    #[arg(long, value_name = "SECONDS", default_value = "60",
          value_parser = values::resync_interval)]
    pub resync_interval: Duration,
    /// Print the version and exit
    #[arg(long, value_name = "BOOL", value_parser = values::go_bool, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    version: bool,
    /// What flanneld has and we have no use for.
    #[command(flatten)]
    pub without_effect: WithoutEffect,
}

/// `--on-lost-lease`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnLostLease {
    /// Stay, and claim it again when the subnet is free
    #[default]
    Stay,
    /// End with exit code 4
    Exit,
}

/// `--datapath`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DatapathMode {
    /// eBPF where it works, else the kernel's path with the reason in the log
    /// and in the status
    #[default]
    Auto,
    /// eBPF, or fail to start
    Ebpf,
    /// The kernel's VXLAN device alone
    Kernel,
}

impl Options {
    /// Which interface is to be the underlay of this overlay network.
    pub fn underlay(&self, config: &NetworkConfig) -> Wish {
        Wish {
            iface: self.iface.clone(),
            iface_regex: self.iface_regex.clone(),
            can_reach: self.iface_can_reach,
            public_ip: self.public_ip,
            familiar: None,
            pods: Some(config.pods()),
        }
    }

    /// Port of the health server; `None`: there is none.
    pub fn healthz_port(&self) -> Option<u16> {
        u16::try_from(self.healthz_port).ok().filter(|port| *port != 0)
    }

    /// How long before its end a lease is renewed.
    pub fn renew_margin(&self) -> Duration {
        let minutes =
            self.subnet_lease_renew_margin.clamp(*RENEW_MARGIN.start(), *RENEW_MARGIN.end());
        Duration::from_secs(60 * minutes.unsigned_abs())
    }
}

/// Where an [`Exit`]'s text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// The process has to end without doing anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// What to print, with its newline.
    pub text: String,
    /// Where to print it.
    pub stream: Stream,
    /// Exit code.
    pub code: u8,
}

/// Reads the command line (`argv[0]` first) and, for the flags that are not
/// on it, the environment by way of `env`.
///
/// The second part of the result are the flags of flannel's logger.
pub fn parse(
    argv: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<(Cli, Klog), Exit> {
    let mut command = Cli::command();
    command.build();
    let line = go_style::normalise(&command, argv, &env).map_err(|text| usage(&command, &text))?;
    let mut cli = command
        .try_get_matches_from(&line.argv)
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| Exit::from_clap(&error, &line.from_env))?;
    if cli.daemon.version {
        let text = format!("v{}\n", env!("CARGO_PKG_VERSION"));
        return Err(Exit { text, stream: Stream::Err, code: 0 });
    }
    if cli.command.is_none() && !RENEW_MARGIN.contains(&cli.daemon.subnet_lease_renew_margin) {
        let text = format!(
            "Invalid subnet-lease-renew-margin option, out of acceptable range \
             ({} is not in {} to {} minutes)\n",
            cli.daemon.subnet_lease_renew_margin,
            RENEW_MARGIN.start(),
            RENEW_MARGIN.end()
        );
        return Err(Exit { text, stream: Stream::Err, code: 1 });
    }
    if cli.command.is_none() {
        cli.daemon.without_effect.check().map_err(|text| usage(&Cli::command(), &text))?;
    }
    cli.warnings = line.warnings;
    Ok((cli, Klog::read(line.logging, env)))
}

fn usage(command: &clap::Command, text: &str) -> Exit {
    let error = clap::Error::raw(ErrorKind::ValueValidation, format!("{text}\n")).with_cmd(command);
    Exit::from_clap(&error, &[])
}

impl Exit {
    fn from_clap(error: &clap::Error, from_env: &[String]) -> Self {
        let mut text = error.to_string();
        for name in from_env {
            if text.contains(&format!("--{name} ")) || text.contains(&format!("--{name}=")) {
                let variable = go_style::variable(name);
                text.push_str(&format!("\n--{name} was taken from {variable}.\n"));
            }
        }
        let stream = if error.use_stderr() { Stream::Err } else { Stream::Out };
        Self { text, stream, code: u8::try_from(error.exit_code()).unwrap_or(2) }
    }
}

/// The process's own environment, for [`parse`].
pub fn process_env(name: &str) -> Option<OsString> {
    std::env::var_os(OsStr::new(name))
}
