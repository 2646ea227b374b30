//! A node as a machine of its own: this machine's files, over which it may write,
//! with systemd as its first process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::booted::Booted;
use crate::node::Node;
use crate::process::run;

/// Where the source tree is, for commands of documents.
pub const SOURCES: &str = "/src/flannel-ebpf";

/// The source tree on this machine.
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Mounts the files, and becomes the rest. `$1` is an empty directory, `$2` the source
/// tree. Services that this machine has enabled are none of the node's.
const MOUNT: &str = r#"set -e
work=$1 sources=$2
shift 2
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
exec "$@"
"#;

/// A node that has started. `Drop` ends it with all that runs in it.
pub struct Machine(Booted);

impl Node {
    /// Starts this node under systemd.
    ///
    /// # Panics
    /// It does not start.
    #[track_caller]
    pub fn boot(&self) -> Machine {
        let work = self.dir.join("machine");
        fs::create_dir_all(&work).expect("a directory for the machine");
        let before = ["unshare", "--mount", "sh", "-c", MOUNT, "mount"].map(Path::new);
        let before = [&before[..], &[&work, Path::new(HERE)]].concat();
        let options = ["--resolv-conf=off", "systemd.unit=multi-user.target"];
        Machine(Booted::start(self, &before, &work.join("root"), &options))
    }
}

impl Machine {
    /// The beginning of a command on the node, in the source tree.
    pub fn command(&self) -> Command {
        self.0.command(Some(SOURCES))
    }

    /// Copies a file of this machine to a place of the node.
    ///
    /// # Panics
    /// It cannot be copied.
    #[track_caller]
    pub fn put(&self, from: &Path, to: &str) {
        let to = PathBuf::from(format!("/proc/{}/root{to}", self.0.init()));
        let dir = to.parent().expect("a directory");
        fs::create_dir_all(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        run(Command::new("cp").arg("--force").arg(from).arg(&to));
    }
}
