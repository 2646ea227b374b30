//! The command line: flanneld's flags in Go's style, ours beside them, each
//! also as `FLANNELD_*`.

mod go_style;

use std::ffi::OsString;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use regex::Regex;

use crate::bpf::{AttachMode, VerifySource};

const STATE_DIR: &str = "/var/lib/flannel-ebpf";
const PIN_DIR: &str = "/sys/fs/bpf/flannel";
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "flannel-agent",
    about = "flannel's daemon for etcd clusters, with an eBPF VXLAN data plane",
    disable_version_flag = true,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// What to do instead of running the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of the daemon.
    #[command(flatten)]
    pub daemon: Options,
    /// Print the version and exit
    #[arg(long)]
    version: bool,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show data path, lease, store, counters, and what is wrong
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// State directory of the agent
        #[arg(long, env = "FLANNELD_STATE_DIR", default_value = STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Show the peers, with packets by path
    Peers {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// State directory of the agent
        #[arg(long, env = "FLANNELD_STATE_DIR", default_value = STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Remove device, rules, programs, pins and files of a stopped agent
    Cleanup {
        /// State directory of the agent
        #[arg(long, env = "FLANNELD_STATE_DIR", default_value = STATE_DIR)]
        state_dir: PathBuf,
        /// Its pins
        #[arg(long, env = "FLANNELD_PIN_DIR", default_value = PIN_DIR)]
        pin_dir: PathBuf,
        /// Its subnet file
        #[arg(long, env = "FLANNELD_SUBNET_FILE", default_value = SUBNET_FILE)]
        subnet_file: PathBuf,
        /// Even if the agent runs
        #[arg(long)]
        force: bool,
    },
}

/// `--datapath`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DatapathMode {
    /// eBPF where it can be used, else the kernel path.
    #[default]
    Auto,
    /// eBPF, or exit.
    Ebpf,
    /// The kernel path.
    Kernel,
}

/// `--fast-path`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FastPath {
    /// Flows that the kernel was seen to deliver.
    #[default]
    Confirmed,
    /// None: the programs only count and check sources.
    Off,
}

/// Flags of the daemon.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Comma-separated list of etcd endpoints
    #[arg(
        long,
        env = "FLANNELD_ETCD_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    )]
    pub etcd_endpoints: Vec<String>,
    /// Prefix of config and leases in etcd
    #[arg(long, env = "FLANNELD_ETCD_PREFIX", default_value = "/coreos.com/network")]
    pub etcd_prefix: String,
    /// File of the CA that signed etcd's certificate
    #[arg(long, env = "FLANNELD_ETCD_CAFILE", value_parser = optional_path, default_value = "")]
    pub etcd_cafile: OptionalPath,
    /// File of the client certificate
    #[arg(long, env = "FLANNELD_ETCD_CERTFILE", value_parser = optional_path, default_value = "")]
    pub etcd_certfile: OptionalPath,
    /// File of the client certificate's key
    #[arg(long, env = "FLANNELD_ETCD_KEYFILE", value_parser = optional_path, default_value = "")]
    pub etcd_keyfile: OptionalPath,
    /// User for etcd
    #[arg(long, env = "FLANNELD_ETCD_USERNAME", default_value = "")]
    pub etcd_username: String,
    /// Password for etcd
    #[arg(long, env = "FLANNELD_ETCD_PASSWORD", default_value = "", hide_env_values = true)]
    pub etcd_password: String,
    /// Interface of the underlay, by name or address; repeatable, the first that fits
    #[arg(long, env = "FLANNELD_IFACE")]
    pub iface: Vec<String>,
    /// Address that other nodes send to [default: the interface's]
    #[arg(long, env = "FLANNELD_PUBLIC_IP")]
    pub public_ip: Option<Ipv4Addr>,
    /// Where to write the subnet for docker and CNI plugins
    #[arg(long, env = "FLANNELD_SUBNET_FILE", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// Minutes before its end at which the lease is renewed
    #[arg(
        long,
        env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN",
        value_name = "MINUTES",
        value_parser = renew_margin,
        default_value = "60"
    )]
    pub subnet_lease_renew_margin: Duration,
    /// Masquerade what leaves the overlay network
    #[arg(
        long,
        env = "FLANNELD_IP_MASQ",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
        action = ArgAction::Set
    )]
    pub ip_masq: bool,
    /// Data path
    #[arg(long, env = "FLANNELD_DATAPATH", value_enum, default_value = "auto")]
    pub datapath: DatapathMode,
    /// Which flows the fast path carries
    #[arg(long, env = "FLANNELD_FAST_PATH", value_enum, default_value = "confirmed")]
    pub fast_path: FastPath,
    /// How long the kernel's decision about a flow is repeated (seconds, or `500ms`)
    #[arg(
        long,
        env = "FLANNELD_FAST_PATH_WINDOW",
        value_name = "DURATION",
        value_parser = window,
        default_value = "5s"
    )]
    pub fast_path_window: Duration,
    /// What to do with tunnel packets of a forged source
    #[arg(long, env = "FLANNELD_VERIFY_SOURCE", value_enum, default_value = "drop")]
    pub verify_source: VerifySource,
    /// How programs are attached
    #[arg(long, env = "FLANNELD_ATTACH", value_enum, default_value = "auto")]
    pub attach: AttachMode,
    /// Serve only pods whose host-side veth matches this regular expression
    #[arg(long, env = "FLANNELD_ATTACH_IFACE", value_name = "REGEX", value_parser = Regex::new)]
    pub attach_iface: Option<Regex>,
    /// Where maps and links are pinned
    #[arg(long, env = "FLANNELD_PIN_DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Where the agent keeps its state file and control socket
    #[arg(long, env = "FLANNELD_STATE_DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
    /// Seconds between looks at everything
    #[arg(
        long,
        env = "FLANNELD_RESYNC_INTERVAL",
        value_name = "SECONDS",
        value_parser = seconds,
        default_value = "60"
    )]
    pub resync_interval: Duration,
}

