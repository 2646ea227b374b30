//! Real docker on nodes: one dockerd each, and containers on its bridge.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup;
use crate::node::Node;
use crate::process::{Process, output, run};
use crate::unit::Unit;
use crate::wait;

/// docker's service as far as it matters here, with the drop-in's setting. All
/// that dockerd is told of the network is in the environment file.
const SERVICE: &str = "EnvironmentFile=-/run/flannel/docker\n\
                       ExecStart=/usr/sbin/dockerd $DOCKER_NETWORK_OPTIONS --cgroup-parent=";

/// The command line's program: of the same package as dockerd, whatever else
/// is in PATH.
const CLIENT: &str = "/usr/bin/docker";

/// The image of all containers: busybox and nothing else.
const IMAGE: &str = "busybox";

/// A dockerd on a node. `Drop` ends it with all that it started.
pub struct Docker {
    process: Option<Process>,
    socket: PathBuf,
    dir: PathBuf,
    cgroup: String,
}

impl Node {
    /// Starts dockerd with what `/run/flannel/docker` says, and imports the
    /// image.
    ///
    /// # Panics
    /// It does not come up.
    #[track_caller]
    pub fn start_docker(&self) -> Docker {
        let root = self.root.as_ref().expect("the node has files of its own");
        let cgroup = format!("/{}", self.netns.name());
        let unit = Unit::parse(&format!("{SERVICE}{cgroup}"));
        let environment = self.service_environment(&unit);
        // In a process namespace: containers end with the first process.
        let unshare = ["--pid", "--fork", "--kill-child", "--mount-proc"];
        let mut command = self.service_command(&unit.start, &environment, &unshare);
        let log = self.dir.join("dockerd.log");
        let process = Process::start("dockerd", &mut command, &log);
        let mut docker = Docker {
            process: Some(process),
            socket: root.at("/run/docker.sock"),
            dir: self.dir.clone(),
            cgroup,
        };
        docker.wait_ready();
        docker.import();
        docker
    }
}

impl Docker {
    fn wait_ready(&mut self) {
        let start = std::time::Instant::now();
        while !output(self.client().arg("version")).status.success() {
            let ended = self.process.as_mut().and_then(Process::ended);
            assert!(ended.is_none(), "dockerd ended: {ended:?}");
            assert!(start.elapsed() < Duration::from_secs(30), "dockerd does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn import(&self) {
        let image = self.dir.join("image");
        let bin = image.join("bin");
        fs::create_dir_all(&bin).expect("a directory for the image");
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox (static)");
        symlink("busybox", bin.join("sh")).expect("a link in the image");
        let tar = self.dir.join("image.tar");
        run(Command::new("tar").arg("-C").arg(&image).arg("-cf").arg(&tar).arg("."));
        run(self.client().arg("import").arg(&tar).arg(IMAGE));
    }

    /// The command line's program for this dockerd.
    pub fn client(&self) -> Command {
        let mut command = Command::new(CLIENT);
        // No DOCKER_HOST or context of whoever runs the tests.
        command.env_clear().env("DOCKER_CONFIG", &self.dir);
        command.arg(format!("--host=unix://{}", self.socket.display()));
        command
    }

    /// Starts a container that runs this command line (of busybox).
    ///
    /// # Panics
    /// It cannot be started.
    #[track_caller]
    pub fn container(&self, name: &str, options: &[&str], line: &str) -> Container<'_> {
        let mut command = self.client();
        command.args(["run", "--detach", "--name", name]).args(options);
        run(command.args([IMAGE, "/bin/busybox"]).args(line.split_whitespace()));
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let text = run(self.client().args(["inspect", "--format", format, name]));
        let address = text.trim().parse().expect("a container's address");
        Container { docker: self, name: name.to_owned(), address }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // dockerd first, so that unshare sees it end and nobody inherits it.
            let pid = process.pid();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            for child in children.unwrap_or_default().split_whitespace() {
                if let Ok(child) = child.parse() {
                    // Gone already if dockerd has failed.
                    let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
                }
            }
            for _ in 0..250 {
                if process.ended().is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // What was started in it ends with the process namespace.
        cgroup::remove_everywhere(&self.cgroup);
    }
}

/// A container that runs.
pub struct Container<'a> {
    docker: &'a Docker,
    name: String,
    /// Its address on `docker0`.
    pub address: Ipv4Addr,
}

impl Container<'_> {
    /// Runs a line in the container's shell; applets are `busybox <name>`.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        run(self.docker.client().args(["exec", &self.name, "/bin/sh", "-c", line]))
    }

    /// Whether a line succeeds in the container's shell.
    pub fn try_sh(&self, line: &str) -> bool {
        let mut command = self.docker.client();
        output(command.args(["exec", &self.name, "/bin/sh", "-c", line])).status.success()
    }

    /// Waits until a TCP connection to this address is accepted.
    ///
    /// # Panics
    /// It is not within 10 s.
    #[track_caller]
    pub fn wait_port(&self, address: Ipv4Addr, port: u16) {
        let line = format!("busybox nc -w 1 {address} {port} </dev/null");
        let what = format!("connection from {} to {address}:{port}", self.address);
        wait::holds(&what, Duration::from_secs(10), || self.try_sh(&line));
    }
}
