//! Control groups that harness and containers make, and their end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where all hierarchies are.
const ALL: &str = "/sys/fs/cgroup";

/// The same group in the hierarchies that a systemd takes for its own. Removed by
/// `Drop`, with the groups in it.
pub(crate) struct Cgroup {
    dirs: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes it.
    ///
    /// # Panics
    /// It cannot be made.
    pub(crate) fn new(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
        let dirs: Vec<_> = mounts
            .lines()
            .filter_map(|line| {
                let words: Vec<_> = line.split(' ').collect();
                let (&place, &kind, &options) = (words.get(1)?, words.get(2)?, words.get(3)?);
                let named = kind == "cgroup" && options.split(',').any(|o| o == "name=systemd");
                (kind == "cgroup2" || named).then(|| Path::new(place).join(name))
            })
            .collect();
        for dir in &dirs {
            fs::create_dir_all(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        }
        Self { dirs }
    }

    /// The files that take a process in by its number.
    pub(crate) fn doors(&self) -> impl Iterator<Item = PathBuf> {
        self.dirs.iter().map(|dir| dir.join("cgroup.procs"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.dirs.iter().for_each(|dir| remove(dir));
    }
}

/// Removes a group of this name from every hierarchy.
pub(crate) fn remove_everywhere(name: &str) {
    let name = name.trim_start_matches('/');
    for controller in fs::read_dir(ALL).into_iter().flatten().flatten() {
        remove(&controller.path().join(name));
    }
    remove(&Path::new(ALL).join(name));
}

/// A group can be removed as soon as it is empty.
fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    for _ in 0..100 {
        if !path.exists() || fs::remove_dir(path).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
