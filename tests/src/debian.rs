//! A node whose system is a bare Debian of its own, as packages find it: nothing of this
//! machine's files is in it. [`crate::machine`] boots this machine's files instead.

use std::path::Path;
use std::process::Command;

use crate::booted::Booted;
use crate::node::Node;
use crate::process::{output, run};
use crate::root::Root;

/// A booted system. `Drop` ends it; what it wrote is gone then.
pub struct Debian {
    booted: Booted,
    root: Root,
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
        let share = format!("--bind-ro={}:/mnt", share.display());
        let options = ["--volatile=overlay", "--tmpfs=/var/lib/docker", &share];
        let booted = Booted::start::<&str>(self, &[], system, &options);
        let root = Root::of_process(&self.dir, &self.pin_dir, booted.init());
        self.root = Some(root.clone());
        self.pin_dir.push("flannel");
        let machine = Debian { booted, root };
        assert_eq!(machine.booted.state(), "running", "{}", machine.sh("systemctl --failed"));
        machine
    }
}

impl Debian {
    fn command(&self) -> Command {
        self.booted.command(None)
    }

    /// Runs a line in the system's shell.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        run(self.command().args(["sh", "-c", line]))
    }

    /// Whether a line succeeds in the system's shell.
    pub fn try_sh(&self, line: &str) -> bool {
        output(self.command().args(["sh", "-c", line])).status.success()
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
