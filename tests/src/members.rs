//! An etcd of three members, each a host of its own on the underlay.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::etcd::PREFIX;
use crate::lab::Lab;
use crate::netns::Netns;
use crate::process::{Process, output};
use crate::wait;

/// Where they are.
pub const MEMBERS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 101), Ipv4Addr::new(192, 0, 2, 102), Ipv4Addr::new(192, 0, 2, 103)];

/// Three members. They are named by their place in [`MEMBERS`].
pub struct Members {
    processes: [Option<Process>; 3],
    hosts: [Netns; 3],
    dir: PathBuf,
}

impl Members {
    /// Starts them, and waits until they have a leader.
    ///
    /// # Panics
    /// They have none within 20 s.
    pub fn start(lab: &Lab) -> Self {
        let hosts = MEMBERS.map(|address| lab.stranger(address));
        let mut members = Self { processes: [None, None, None], hosts, dir: lab.dir().to_owned() };
        (0..MEMBERS.len()).for_each(|member| members.restart(member));
        wait::holds("three members", Duration::from_secs(20), || members.writes(0, "try", "it"));
        members
    }

    /// Their addresses, for `--etcd-endpoints`.
    pub fn endpoints() -> String {
        MEMBERS.map(|address| url(address, 2379)).join(",")
    }

    /// Starts one again, with the data that it had.
    pub fn restart(&mut self, member: usize) {
        let name = |member: usize| format!("member{member}");
        let (client, peer) = (url(MEMBERS[member], 2379), url(MEMBERS[member], 2380));
        let all = MEMBERS.iter().enumerate();
        let all = all.map(|(at, address)| format!("{}={}", name(at), url(*address, 2380)));
        let dir = self.dir.join(name(member));
        let mut command = self.hosts[member].command("etcd");
        command.args(["--name", &name(member)]).arg("--data-dir").arg(&dir);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &all.collect::<Vec<_>>().join(",")]);
        let log: &Path = &dir.with_extension("log");
        self.processes[member] = Some(Process::start(&name(member), &mut command, log));
    }

    /// SIGKILL.
    pub fn kill(&mut self, member: usize) {
        self.processes[member] = None;
    }

    /// Stops one from answering, connections stay (SIGSTOP).
    ///
    /// # Panics
    /// It does not run.
    pub fn freeze(&self, member: usize) {
        self.running(member).signal(Signal::SIGSTOP);
    }

    /// Lets it go on after [`Members::freeze`].
    ///
    /// # Panics
    /// It does not run.
    pub fn thaw(&self, member: usize) {
        self.running(member).signal(Signal::SIGCONT);
    }

    fn running(&self, member: usize) -> &Process {
        self.processes[member].as_ref().expect("the member runs")
    }

    /// Cuts one off from the others. Clients reach it as before.
    pub fn cut(&self, member: usize) {
        self.hosts[member].nft(
            "table ip cut {
                chain in { type filter hook input priority 0; meta l4proto tcp th dport 2380 drop
                    meta l4proto tcp th sport 2380 drop; }
                chain out { type filter hook output priority 0; meta l4proto tcp th dport 2380 drop
                    meta l4proto tcp th sport 2380 drop; }
            }",
        );
    }

    /// Ends what [`Members::cut`] began.
    pub fn heal(&self, member: usize) {
        self.hosts[member].nft("delete table ip cut");
    }

    /// Whether this member writes a key below [`PREFIX`].
    pub fn writes(&self, member: usize, key: &str, value: &str) -> bool {
        let endpoint = format!("--endpoints={}", url(MEMBERS[member], 2379));
        let mut command = self.hosts[member].command("etcdctl");
        command.env("ETCDCTL_API", "3").args([&endpoint, "--command-timeout=2s"]);
        output(command.args(["put", &format!("{PREFIX}/{key}"), value])).status.success()
    }
}

fn url(address: Ipv4Addr, port: u16) -> String {
    format!("http://{address}:{port}")
}
