//! Network namespaces.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns};

use crate::cgroup;
use crate::process::{output, run};

const RUN_NETNS: &str = "/var/run/netns";
const BPFFS: &str = "/sys/fs/bpf";
/// Beginning of every name that the harness makes; the creator's pid follows.
const PREFIX: &str = "flt";

/// A number that no other lab of this process has.
pub(crate) fn lab_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        assert!(nix::unistd::geteuid().is_root(), "the harness needs root");
        mount_bpffs();
        sweep(false);
    });
    format!("{PREFIX}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Directory for the pins of one lab, under the one BPF file system.
pub(crate) fn pin_root(lab: &str) -> PathBuf {
    // Dots and dashes are fine in bpffs as long as the name does not begin
    // with a dot.
    Path::new(BPFFS).join(format!("flannel-test-{lab}"))
}

/// Mounts it unless it is there. Cases run in processes of their own: a second mount
/// would hide the first one's pins.
fn mount_bpffs() {
    if is_mounted() {
        return;
    }
    let file = std::env::temp_dir().join("flannel-tests-bpffs.lock");
    let file = File::create(&file).expect("a file to lock");
    file.lock().expect("a lock");
    if !is_mounted() {
        run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]));
    }
}

fn is_mounted() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(BPFFS) && words.next() == Some("bpf")
    })
}

/// Removes the namespaces and pins of runs that have ended without removing
/// them; with `own`, also those of this process (for an exit without `Drop`).
pub fn sweep(own: bool) {
    let dead = |name: &str, prefix: &str| {
        let pid = name.strip_prefix(prefix)?.split('-').next()?.parse::<u32>().ok()?;
        let gone = !Path::new(&format!("/proc/{pid}")).exists();
        Some(if pid == std::process::id() { own } else { gone })
    };
    // Systems that were booted do not end with the run that booted them.
    for name in cgroup::names() {
        if dead(&name, &format!("{PREFIX}-")) == Some(true) {
            cgroup::end(&name);
        }
    }
    for name in names(RUN_NETNS) {
        if dead(&name, &format!("{PREFIX}-")) == Some(true) {
            output(Command::new("ip").args(["netns", "delete", &name]));
        }
    }
    let temporary = std::env::temp_dir();
    for name in names(&temporary.to_string_lossy()) {
        if dead(&name, &format!("{PREFIX}-")) == Some(true) {
            unmount_below(&temporary.join(&name));
            let _ = fs::remove_dir_all(temporary.join(name));
        }
    }
    for name in names(BPFFS) {
        if dead(&name, &format!("flannel-test-{PREFIX}-")) == Some(true) {
            // Another run may be sweeping too.
            let _ = fs::remove_dir_all(Path::new(BPFFS).join(name));
        }
    }
}

fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for place in places.filter(|place| place.starts_with(dir)) {
        output(Command::new("umount").arg("--lazy").arg(place));
    }
}

fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// A network namespace, deleted by `Drop`.
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with its loopback up.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn new(name: &str) -> Self {
        run(Command::new("ip").args(["netns", "add", name]));
        let netns = Self { name: name.to_owned() };
        netns.ip("link set lo up");
        netns
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(RUN_NETNS).join(&self.name)
    }

    /// A command that runs in the namespace and ends with the calling thread.
    ///
    /// Only the network namespace is entered: `ip netns exec` would mount
    /// another /sys and hide the BPF file system.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display()));
        command.args(["setpriv", "--pdeathsig", "KILL"]).arg(program);
        command
    }

    /// Runs a command line (split at blanks) and returns its output.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        run(self.command(words.next().expect("a program")).args(words))
    }

    /// Runs a command line; whether it succeeded.
    #[track_caller]
    pub fn try_sh(&self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        output(self.command(words.next().expect("a program")).args(words)).status.success()
    }

    /// Runs `ip` with these arguments.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        self.sh(&format!("ip {arguments}"))
    }

    /// Index of a device in it.
    ///
    /// # Panics
    /// There is none of this name.
    pub fn ifindex(&self, device: &str) -> u32 {
        let line = self.ip(&format!("-o link show dev {device}"));
        line.split(':').next().and_then(|index| index.parse().ok()).expect("an index")
    }

    /// Feeds lines to one `ip -batch`.
    ///
    /// # Panics
    /// One of them fails.
    #[track_caller]
    pub fn ip_batch(&self, lines: &[String]) {
        self.feed(&["ip", "-batch", "-"], &lines.join("\n"));
    }

    /// Loads an nftables rule set, in one transaction.
    ///
    /// # Panics
    /// nft refuses it.
    #[track_caller]
    pub fn nft(&self, rules: &str) {
        self.feed(&["nft", "-f", "-"], rules);
    }

    /// Adds `iptables-save`'s kind of rules to what is there.
    ///
    /// # Panics
    /// iptables refuses them.
    #[track_caller]
    pub fn iptables(&self, rules: &str) {
        self.feed(&["iptables-restore", "--noflush"], rules);
    }

    #[track_caller]
    fn feed(&self, words: &[&str], input: &str) {
        use std::io::Write;
        use std::process::Stdio;
        let mut command = self.command(words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).unwrap_or_else(|error| panic!("{command:?}: {error}"));
        drop(stdin);
        let output = child.wait_with_output().expect("wait for a child");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {errors}\n{input}");
    }

    /// Sets a kernel setting, as in `sysctl("net.ipv4.ip_forward=1")`.
    ///
    /// # Panics
    /// There is no such setting.
    #[track_caller]
    pub fn sysctl(&self, setting: &str) {
        self.sh(&format!("sysctl -qw {setting}"));
    }

    /// Runs a closure on a thread in the namespace.
    ///
    /// # Panics
    /// The closure does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                enter(&path);
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread in the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = self.path();
        thread::spawn(move || {
            enter(&path);
            work()
        })
    }

    /// `ping` with these options: what it printed and whether all was answered.
    pub fn ping(&self, to: Ipv4Addr, options: &str) -> (bool, String) {
        let mut command = self.command("ping");
        command.args(options.split_whitespace()).arg(to.to_string());
        let output = output(&mut command);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.success() && text.contains(" 0% packet loss"), text)
    }
}

fn enter(path: &Path) {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    setns(file, CloneFlags::CLONE_NEWNET).expect("enter a network namespace");
}

impl Drop for Netns {
    fn drop(&mut self) {
        output(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}
