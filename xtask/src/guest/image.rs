//! The guest's initramfs.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use fs_err::{self as fs, File};

use super::package::Kernel;
use super::{DONE, PATIENCE};
use crate::workspace::{output, root, run as run_command, which};

/// Programs of the machine that the harness and the agent run; busybox's
/// applets stand in for everything else.
const TOOLS: &[&str] = &[
    "bpftool",
    "bridge",
    "curl",
    "etcd",
    "etcdctl",
    "ethtool",
    "ip",
    "iptables",
    "iptables-restore",
    "iptables-save",
    "nft",
    "nsenter",
    "ping",
    "setpriv",
    "sysctl",
    "tc",
    "unshare",
];

/// Parts of the kernel's modules: all that networking may ask for; of hardware
/// virtio's network cards alone.
const MODULES: &[&str] = &[
    "arch",
    "crypto",
    "drivers/net/bonding",
    "drivers/net/dummy.ko",
    "drivers/net/ifb.ko",
    "drivers/net/ipvlan",
    "drivers/net/macvlan.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/tun.ko",
    "drivers/net/veth.ko",
    "drivers/net/virtio_net.ko",
    "drivers/net/vrf.ko",
    "drivers/net/vxlan",
    "drivers/virtio",
    "lib",
    "net",
];

/// Files that the tests read by the path that they were built with.
const SOURCES: &[&str] = &["flannel-ebpf/prebuilt", "packaging"];

/// Directory of the tests' programs in the guest.
const PROGRAMS: &str = "/opt/flannel";

/// Builds the initramfs whose init runs `line`, a program of the lab with its
/// arguments. Its path.
///
/// # Errors
/// A file is missing, or a tool fails.
pub(crate) fn build(kernel: &Kernel, programs: &[(&str, PathBuf)], line: &str) -> Result<PathBuf> {
    let tree = Tree { root: kernel.dir.join("root") };
    tree.begin()?;
    tree.modules(kernel)?;
    for tool in TOOLS {
        let path = which(tool).with_context(|| format!("find {tool}: run `cargo xtask setup`"))?;
        tree.program(&path, &path)?;
    }
    // Loaded by iptables when a rule names a match or a target.
    tree.copy_all(Path::new("/usr/lib/x86_64-linux-gnu/xtables"))?;
    for (name, path) in programs {
        tree.own_program(name, path)?;
    }
    for name in SOURCES {
        tree.copy_all(&root().join(name))?;
    }
    // They name those files from here.
    fs::create_dir_all(tree.at(&root().join("tests")))?;
    tree.init(line)?;
    tree.pack(&kernel.dir.join("initramfs.cpio"))
}

/// The guest's file system, as a directory.
struct Tree {
    root: PathBuf,
}

