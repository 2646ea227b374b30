//! What a report needs. Whatever cannot be had is left out, with the reason.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use flannel_core::text::lasting;
use tokio::process::Command;
use tokio::time::timeout;

use super::super::known::Daemon;
use super::super::{ask, flows};
use super::store;
use crate::bpf::PinnedFlows;
use crate::cli::SysdumpArgs;
use crate::control::Request;
use crate::files::state;

/// How long one part may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most bytes of one part that are kept: of its end.
const LENGTH: usize = 8 << 20;

/// Programs that are run, by the name of the file that their output goes to.
const PROGRAMS: &[(&str, &str)] = &[
    ("kernel.txt", "uname -a"),
    ("links.txt", "ip -d -s link show"),
    ("addresses.txt", "ip -4 address show"),
    ("routes.txt", "ip -d -4 route show table all"),
    ("rules.txt", "ip -4 rule show"),
    ("neighbours.txt", "ip -4 neighbour show"),
    ("ipsec-policies.txt", "ip xfrm policy"),
    ("fdb.txt", "bridge -d fdb show"),
    ("bridge-ports.txt", "bridge -d link show"),
    ("qdiscs.txt", "tc -s qdisc show"),
    ("sockets.txt", "ss -lunp"),
    ("nftables.txt", "nft list ruleset"),
    ("iptables.txt", "iptables-save -c"),
    ("iptables-legacy.txt", "iptables-legacy-save -c"),
    ("bpf-net.txt", "bpftool net show"),
    ("bpf-programs.txt", "bpftool prog show"),
    ("bpf-maps.txt", "bpftool map show"),
    ("bpf-links.txt", "bpftool link show"),
    ("sysctls.txt", "sysctl net.ipv4 net.netfilter net.bridge net.core"),
    ("unit.txt", "systemctl cat flannel-agent.service flanneld.service"),
    (
        "log.txt",
        "journalctl --no-pager --lines 20000 --output short-iso-precise --unit flannel-agent \
         --unit flanneld",
    ),
];

/// One file of the archive.
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) text: String,
    pub(super) error: Option<String>,
}

impl Part {
    fn of(name: &'static str, told: Result<String, String>) -> Self {
        match told {
            Ok(text) => Self { name, text: end(text), error: None },
            Err(error) => Self { name, text: String::new(), error: Some(error) },
        }
    }
}

/// All of it.
pub(super) async fn all(args: &SysdumpArgs) -> Vec<Part> {
    let daemon = Daemon::ask(&args.reader.state.dir);
    let mut parts = vec![
        Part::of("agent.txt", Ok(format!("flannel-agent {}\n", env!("CARGO_PKG_VERSION")))),
        Part::of("status.json", told(args, Request::Status)),
        Part::of("peers.json", told(args, Request::Peers)),
        Part::of("events.json", told(args, Request::Events(0))),
        Part::of("flows.json", known_flows(&daemon.pin_dir(&args.pins.dir))),
        Part::of("metrics.txt", metrics(args, &daemon)),
        Part::of("network-config.txt", store::text(&args.etcd, &daemon, PATIENCE).await),
        Part::of("os-release.txt", file("/etc/os-release".as_ref())),
        Part::of("state.json", file(&state::path(&args.reader.state.dir))),
        Part::of("subnet.env", file(&daemon.subnet_file(&args.subnet_file.path))),
        Part::of("sysconfig.txt", file("/etc/sysconfig/flanneld".as_ref())),
        Part::of("default.txt", file("/etc/default/flanneld".as_ref())),
    ];
    for (name, line) in PROGRAMS {
        parts.push(program(name, line).await);
    }
    parts
}

fn told(args: &SysdumpArgs, request: Request) -> Result<String, String> {
    ask(&args.reader.state.dir, request)
        .map_err(|error| error.to_string())?
        .ok_or_else(|| "the agent is not running".to_owned())
}

fn known_flows(pin_dir: &Path) -> Result<String, String> {
    let pinned = PinnedFlows::open(pin_dir);
    let flows = pinned.and_then(|pinned| flows::read(&pinned, &Default::default()));
    serde_json::to_string(&flows.map_err(|error| error.to_string())?)
        .map_err(|error| error.to_string())
}

fn file(path: &Path) -> Result<String, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `/metrics` of an agent that serves it.
fn metrics(args: &SysdumpArgs, daemon: &Daemon) -> Result<String, String> {
    let serves = daemon.flags.as_ref().map(|flags| &flags.healthz);
    let port = args.healthz_port.or_else(|| serves?.port());
    let port = port.ok_or("without --healthz-port the agent serves none")?;
    let host = serves.and_then(|serves| serves.host.parse().ok());
    let host = host.filter(|host: &IpAddr| !host.is_unspecified());
    let answer = || -> io::Result<String> {
        let address = SocketAddr::from((host.unwrap_or(Ipv4Addr::LOCALHOST.into()), port));
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    answer().map_err(|error| format!("port {port}: {error}"))
}

async fn program(name: &'static str, line: &str) -> Part {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            let program = line.split(' ').next().unwrap_or(line);
            return Part::of(name, Err(format!("{line}: {program} is not installed")));
        }
        Ok(Err(error)) => return Part::of(name, Err(format!("{line}: {error}"))),
        Err(_) => {
            return Part::of(name, Err(format!("{line}: not done within {}", lasting(PATIENCE))));
        }
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let error = (!output.status.success()).then(|| {
        format!("{line}: {}{}{said}", output.status, if said.is_empty() { "" } else { ": " })
    });
    Part { name, text: end(text), error }
}

/// The last [`LENGTH`] bytes.
fn end(text: String) -> String {
    let from = text.len().saturating_sub(LENGTH);
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_is_missing_or_fails_is_told() {
        let there = program("a", "echo hello").await;
        assert_eq!((there.text.as_str(), there.error), ("hello\n", None));
        let missing = program("a", "no-such-program-here x").await.error.unwrap();
        assert!(
            missing.contains("no-such-program-here x: no-such-program-here is not installed"),
            "{missing}"
        );
        let failed = program("a", "ls /no/such/place").await.error.unwrap();
        assert!(failed.contains("exit status: 2: ls: "), "{failed}");
    }

    #[test]
    fn what_is_too_long_loses_its_beginning() {
        let text = format!("ü{}", "x".repeat(LENGTH - 1));
        assert_eq!(end(text).len(), LENGTH - 1);
        assert_eq!(end("short".to_owned()), "short");
    }
}