/// A file name, or none if it is empty (as flanneld's defaults are).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OptionalPath(pub Option<PathBuf>);

fn optional_path(text: &str) -> Result<OptionalPath, std::convert::Infallible> {
    Ok(OptionalPath((!text.is_empty()).then(|| text.into())))
}

fn renew_margin(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(minutes @ 1..=1439) => Ok(Duration::from_secs(minutes * 60)),
        // flannel's words.
        _ => Err("Invalid subnet-lease-renew-margin option, out of acceptable range (1 to 1439 \
                  minutes)"
            .to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('s').unwrap_or(text).parse::<u64>() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("give seconds, from 1 to 86400".to_owned()),
    }
}

fn window(text: &str) -> Result<Duration, String> {
    let bad = || "give seconds, or a duration like 5s or 500ms".to_owned();
    let millis = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(millis), _) => millis.parse::<u64>().map_err(|_| bad())?,
        (None, seconds) => {
            let seconds: u64 = seconds.unwrap_or(text).parse().map_err(|_| bad())?;
            seconds.checked_mul(1000).ok_or_else(bad)?
        }
    };
    if (100..=20_000).contains(&millis) {
        Ok(Duration::from_millis(millis))
    } else {
        Err("it must lie between 100ms and 20s: below conntrack's timeout for UDP (30 s), which \
             only packets on the kernel path renew"
            .to_owned())
    }
}

/// The command line asks to print something and exit.
#[derive(Debug)]
pub struct Exit {
    /// What to print.
    pub text: String,
    /// On stderr (as flanneld does), not stdout.
    pub stderr: bool,
    /// Exit code.
    pub code: u8,
}

impl Exit {
    /// Prints the text; a reader that has gone away does not matter.
    pub fn print(&self) -> ExitCode {
        let _ = if self.stderr {
            std::io::stderr().write_all(self.text.as_bytes())
        } else {
            std::io::stdout().write_all(self.text.as_bytes())
        };
        ExitCode::from(self.code)
    }
}