impl Tree {
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// An empty tree with busybox.
    fn begin(&self) -> Result<()> {
        if self.root.exists() {
            fs::remove_dir_all(&self.root)?;
        }
        for dir in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "dev", "etc", "proc", "run"] {
            fs::create_dir_all(self.root.join(dir))?;
        }
        for dir in ["sys", "tmp", "root", "var", "usr/lib/modules"] {
            fs::create_dir_all(self.root.join(dir))?;
        }
        for dir in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{dir}"), self.root.join(dir))?;
        }
        symlink("/run", self.root.join("var/run"))?;
        let busybox = which("busybox").context("find busybox: run `cargo xtask setup`")?;
        self.program(&busybox, Path::new("/usr/bin/busybox"))?;
        for applet in output(Command::new(&busybox).arg("--list"))?.lines() {
            let link = self.root.join("usr/bin").join(applet);
            if !link.exists() {
                symlink("/usr/bin/busybox", link)?;
            }
        }
        // By this path the kernel asks for modules.
        symlink("/usr/bin/busybox", self.root.join("usr/sbin/modprobe"))?;
        Ok(())
    }

    fn modules(&self, kernel: &Kernel) -> Result<()> {
        let to = self.root.join("usr/lib/modules").join(&kernel.version);
        for part in MODULES {
            let (from, to) =
                (kernel.modules.join("kernel").join(part), to.join("kernel").join(part));
            copy_tree(&from, &to)?;
        }
        for name in ["modules.builtin", "modules.order", "modules.builtin.modinfo"] {
            copy_tree(&kernel.modules.join(name), &to.join(name))?;
        }
        run_command(
            Command::new("busybox").args(["depmod", "-b"]).arg(&self.root).arg(&kernel.version),
        )
    }

    /// A program with the libraries that it is linked with.
    fn program(&self, from: &Path, to: &Path) -> Result<()> {
        self.copy(from, to)?;
        // Fails for a program that is linked statically.
        let libraries = output(Command::new("ldd").arg(from)).unwrap_or_default();
        let paths: BTreeSet<&str> =
            libraries.split_whitespace().filter(|word| word.starts_with('/')).collect();
        for path in paths.into_iter().map(Path::new) {
            self.copy(path, path)?;
        }
        Ok(())
    }

    /// A program of the workspace, without debug information.
    fn own_program(&self, name: &str, from: &Path) -> Result<()> {
        let to = Path::new(PROGRAMS).join(name);
        self.program(from, &to)?;
        run_command(Command::new("strip").arg("--strip-debug").arg(self.at(&to)))
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let to = self.at(to);
        // A link to busybox gives way to the real program.
        if to.is_symlink() {
            fs::remove_file(&to)?;
        } else if to.exists() {
            return Ok(());
        }
        copy_tree(from, &to)
    }

    /// A directory, to the same path.
    fn copy_all(&self, dir: &Path) -> Result<()> {
        copy_tree(dir, &self.at(dir))
    }

    fn init(&self, line: &str) -> Result<()> {
        let mut script = format!(
            r#"#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin HOME=/root TMPDIR=/tmp
export FLANNEL_TEST_PATIENCE={PATIENCE}
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /run
mount -t bpf none /sys/fs/bpf
stty -F /dev/ttyS1 raw -echo
exec </dev/null >/dev/ttyS1 2>&1
ip link set lo up
# What nodes of flannel load at boot, and what a container cannot.
for module in br_netfilter nf_conntrack vxlan veth sch_ingress cls_bpf virtio_pci virtio_net; do
    modprobe $module || echo "guest: no module $module"
done
sysctl -q -w net.bridge.bridge-nf-call-iptables=1
cards=$(for card in /sys/class/net/*/device; do basename "$(dirname "$card")"; done)
export FLANNEL_TEST_CARDS="$(echo $cards)"
echo "guest: Linux $(uname -r), $(nproc) processors, network cards $FLANNEL_TEST_CARDS"
failed=0
cd {PROGRAMS}
"#
        );
        script.push_str(&format!("./{line} || failed=1\necho \"{DONE} $failed\"\npoweroff -f\n"));
        let path = self.root.join("init");
        fs::write(&path, script)?;
        fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn pack(&self, to: &Path) -> Result<PathBuf> {
        let mut find = Command::new("find")
            .args([".", "-print0"])
            .current_dir(&self.root)
            .stdout(Stdio::piped())
            .spawn()
            .context("start find: install findutils")?;
        let names = find.stdout.take().context("read from find: it has no pipe")?;
        let status = Command::new("cpio")
            .args(["--quiet", "--null", "--create", "--format=newc", "--owner=+0:+0"])
            .current_dir(&self.root)
            .stdin(names)
            .stdout(File::create(to)?.into_file())
            .status()
            .context("start cpio: run `cargo xtask setup`")?;
        if !find.wait()?.success() || !status.success() {
            bail!("pack {} by cpio: {status}", self.root.display());
        }
        Ok(to.to_path_buf())
    }
}

/// Copies a file or a directory; links are followed.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to)?;
    Ok(())
}
