//! The command line: flannel's flags and our own, in Go's style and in the
//! usual one, and `FLANNELD_*` from the environment.

mod cleanup;
mod common;
mod doctor;
mod flannel;
mod go_style;
mod klog;
mod lease;
mod migrate;
mod readers;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
mod variables;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{
    ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
};
use clap_complete::Shell;
use flannel_core::checksum::TunnelChecksum;
use flannel_core::underlay::Wish;
use serde::Serialize;

pub use self::cleanup::CleanupArgs;
pub use self::common::{PinDirArg, ReaderArgs, StateDir, SubnetFileArg};
pub use self::doctor::{CheckArgs, ConnectivityArgs, TraceArgs, TracedProtocol};
pub use self::flannel::WithoutEffect;
pub use self::klog::Klog;
pub use self::lease::{LeaseOptions, OnLostLease};
pub use self::migrate::{MigrateArgs, MigrateFrom, MigrateTo};
pub use self::readers::{EventsArgs, FlowsArgs, MonitorArgs, SysdumpArgs};
pub use self::variables::without_a_flag;
use crate::bpf::{FastPathOptions, LoadAside, PIN_DIR, ProgramOptions};
use crate::firewall::RuleOptions;
use crate::healthz::HealthzOptions;
use crate::metrics::MetricsOptions;
use crate::source::options::{EtcdApi, EtcdOptions};
use crate::{flag, logging};

const STATE_DIR: &str = "/var/lib/flannel-ebpf";
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

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
    Status(ReaderArgs),
    /// Show the other nodes and their traffic
    Peers(ReaderArgs),
    /// Show what the agent did or noticed lately, and why
    Events(EventsArgs),
    /// Show the flows that the programs know, and why some are the kernel's
    Flows(FlowsArgs),
    /// Show packets as the programs see them, and what became of each
    Monitor(MonitorArgs),
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
    Cleanup(CleanupArgs),
    /// Put this node's firewall rules back while no agent runs
    KeepRules(StateDir),
    /// Copy the network config and the leases from one API of etcd to the other
    Migrate(MigrateArgs),
    /// Load and pin the programs, for an agent that starts
    #[command(hide = true)]
    LoadPrograms {
        /// Directory in bpffs
        #[arg(long, value_name = "DIR")]
        pin_dir: PathBuf,
        /// As the daemon's flag
        #[arg(long)]
        flow_table_size: u32,
        /// How
        #[command(flatten)]
        how: LoadAside,
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

/// The daemon's flags, in groups: each is declared where it is read.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How etcd is reached.
    #[command(flatten)]
    pub etcd: EtcdOptions,
    /// API of etcd that the leases are in
    #[arg(long, value_enum, value_name = "API", default_value_t)]
    pub etcd_api: EtcdApi,
    /// Which interface is to be the underlay.
    #[command(flatten)]
    pub underlay: Wish,
    /// File to write the node's subnet and MTU to
    #[arg(long, value_name = "FILE", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// Which rules there are.
    #[command(flatten)]
    pub rules: RuleOptions,
    /// Drop packets to addresses of our subnet that nothing more specific
    /// leads to, with a blackhole route
    #[arg(long, value_name = "BOOL", value_parser = flag::go_bool, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", default_value = "false",
          action = ArgAction::Set)]
    pub ip_blackhole_route: bool,
    /// Where probes and scrapes are answered.
    #[command(flatten)]
    pub healthz: HealthzOptions,
    /// UDP and TCP port to answer `connectivity` of other nodes on, at our address of
    /// the overlay; 0: do not
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub connectivity_port: u16,
    /// What scrapes are told.
    #[command(flatten)]
    pub metrics: MetricsOptions,
    /// How our lease is kept.
    #[command(flatten)]
    pub lease: LeaseOptions,
    /// Form of the log
    #[arg(long, value_enum, value_name = "FORM", default_value_t)]
    pub log_format: logging::Format,
    /// What carries the packets
    #[arg(long, value_enum, value_name = "PATH", default_value_t)]
    pub datapath: DatapathMode,
    /// Who makes the checksums of packets that go into the tunnel
    #[arg(long, value_enum, value_name = "WHO", default_value_t)]
    pub tunnel_checksum: TunnelChecksum,
    /// Where the firewall's rules go
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    pub firewall: crate::firewall::Mode,
    /// When packets take the fast path.
    #[command(flatten)]
    pub fast_path: FastPathOptions,
    /// How the programs are made, and where they hang.
    #[command(flatten)]
    pub programs: ProgramOptions,
    /// Directory for what has to outlive the agent
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
    /// Seconds between full comparisons with the kernel's state (1 to 86400)
    #[arg(long, value_name = "SECONDS", default_value = "60",
          value_parser = flag::resync_interval)]
    pub resync_interval: Duration,
    /// Print the version and exit
    #[arg(long, value_name = "BOOL", value_parser = flag::go_bool, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    version: bool,
    /// What flanneld has and we have no use for.
    #[command(flatten)]
    pub without_effect: WithoutEffect,
}

impl Command {
    /// How etcd is reached, with those that ask it.
    fn etcd(&mut self) -> Option<&mut EtcdOptions> {
        match self {
            Self::Check(args) => Some(&mut args.etcd),
            Self::Connectivity(args) => Some(&mut args.etcd),
            Self::Trace(args) => Some(&mut args.etcd),
            Self::Sysdump(args) => Some(&mut args.etcd),
            Self::Migrate(args) => Some(&mut args.etcd),
            _ => None,
        }
    }
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
    let command = with_plain_usage(command);
    let line = go_style::normalise(&command, argv, &env).map_err(|text| usage(&command, &text))?;
    let mut cli = command
        .try_get_matches_from(&line.argv)
        .and_then(|matches| read(&matches))
        .map_err(|error| Exit::from_clap(&error, &line.from_env))?;
    if cli.daemon.version {
        let text = format!("v{}\n", env!("CARGO_PKG_VERSION"));
        return Err(Exit { text, stream: Stream::Err, code: 0 });
    }
    if cli.command.is_none() {
        let refused = |text| Exit { text, stream: Stream::Err, code: 1 };
        cli.daemon.lease.check().map_err(refused)?;
        cli.daemon.without_effect.check().map_err(|text| usage(&Cli::command(), &text))?;
    }
    cli.warnings = line.warnings;
    cli.warnings.extend(cli.daemon.etcd.warnings());
    Ok((cli, Klog::read(line.logging, env)))
}

fn read(matches: &ArgMatches) -> Result<Cli, clap::Error> {
    let mut cli = Cli::from_arg_matches(matches)?;
    if let (Some(command), Some((_, matches))) = (&mut cli.command, matches.subcommand())
        && let Some(etcd) = command.etcd()
    {
        etcd.note_given(matches);
    }
    Ok(cli)
}

/// With the usage that `--help` has in errors, too. clap's own there names each flag that
/// was given, those of the environment as well.
fn with_plain_usage(command: clap::Command) -> clap::Command {
    let plain = |mut command: clap::Command| {
        let usage = command.render_usage().to_string();
        command.override_usage(usage.trim_start_matches("Usage: ").to_owned())
    };
    plain(command).mut_subcommands(plain)
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
