//! Nodes whose services are started as systemd starts them.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use crate::node::Node;
use crate::process::{Process, run};
use crate::root::Root;
use crate::started::Running;
use crate::unit::{self, Unit};

/// As systemd sets it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Node {
    /// Gives the node a file system of its own with the packages' files. From
    /// now on its files are at their default places in there.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn install(&mut self) -> Root {
        let root = Root::new(&self.dir, &self.pin_dir);
        self.root = Some(root.clone());
        // What the node sees as /sys/fs/bpf/flannel.
        self.pin_dir.push("flannel");
        root
    }

    #[track_caller]
    fn installed(&self) -> &Root {
        self.root.as_ref().expect("the node has files of its own")
    }

    /// Starts the service of a unit file: environment files, `ExecStart`, then
    /// the wait for READY=1, then `ExecStartPost`.
    ///
    /// # Panics
    /// A file that has to be there is missing, or a command fails.
    #[track_caller]
    pub fn start_service(&mut self, text: &str) {
        self.launch_service(text);
        self.wait_ready(Duration::from_secs(20));
        let unit = Unit::parse(text);
        let environment = self.service_environment(&unit);
        for line in &unit.start_post {
            run(&mut self.service_command(line, &environment, &[]));
        }
    }

    /// As [`Node::start_service`], up to the start of `ExecStart`.
    ///
    /// # Panics
    /// A file that has to be there is missing.
    #[track_caller]
    pub fn launch_service(&mut self, text: &str) {
        assert!(self.agent.is_none(), "an agent runs on {} already", self.address);
        let unit = Unit::parse(text);
        let environment = self.service_environment(&unit);
        let socket = self.dir.join("notify");
        // Left by the start before.
        let _ = std::fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).expect("a socket for NOTIFY_SOCKET");
        notify.set_nonblocking(true).expect("a non-blocking socket");
        let mut command = self.service_command(&unit.start, &environment, &[]);
        command.env("NOTIFY_SOCKET", &socket);
        let log = self.dir.join("agent.log");
        let name = format!("flanneld {}", self.address);
        self.agent = Some(Running { process: Process::start(&name, &mut command, &log), notify });
    }

    /// The variables of a unit's environment files, as they are now.
    #[track_caller]
    pub(crate) fn service_environment(&self, unit: &Unit) -> BTreeMap<String, String> {
        let mut environment = BTreeMap::new();
        for (path, optional) in &unit.environment_files {
            match self.installed().read(path) {
                Some(text) => environment.extend(unit::variables(&text)),
                None => assert!(optional, "{path} is missing on {}", self.address),
            }
        }
        environment
    }

    /// A command line of a unit on the node.
    pub fn service_command(
        &self,
        line: &str,
        environment: &BTreeMap<String, String>,
        unshare: &[&str],
    ) -> Command {
        let mut command = self.installed().command(&self.netns, unshare);
        command.args(unit::words(line, environment));
        command.env_clear().env("PATH", PATH).envs(environment);
        // Programs other than the embedded ones are part of the test run.
        if let Some(object) = std::env::var_os("FLANNEL_EBPF_OBJECT") {
            command.env("FLANNEL_EBPF_OBJECT", object);
        }
        command
    }
}
