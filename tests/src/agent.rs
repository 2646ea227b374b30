//! The real agent on a node.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::etcd::Etcd;
use crate::node::Node;
use crate::process::{Process, output};
pub use crate::program::program;
use crate::started::Running;
use crate::wait;

/// How long an agent may take until READY=1.
const READY: Duration = Duration::from_secs(20);

/// Options of one start. `..Options::default()` leaves the agent's defaults.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--datapath`.
    pub datapath: Option<&'static str>,
    /// `--attach`.
    pub attach: Option<&'static str>,
    /// `--fast-path-window`.
    pub window: Option<&'static str>,
    /// `--verify-source`.
    pub verify_source: Option<&'static str>,
    /// `--pin-dir` instead of the node's.
    pub pin_dir: Option<PathBuf>,
    /// `--ip-masq`.
    pub ip_masq: bool,
    /// `--etcd-endpoints` instead of the lab's etcd.
    pub endpoints: Option<String>,
    /// Put before the agent, e.g. `setpriv` with fewer capabilities.
    pub wrapper: Vec<String>,
    /// Further arguments.
    pub extra: Vec<String>,
    /// Environment.
    pub environment: Vec<(String, String)>,
}

impl Options {
    /// `--datapath=ebpf`: it is an error if the programs cannot be used.
    pub fn ebpf() -> Self {
        Self { datapath: Some("ebpf"), ..Self::default() }
    }

    /// `--datapath=kernel`.
    pub fn kernel() -> Self {
        Self { datapath: Some("kernel"), ..Self::default() }
    }
}

impl Node {
    /// Starts the agent and waits until it is ready.
    ///
    /// # Panics
    /// It ends, or is not ready in time.
    #[track_caller]
    pub fn start(&mut self, etcd: &Etcd, options: &Options) {
        self.launch(etcd, options);
        self.wait_ready(READY);
    }

    /// Starts the agent without waiting.
    ///
    /// # Panics
    /// One runs already.
    #[track_caller]
    pub fn launch(&mut self, etcd: &Etcd, options: &Options) {
        assert!(self.agent.is_none(), "an agent runs on {} already", self.address);
        let notify = self.notify_socket();
        let mut words = options.wrapper.clone();
        words.push(self.agent_program().display().to_string());
        let mut command = self.netns.command(&words[0]);
        command
            .args(&words[1..])
            .args(self.arguments(etcd, options))
            .env("NOTIFY_SOCKET", self.notify_path())
            .env("NO_COLOR", "1")
            .envs(options.environment.iter().cloned());
        let name = format!("agent {}", self.address);
        let process = Process::start(&name, &mut command, &self.log_file());
        self.agent = Some(Running { process, notify });
    }

    /// Where an agent on this node logs.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Where systemd's socket would be.
    pub fn notify_path(&self) -> PathBuf {
        self.dir.join("notify")
    }

    /// Listens where systemd would.
    ///
    /// # Panics
    /// The socket cannot be made.
    pub fn notify_socket(&self) -> UnixDatagram {
        let path = self.notify_path();
        // Left by the start before.
        let _ = std::fs::remove_file(&path);
        let notify = UnixDatagram::bind(&path).expect("a socket for NOTIFY_SOCKET");
        notify.set_nonblocking(true).expect("a non-blocking socket");
        notify
    }

    /// The agent's arguments on this node.
    pub fn arguments(&self, etcd: &Etcd, options: &Options) -> Vec<String> {
        let endpoints = options.endpoints.clone().unwrap_or_else(|| etcd.endpoint());
        let pin_dir = options.pin_dir.as_ref().unwrap_or(&self.pin_dir);
        let mut words = vec![
            format!("--etcd-endpoints={endpoints}"),
            "--iface=eth0".to_owned(),
            format!("--subnet-file={}", self.subnet_file().display()),
            format!("--state-dir={}", self.state_dir().display()),
            format!("--pin-dir={}", pin_dir.display()),
        ];
        let flags = [
            ("datapath", options.datapath),
            ("attach", options.attach),
            ("fast-path-window", options.window),
            ("verify-source", options.verify_source),
        ];
        for (name, value) in flags {
            words.extend(value.map(|value| format!("--{name}={value}")));
        }
        words.extend(options.ip_masq.then(|| "--ip-masq".to_owned()));
        words.extend(options.extra.iter().cloned());
        words
    }

