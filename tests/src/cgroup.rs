//! Control groups that harness and containers make, and their end.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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

/// A control group with a limit of memory; goes at the end.
pub struct MemoryGroup {
    folder: PathBuf,
    limit: &'static str,
}

impl MemoryGroup {
    /// The one of this process. `None` where this machine has no control groups for memory.
    pub fn new() -> Option<Self> {
        let name = format!("flannel-test-{}", std::process::id());
        let old = Path::new(ALL).join("memory");
        let (folder, limit) = if old.exists() {
            (old.join(name), "memory.limit_in_bytes")
        } else {
            (Path::new(ALL).join(name), "memory.max")
        };
        fs::create_dir_all(&folder).ok()?;
        let group = Self { folder, limit };
        fs::metadata(group.folder.join(limit)).ok()?;
        Some(group)
    }

    /// Allows so many bytes.
    ///
    /// # Panics
    /// The kernel refuses.
    pub fn allow(&self, bytes: u64) {
        fs::write(self.folder.join(self.limit), bytes.to_string()).expect("a limit");
    }

    /// The file that takes a process in by its number.
    pub fn door(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// The same of the group around it.
    pub fn way_out(&self) -> PathBuf {
        self.folder.with_file_name("cgroup.procs")
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// Removes a group of this name from every hierarchy.
pub(crate) fn remove_everywhere(name: &str) {
    let name = name.trim_start_matches('/');
    hierarchies().for_each(|hierarchy| remove(&hierarchy.join(name)));
}

/// Names of the groups at the top of any hierarchy.
pub(crate) fn names() -> BTreeSet<String> {
    let entries = hierarchies().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Ends all that runs in a group of this name, and removes it.
pub(crate) fn end(name: &str) {
    let members: BTreeSet<i32> =
        hierarchies().flat_map(|hierarchy| members(&hierarchy.join(name))).collect();
    for member in members {
        // Gone already with the first process of its namespace.
        let _ = kill(Pid::from_raw(member), Signal::SIGKILL);
    }
    remove_everywhere(name);
}

/// Processes in a group and those below it. Those of another process namespace have no
/// number here.
fn members(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    found.retain(|pid| *pid > 1);
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(members(&entry.path()));
        }
    }
    found
}

/// Where groups may be: the one hierarchy, or one for each controller.
fn hierarchies() -> impl Iterator<Item = PathBuf> {
    let controllers = fs::read_dir(ALL).into_iter().flatten().flatten();
    controllers.map(|entry| entry.path()).chain([PathBuf::from(ALL)])
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
