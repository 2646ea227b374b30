//! A system with systemd as its first process, on a node's network. Which files it has
//! say [`crate::machine`] (this machine's) and [`crate::debian`] (its own).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::node::Node;
use crate::process::{Process, output};
use crate::wait;

/// Enters the control groups that `$1` lists, and becomes the rest. Groups of its own,
/// because each systemd takes all that is below its group.
const BEGIN: &str = r#"for door in $1; do echo $$ > "$door" || exit; done; shift; exec "$@""#;

/// What systemd sets for services, and what keeps programs from asking.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("SYSTEMD_PAGER", ""),
    ("NO_COLOR", "1"),
];

/// How long systemd may take to start everything.
const BOOTED: Duration = Duration::from_secs(60);

/// A system that has started. `Drop` ends it with all that runs in it.
pub(crate) struct Booted {
    nspawn: Process,
    /// systemd, as this machine numbers it.
    init: u32,
    netns: PathBuf,
    name: String,
    /// `systemctl is-system-running`.
    state: String,
    // Last: a group goes when nobody is left in it.
    _cgroup: Cgroup,
}

impl Booted {
    /// Starts what is in the directory `root`. `before` is a command line that makes it,
    /// and becomes what follows it; `options` are systemd-nspawn's, and then the kernel's.
    ///
    /// # Panics
    /// It does not start.
    #[track_caller]
    pub(crate) fn start<S: AsRef<OsStr>>(
        node: &Node,
        before: &[S],
        root: &Path,
        options: &[&str],
    ) -> Self {
        std::fs::create_dir_all(&node.pin_dir).expect("a directory for pins");
        let (name, netns) = (node.netns.name().to_owned(), node.netns.path());
        let cgroup = Cgroup::new(&name);
        let doors: Vec<_> = cgroup.doors().map(|door| door.display().to_string()).collect();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sh", "-c", BEGIN, "begin", &doors.join(" ")]);
        command.args(before);
        command.arg("systemd-nspawn").args(["--quiet", "--register=no", "--keep-unit", "--boot"]);
        command.arg(format!("--machine={name}")).arg("--directory").arg(root);
        command.arg(format!("--network-namespace-path={}", netns.display()));
        command.args(["--capability=all", "--system-call-filter=bpf perf_event_open @keyring"]);
        command.arg(format!("--bind={}:/sys/fs/bpf", node.pin_dir.display()));
        command.arg("--console=pipe").args(options);
        // As on a machine, the node's sysctls can be set, and docker finds its groups.
        command.env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network");
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        let log = node.dir.join("boot.log");
        let mut nspawn = Process::start("systemd-nspawn", &mut command, &log);
        let (init, _) = wait::until("the node's systemd", BOOTED, || {
            assert!(nspawn.ended().is_none(), "systemd-nspawn: {}", nspawn.log());
            first_process(nspawn.pid())
        });
        let state = String::new();
        let mut booted = Self { nspawn, init, netns, name, state, _cgroup: cgroup };
        booted.wait_started();
        booted
    }

    #[track_caller]
    fn wait_started(&mut self) {
        let mut said = String::new();
        wait::holds("the node to have started", BOOTED, || {
            let state = output(self.command(None).args(["systemctl", "is-system-running"]));
            said = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            said == "running" || said == "degraded"
        });
        self.state = said;
    }

    /// `running`, or `degraded` where a service has failed.
    pub(crate) fn state(&self) -> &str {
        &self.state
    }

    /// systemd, as this machine numbers it.
    pub(crate) fn init(&self) -> u32 {
        self.init
    }

    /// The beginning of a command in the system, in one of its directories.
    pub(crate) fn command(&self, dir: Option<&str>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string()]);
        command.args(["--mount", "--uts", "--ipc", "--pid", "--root"]);
        command.arg(format!("--net={}", self.netns.display()));
        command.arg(format!("--wd=/proc/{}/root{}", self.init, dir.unwrap_or("/")));
        command.args(["setpriv", "--pdeathsig", "KILL"]).env_clear().envs(ENVIRONMENT);
        command
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

impl Drop for Booted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = output(self.command(None).args(["journalctl", "--no-pager", "-n", "80"]));
            let text = String::from_utf8_lossy(&journal.stdout);
            eprintln!("---- end of the journal of {}:\n{text}\n----", self.name);
        }
        if let Ok(init) = self.init.try_into() {
            // With the first process all others end; then systemd-nspawn tidies up.
            let _ = kill(Pid::from_raw(init), Signal::SIGKILL);
        }
        for _ in 0..250 {
            if self.nspawn.ended().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