    #[track_caller]
    fn running(&mut self) -> &mut Running {
        self.agent.as_mut().expect("the agent was started")
    }

    /// Waits for READY=1.
    ///
    /// # Panics
    /// The agent ends, or does not say so within `limit`.
    #[track_caller]
    pub fn wait_ready(&mut self, limit: Duration) -> Duration {
        let address = self.address;
        let running = self.running();
        let (start, limit) = (Instant::now(), limit * wait::patience());
        let mut said = String::new();
        while !said.lines().any(|line| line == "READY=1") {
            let mut bytes = [0; 4096];
            match running.notify.recv(&mut bytes) {
                Ok(length) => {
                    said.push_str(&String::from_utf8_lossy(&bytes[..length]));
                    said.push('\n');
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
            if let Some(status) = running.process.ended() {
                panic!("the agent on {address} ended: {status}");
            }
            assert!(start.elapsed() < limit, "{address} not ready within {limit:?}: {said:?}");
        }
        start.elapsed()
    }

    /// What came by NOTIFY_SOCKET since the last look.
    pub fn notifications(&mut self) -> Vec<String> {
        let notify = &self.running().notify;
        let mut bytes = [0; 4096];
        let mut said = Vec::new();
        while let Ok(length) = notify.recv(&mut bytes) {
            said.extend(String::from_utf8_lossy(&bytes[..length]).lines().map(str::to_owned));
        }
        said
    }

    /// kill -9.
    #[track_caller]
    pub fn kill_agent(&mut self) {
        self.running().process.kill();
        self.agent = None;
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Panics
    /// It does not end within 10 s.
    #[track_caller]
    pub fn stop_agent(&mut self) -> ExitStatus {
        self.running().process.signal(Signal::SIGTERM);
        let status = self.running().process.wait(Duration::from_secs(10));
        self.agent = None;
        status
    }

    /// The agent's exit status, if it has ended.
    #[track_caller]
    pub fn agent_ended(&mut self) -> Option<ExitStatus> {
        self.running().process.ended()
    }

    /// Waits until the agent ends by itself; another may be started then.
    ///
    /// # Panics
    /// It does not within `limit`.
    #[track_caller]
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        let status = self.running().process.wait(limit);
        self.agent = None;
        status
    }

    /// Process id of the agent.
    #[track_caller]
    pub fn agent_pid(&mut self) -> u32 {
        self.running().process.pid()
    }

    /// All that agents on this node have logged.
    pub fn agent_log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Runs a subcommand of the agent with the node's directories.
    pub fn agent_command(&self, name: &str) -> Command {
        let mut command = self.netns.command(self.agent_program());
        command.arg(name).arg(format!("--state-dir={}", self.state_dir().display()));
        command
    }

    /// `flannel-agent cleanup`.
    pub fn cleanup(&self) -> Output {
        self.cleanup_with(&[])
    }

    /// `flannel-agent cleanup` with further flags.
    pub fn cleanup_with(&self, flags: &[&str]) -> Output {
        let mut command = self.agent_command("cleanup");
        let pins = format!("--pin-dir={}", self.pin_dir.display());
        let file = format!("--subnet-file={}", self.subnet_file().display());
        output(command.args([pins, file]).args(flags))
    }

    /// Waits until the kernel has a route to every one of `nodes`' subnets.
    ///
    /// # Panics
    /// It has not within 10 s.
    #[track_caller]
    pub fn wait_routes(&self, nodes: &[&Node]) {
        for node in nodes {
            let subnet = node.subnet().to_string();
            let what = format!("route to {subnet} on {}", self.address);
            wait::holds(&what, Duration::from_secs(10), || {
                self.netns.ip("route show").contains(&format!("{subnet} via "))
            });
        }
    }
}
