//! A node's own file system: everything is where packages and units expect it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::netns::Netns;
use crate::program::program;

/// The sources of the packages' files.
const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging");

/// Directories of a node's own, and their names here.
const TOPS: [(&str, &str); 4] =
    [("/var/lib", "lib"), ("/etc", "etc"), ("/run", "run"), ("/usr", "usr")];

/// Makes the mounts and runs the rest of the arguments. `$1` is the node's
/// directory, `$2` its part of the BPF file system.
///
/// In a chroot, `/` is no mount whose propagation could be changed.
/// The layers are read-only, so that several commands may have them at once.
const ENTER: &str = r#"set -e
root=$1 pins=$2
shift 2
mount --make-rprivate / 2>/dev/null || :
mount -t overlay overlay -o ro,lowerdir="$root/usr:/usr" /usr
mount -t overlay overlay -o ro,lowerdir="$root/etc:/etc" /etc
mount --bind "$root/etc-docker" /etc/docker
mount --bind "$pins" /sys/fs/bpf
mount --bind "$root/lib" /var/lib
mount --bind "$root/run" /run
exec "$@"
"#;

/// The machine's files under those of one node. Programs see it in a mount
/// namespace of their own: it goes with them.
#[derive(Clone, Debug)]
pub struct Root {
    dir: PathBuf,
    pins: PathBuf,
}

impl Root {
    /// Puts the packages' files in place, with the agent as `flanneld`.
    ///
    /// # Panics
    /// A file cannot be written.
    pub(crate) fn new(dir: &Path, pins: &Path) -> Self {
        let root = Self { dir: dir.join("root"), pins: pins.to_path_buf() };
        for name in ["etc/docker", "etc-docker", "lib", "run/flannel", "usr/bin", "usr/libexec"] {
            make(&root.dir.join(name));
        }
        make(pins);
        for name in ["flannel-agent", "flanneld"] {
            let to = root.at("/usr/bin").join(name);
            symlink(program(), &to).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let scripts = [
            ("flanneld-start", "/usr/bin/flanneld-start"),
            ("mk-docker-opts.sh", "/usr/libexec/flannel/mk-docker-opts.sh"),
            // Where guides put it.
            ("mk-docker-opts.sh", "/usr/bin/mk-docker-opts.sh"),
        ];
        for (name, path) in scripts {
            root.write(path, &packaged(name));
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(root.at(path), mode).expect("make it executable");
        }
        root
    }

    /// The files of a system that is booted, as one of its processes sees them.
    ///
    /// # Panics
    /// A link cannot be made.
    pub(crate) fn of_process(dir: &Path, pins: &Path, process: u32) -> Self {
        let root = Self { dir: dir.join("root"), pins: pins.to_path_buf() };
        make(&root.dir);
        for (path, name) in TOPS {
            let link = root.dir.join(name);
            symlink(format!("/proc/{process}/root{path}"), link).expect("a link");
        }
        root
    }

    /// Where a path of the node (in `/etc`, `/run`, `/usr`, `/var/lib`) is for
    /// everybody else.
    ///
    /// # Panics
    /// It is in another directory.
    #[track_caller]
    pub fn at(&self, path: &str) -> PathBuf {
        let (top, rest) = TOPS
            .into_iter()
            .find_map(|(top, name)| Some((name, path.strip_prefix(top)?)))
            .unwrap_or_else(|| panic!("{path} is not the node's own"));
        self.dir.join(top).join(rest.trim_start_matches('/'))
    }

    /// Writes a file of the node, with its directory.
    ///
    /// # Panics
    /// It cannot be written.
    #[track_caller]
    pub fn write(&self, path: &str, text: &str) {
        let path = self.at(path);
        make(path.parent().expect("a directory"));
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Reads a file of the node, if it is there.
    #[track_caller]
    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    /// A command on the node: its network, its files. `unshare` are further
    /// arguments for unshare(1).
    pub(crate) fn command(&self, netns: &Netns, unshare: &[&str]) -> Command {
        let mut command = netns.command("unshare");
        command
            .args(["--mount", "--propagation", "unchanged"])
            .args(unshare)
            .args(["sh", "-c", ENTER, "enter"]);
        command.arg(&self.dir).arg(&self.pins);
        command
    }
}

/// Text of a file of the packages.
///
/// # Panics
/// There is no such file.
pub fn packaged(name: &str) -> String {
    let path = Path::new(PACKAGING).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn make(dir: &Path) {
    fs::create_dir_all(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
}
