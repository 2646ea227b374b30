//! One node under measurement, and what its agent costs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use flannel_tests::agent::{Options, program};
use flannel_tests::etcd::Etcd;
use flannel_tests::hooks;
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::process::Process;
use nix::sys::signal::{SigSet, Signal};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::store::{Paper, Store};

/// Agents get subnets of 10.0.0.0/16; leases on paper are in the rest of it.
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.0.1.0",
    "SubnetMax":"10.0.255.0","Backend":{"Type":"vxlan"}}"#;

/// Whether an agent has ended is looked at this often.
const LISTEN: Duration = Duration::from_millis(500);
/// USER_HZ.
const TICKS: f64 = 100.0;

/// How long a start may take.
const START: Duration = Duration::from_secs(120);

/// A store with leases, and nodes to come. Declared in the order in which they
/// have to go.
pub(super) struct Bed {
    pub(super) store: Store,
    pub(super) etcd: Etcd,
    pub(super) lab: Lab,
    nodes: u8,
}

impl Bed {
    /// An etcd with these leases.
    pub(super) fn new(papers: &[Paper]) -> Self {
        let lab = Lab::new();
        let etcd = lab.empty_etcd();
        etcd.put_config(CONFIG);
        let store = Store::open(&etcd, lab.underlay());
        store.fill(papers);
        Self { store, etcd, lab, nodes: 0 }
    }

    /// A node that never had an agent.
    pub(super) fn node(&mut self) -> Node {
        self.nodes += 1;
        self.lab.node(self.nodes)
    }
}

/// The agent's options here: what flannel is usually started with.
pub(super) fn options() -> Options {
    Options { ip_masq: true, ..Options::default() }
}

/// An agent that was started, without anything between us and it.
pub(super) struct Agent {
    process: Process,
    notify: UnixDatagram,
    began: Instant,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    /// CPU time of all its threads, in seconds.
    pub(super) cpu: f64,
    /// That of the programs that it ran, in seconds.
    pub(super) others: f64,
    /// Memory, in MB.
    pub(super) memory: f64,
    /// The most memory so far, in MB.
    pub(super) peak: f64,
}

impl Agent {
    /// Starts the agent.
    pub(super) fn exec(node: &Node, etcd: &Etcd) -> Self {
        Self::exec_with(node, etcd, &options())
    }

    /// The same with other options.
    pub(super) fn exec_with(node: &Node, etcd: &Etcd, options: &Options) -> Self {
        let notify = node.notify_socket();
        notify.set_nonblocking(false).expect("a blocking socket");
        notify.set_read_timeout(Some(START)).expect("a limit");
        let arguments = node.arguments(etcd, options);
        let (socket, log) = (node.notify_path(), node.log_file());
        let (process, began) = node.netns.inside(|| {
            let agent = program();
            let mut words = options.wrapper.iter().map(OsStr::new).chain([agent.as_os_str()]);
            let mut command = Command::new(words.next().expect("at least the agent"));
            command.args(words).args(arguments).env("NOTIFY_SOCKET", socket).env("NO_COLOR", "1");
            // A child has the mask of the thread that starts it.
            SigSet::all().thread_unblock().expect("unblock signals");
            let began = Instant::now();
            (Process::start("agent", &mut command, &log), began)
        });
        Self { process, notify, began }
    }

    /// Seconds from exec to READY=1.
    ///
    /// # Panics
    /// It is not ready in time.
    pub(super) fn ready(&self) -> f64 {
        let mut bytes = [0; 4096];
        loop {
            let length = self.notify.recv(&mut bytes).expect("READY=1");
            let told = String::from_utf8_lossy(&bytes[..length]);
            if told.lines().any(|line| line == "READY=1") {
                let took = self.began.elapsed().as_secs_f64();
                self.listen();
                return took;
            }
        }
    }

    /// Takes what is said from now on, as systemd does: until the agent has ended.
    fn listen(&self) {
        let notify = self.notify.try_clone().expect("duplicate a socket");
        notify.set_read_timeout(Some(LISTEN)).expect("a limit");
        let pid = self.process.pid();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while fs::exists(format!("/proc/{pid}")).unwrap_or(false) {
                // Silence is no failure.
                let _ = notify.recv(&mut bytes);
            }
        });
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(super) fn used(&self) -> Used {
        let pid = self.process.pid();
        let id = Pid::from_raw(pid.try_into().expect("a process id"));
        let cpu = clock_getcpuclockid(id).and_then(clock_gettime).expect("the agent's CPU clock");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("/proc");
        let megabytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
            number.unwrap_or(f64::NAN) / 1024.0
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("/proc");
        // Behind the name, which may hold anything: state, ..., cutime and cstime.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let others: f64 = fields.skip(13).take(2).filter_map(|n| n.parse::<f64>().ok()).sum();
        Used {
            others: others / TICKS,
            cpu: Duration::from(cpu).as_secs_f64(),
            memory: megabytes("VmRSS"),
            peak: megabytes("VmHWM"),
        }
    }

    /// SIGTERM, and waits for the end.
    pub(super) fn stop(mut self) {
        self.process.signal(Signal::SIGTERM);
        self.process.wait(Duration::from_secs(10));
    }
}

/// Routes, neighbour and FDB entries of `flannel.1`, and entries of the map.
pub(super) fn programmed(node: &Node) -> [usize; 4] {
    let lines = |command: &str, with: &str| {
        let text = node.netns.sh(command);
        text.lines().filter(|line| line.contains(with)).count()
    };
    [
        lines("ip route show dev flannel.1", " via "),
        lines("ip neighbour show dev flannel.1 nud permanent", "lladdr"),
        lines("bridge fdb show dev flannel.1", " dst "),
        hooks::dump(node.pin_dir(), "fl_subnets4").len(),
    ]
}
