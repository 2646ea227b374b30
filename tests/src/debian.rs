//! A node whose system is a bare Debian of its own, as packages find it: nothing of this
//! machine's files is in it. [`crate::machine`] boots this machine's files instead.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::node::Node;
use crate::process::{Process, output, run};
use crate::root::Root;
use crate::wait;

/// Enters the control groups that `$1` lists, and becomes the rest.
const BEGIN: &str = r#"for door in $1; do echo $$ > "$door" || exit; done; shift; exec "$@""#;

/// What systemd sets for services, and what keeps programs from asking.
const ENVIRONMENT: [&str; 4] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND=noninteractive",
    "SYSTEMD_PAGER=cat",
    "NO_COLOR=1",
];

/// A booted system. `Drop` ends it; what it wrote is gone then.
pub struct Debian {
    process: Process,
    /// systemd, as we see it.
    leader: u32,
    root: Root,
    // Last: a group goes when nobody is left in it.
    _cgroup: Cgroup,
}

impl Node {
    /// Boots the system in the directory `system`, which stays as it is. It sees the
    /// directory `share` as `/mnt`. From now on the node's files are the system's.
    ///
    /// # Panics
    /// It does not come up, or a service fails.
    #[track_caller]
    pub fn boot_debian(&mut self, system: &Path, share: &Path) -> Debian {
        assert!(system.exists(), "{}: run `cargo xtask setup`", system.display());
        std::fs::create_dir_all(&self.pin_dir).expect("a directory for pins");
        let name = self.netns.name().to_owned();
        let cgroup = Cgroup::new(&name);
        let doors: Vec<_> = cgroup.doors().map(|door| door.display().to_string()).collect();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sh", "-c", BEGIN, "begin", &doors.join(" ")]);
        command.arg("systemd-nspawn").args(["--quiet", "--register=no", "--keep-unit", "--boot"]);
        command.arg(format!("--machine={name}")).arg("--directory").arg(system);
        command.args(["--volatile=overlay", "--tmpfs=/var/lib/docker", "--console=pipe"]);
        command.arg(format!("--network-namespace-path={}", self.netns.path().display()));
        command.args(["--capability=all", "--system-call-filter=bpf perf_event_open @keyring"]);
        command.arg(format!("--bind={}:/sys/fs/bpf", self.pin_dir.display()));
        command.arg(format!("--bind-ro={}:/mnt", share.display()));
        // As on a machine, the node's sysctls can be set, and docker finds its groups.
        command.env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network");
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        let log = self.dir.join("boot.log");
        let mut process = Process::start("systemd-nspawn", &mut command, &log);
        let (leader, _) = wait::until("systemd", Duration::from_secs(30), || {
            assert!(process.ended().is_none(), "{}", process.log());
            first_process(process.pid())
        });
        let root = Root::of_process(&self.dir, &self.pin_dir, leader);
        self.root = Some(root.clone());
        self.pin_dir.push("flannel");
        let machine = Debian { process, leader, root, _cgroup: cgroup };
        machine.wait_running();
        machine
    }
}

/// systemd among the children of systemd-nspawn.
fn first_process(nspawn: u32) -> Option<u32> {
    let children =
        std::fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    children.split_whitespace().find_map(|child| {
        let name = std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        (name.trim() == "systemd").then(|| child.parse().ok()).flatten()
    })
}

impl Debian {
    #[track_caller]
    fn wait_running(&self) {
        let mut said = String::new();
        wait::holds("the system to come up", Duration::from_secs(60), || {
            let state = output(&mut self.command(&["systemctl", "is-system-running"]));
            said = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            said == "running" || said == "degraded"
        });
        assert_eq!(said, "running", "{}", self.sh("systemctl --failed"));
    }

    /// A command in the system.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.leader.to_string(), "--mount", "--uts", "--ipc", "--net"]);
        command.args(["--pid", "--root", "--wd", "env", "-i"]).args(ENVIRONMENT).args(words);
        command
    }

    /// Runs a line in the system's shell.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        run(&mut self.command(&["sh", "-c", line]))
    }

    /// Whether a line succeeds in the system's shell.
    pub fn try_sh(&self, line: &str) -> bool {
        output(&mut self.command(&["sh", "-c", line])).status.success()
    }

    /// A property of a unit, as `systemctl show` has it.
    #[track_caller]
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.sh(&format!("systemctl show --value --property={name} {unit}")).trim().to_owned()
    }

    /// Writes a file (in `/etc`, `/run`, `/usr` or `/var/lib`), with its directory.
    ///
    /// # Panics
    /// It cannot be written.
    #[track_caller]
    pub fn write(&self, path: &str, text: &str) {
        self.root.write(path, text);
    }

    /// Reads a file, if it is there.
    #[track_caller]
    pub fn read(&self, path: &str) -> Option<String> {
        self.root.read(path)
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = output(&mut self.command(&[
                "journalctl",
                "-n",
                "60",
                "-o",
                "cat",
                "-u",
                "flannel*",
            ]));
            eprintln!("---- end of the journal:\n{}", String::from_utf8_lossy(&journal.stdout));
        }
        if let Ok(leader) = self.leader.try_into() {
            // With the first process all others end; then systemd-nspawn tidies up.
            let _ = kill(Pid::from_raw(leader), Signal::SIGKILL);
        }
        for _ in 0..250 {
            if self.process.ended().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
