//! A node as a machine of its own: this machine's files, over which it may write,
//! with systemd as its first process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cgroup;
use crate::node::Node;
use crate::process::{Process, output, run};
use crate::wait;

/// Where the source tree is, for commands of documents.
pub const SOURCES: &str = "/src/flannel-ebpf";

/// Mounts the files and starts systemd. `$1` is an empty directory, `$2` the network
/// namespace, `$3` what stands for the BPF file system, `$4` the source tree, `$5` the
/// name of its control group.
///
/// A control group of its own, because each systemd takes all that is below its group.
/// Services that this machine has enabled are none of the node's.
const BOOT: &str = r#"set -e
work=$1 netns=$2 pins=$3 sources=$4 group=$5
mount --make-rprivate / 2>/dev/null || :
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root" "$work/source-upper" "$work/source-work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
mkdir -p "$work/root/src/flannel-ebpf"
mount -t overlay overlay -o "lowerdir=$sources,upperdir=$work/source-upper,workdir=$work/source-work" \
    "$work/root/src/flannel-ebpf"
rm -rf "$work/root/etc/systemd/system/"*.wants/* "$work/root/var/log/journal"
# What no node of ours needs, and what package managers would wake.
for unit in dbus.socket dbus.service systemd-logind.service polkit.service packagekit.service; do
    ln -sf /dev/null "$work/root/etc/systemd/system/$unit"
done
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/systemd; do
    test -e "$hierarchy/cgroup.procs" || continue
    mkdir -p "$hierarchy/$group"
    echo $$ > "$hierarchy/$group/cgroup.procs"
done
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
exec systemd-nspawn --quiet --register=no --keep-unit --directory="$work/root" \
    --machine="$group" --network-namespace-path="$netns" --bind="$pins:/sys/fs/bpf" \
    --capability=all --system-call-filter='bpf perf_event_open @keyring' \
    --resolv-conf=off --console=pipe --boot systemd.unit=multi-user.target
"#;

/// How long systemd may take to start everything.
const BOOTED: Duration = Duration::from_secs(60);

/// A node that has started. `Drop` ends it with all that runs in it.
pub struct Machine {
    nspawn: Process,
    /// systemd, as this machine numbers it.
    init: u32,
    netns: PathBuf,
    group: String,
}

impl Node {
    /// Starts this node under systemd, with `files` (source, place in the node) added.
    ///
    /// # Panics
    /// It does not start.
    #[track_caller]
    pub fn boot(&self) -> Machine {
        let work = self.dir.join("machine");
        fs::create_dir_all(&work).expect("a directory for the machine");
        fs::create_dir_all(&self.pin_dir).expect("a directory for pins");
        let group = self.netns.name().to_owned();
        let mut command = self.netns.command("unshare");
        command.args(["--mount", "sh", "-c", BOOT, "boot"]).arg(&work).arg(self.netns.path());
        command.arg(&self.pin_dir).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).arg(&group);
        let mut nspawn = Process::start("systemd", &mut command, &self.dir.join("machine.log"));
        let (init, _) = wait::until("the node's systemd", BOOTED, || {
            assert!(nspawn.ended().is_none(), "systemd-nspawn: {}", nspawn.log());
            first_process(nspawn.pid())
        });
        let machine = Machine { nspawn, init, netns: self.netns.path(), group };
        wait::holds("the node to have started", BOOTED, || {
            let state = output(machine.command().args(["systemctl", "is-system-running"]));
            matches!(String::from_utf8_lossy(&state.stdout).trim(), "running" | "degraded")
        });
        machine
    }
}

/// The child that systemd-nspawn has made: the first process of the node.
fn first_process(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let child: u32 = children.split_whitespace().next()?.parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    (name.trim() == "systemd").then_some(child)
}

impl Machine {
    /// The beginning of a command on the node, in the source tree.
    pub fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string()]);
        command.args(["--mount", "--uts", "--ipc", "--pid", "--root"]);
        command.arg(format!("--net={}", self.netns.display()));
        command.arg(format!("--wd=/proc/{}/root{SOURCES}", self.init));
        command.args(["setpriv", "--pdeathsig", "KILL"]);
        command.env_clear().env("HOME", "/root").env("NO_COLOR", "1").env("LANG", "C.UTF-8");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive").env("SYSTEMD_PAGER", "");
        command
    }

    /// Copies a file of this machine to a place of the node.
    ///
    /// # Panics
    /// It cannot be copied.
    #[track_caller]
    pub fn put(&self, from: &Path, to: &str) {
        let to = PathBuf::from(format!("/proc/{}/root{to}", self.init));
        let dir = to.parent().expect("a directory");
        fs::create_dir_all(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        run(Command::new("cp").arg("--force").arg(from).arg(&to));
    }

    /// The end of the node's journal, for messages.
    pub fn journal(&self) -> String {
        let text = output(self.command().args(["journalctl", "--no-pager", "--lines=60"])).stdout;
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- end of the journal of {}:\n{}\n----", self.group, self.journal());
        }
        // All of the node ends with its first process.
        output(Command::new("kill").args(["-KILL", &self.init.to_string()]));
        self.nspawn.kill();
        cgroup::remove_everywhere(&self.group);
    }
}