/// Reads the command line and the environment. Returns the flags of flanneld's
/// logger beside it, which are accepted without effect.
///
/// # Errors
/// Help and version (code 0), and what cannot be understood (code 2; the renew
/// margin out of range: 1, as flanneld).
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Cli, Vec<String>), Exit> {
    let (arguments, ignored) = go_style::rewrite(arguments);
    let cli = Cli::try_parse_from(arguments).map_err(|error| {
        let text = error.render().to_string();
        let code = match error.kind() {
            ErrorKind::DisplayHelp => 0,
            _ if text.contains("Invalid subnet-lease-renew-margin") => 1,
            _ => 2,
        };
        Exit { text, stderr: true, code }
    })?;
    if cli.version {
        let text = format!("{}\n", env!("CARGO_PKG_VERSION"));
        return Err(Exit { text, stderr: true, code: 0 });
    }
    Ok((cli, ignored))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<(Cli, Vec<String>), Exit> {
        parse(["flannel-agent"].iter().chain(arguments).map(OsString::from))
    }

    fn options(arguments: &[&str]) -> Options {
        parsed(arguments).unwrap_or_else(|exit| panic!("{}", exit.text)).0.daemon
    }

    #[test]
    fn defaults_are_flannels() {
        let options = options(&[]);
        assert_eq!(options.etcd_endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
        assert_eq!(options.etcd_prefix, "/coreos.com/network");
        assert_eq!(options.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
        assert_eq!(options.subnet_lease_renew_margin, Duration::from_secs(3600));
        assert_eq!(options.etcd_cafile, OptionalPath(None));
        assert!(!options.ip_masq);
        assert_eq!(options.fast_path_window, Duration::from_secs(5));
        assert_eq!(options.datapath, DatapathMode::Auto);
    }

    #[test]
    fn both_styles_and_all_forms_of_a_boolean() {
        for arguments in [
            &["-etcd-endpoints=http://a:1,http://b:2", "-ip-masq"][..],
            &["--etcd-endpoints", "http://a:1,http://b:2", "--ip-masq=true"],
            &["-etcd-endpoints", "http://a:1,http://b:2", "-ip-masq=1"],
        ] {
            let options = options(arguments);
            assert_eq!(options.etcd_endpoints, ["http://a:1", "http://b:2"]);
            assert!(options.ip_masq, "{arguments:?}");
        }
        assert!(!options(&["-ip-masq=false"]).ip_masq);
        assert_eq!(options(&["-iface=eth1", "--iface", "eth2"]).iface, ["eth1", "eth2"]);
        assert_eq!(parsed(&["-ip-masq", "false"]).unwrap_err().code, 2, "Go would stop there");
    }

    #[test]
    fn durations_have_a_range_and_a_reason() {
        for (text, millis) in [("5", 5000), ("5s", 5000), ("500ms", 500)] {
            let window = options(&["--fast-path-window", text]).fast_path_window;
            assert_eq!(window, Duration::from_millis(millis));
        }
        for text in ["0", "21s", "50ms", "x", "18446744073709551615"] {
            let exit = parsed(&["--fast-path-window", text]).unwrap_err();
            assert_eq!(exit.code, 2, "{text}");
        }
        let exit = parsed(&["--fast-path-window=30"]).unwrap_err();
        assert!(exit.text.contains("conntrack's timeout for UDP"), "{}", exit.text);
        for text in ["0", "1440", "x"] {
            let exit = parsed(&["-subnet-lease-renew-margin", text]).unwrap_err();
            assert_eq!(exit.code, 1);
            assert!(exit.text.contains("Invalid subnet-lease-renew-margin option"));
        }
    }

    #[test]
    fn help_and_version_exit_well_and_unknown_flags_do_not() {
        for arguments in [["-h"], ["-help"], ["--help"]] {
            let exit = parsed(&arguments).unwrap_err();
            assert_eq!((exit.code, exit.stderr), (0, true), "{arguments:?}");
            assert!(exit.text.contains("--etcd-endpoints"));
        }
        let exit = parsed(&["-version"]).unwrap_err();
        assert_eq!((exit.code, exit.stderr), (0, true));
        let exit = parsed(&["-etcd-endpoint=x"]).unwrap_err();
        assert_eq!(exit.code, 2);
        assert!(exit.text.contains("--etcd-endpoints"), "a hint: {}", exit.text);
    }

    #[test]
    fn the_loggers_flags_are_told() {
        let (cli, ignored) = parsed(&["-v=10", "-iface=eth1"]).unwrap();
        assert_eq!(cli.daemon.iface, ["eth1"]);
        assert_eq!(ignored, ["-v"]);
    }

    #[test]
    fn subcommands_take_their_own_flags() {
        let (cli, _) = parsed(&["status", "--json", "-state-dir=/tmp/x"]).unwrap();
        let Some(Command::Status { json: true, state_dir }) = cli.command else {
            panic!("{:?}", cli.command);
        };
        assert_eq!(state_dir, PathBuf::from("/tmp/x"));
    }
}
