//! Whether something has happened in directories. One system call tells it of all of them,
//! where a look at each file takes one for each.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The mounts of this process. A change of them makes it ready (proc_pid_mountinfo(5)).
const MOUNTS: &str = "/proc/self/mountinfo";
/// After so long the files are looked at anyway: nobody tells of a directory above that was
/// renamed, or of a write through a mapping.
const ANYWAY: Duration = Duration::from_secs(4);
/// Reads of news in one look. What is left is read by the next.
const READS: usize = 64;

/// Directories whose changes the kernel notes down for us (inotify(7)).
#[derive(Debug, Default)]
pub struct WatchedDirectories {
    /// `None` until it could be made: a user has only so many of them
    /// (`fs.inotify.max_user_instances`).
    inotify: Option<Inotify>,
    /// Another file system may be mounted over a directory, or its own be gone.
    mounts: Option<File>,
    watches: Vec<WatchDescriptor>,
    /// All directories are watched.
    complete: bool,
    looked: Option<Instant>,
}

impl WatchedDirectories {
    /// Whether nothing has happened in these directories since the last call. Always the
    /// same ones; `false` as long as they cannot be watched.
    pub fn are_untouched(&mut self, directories: &[&Path]) -> bool {
        let now = Instant::now();
        let rested = self.looked.is_some_and(|looked| now < looked + ANYWAY);
        // What came before this is seen by the look that follows.
        if !self.has_news() && self.complete && rested {
            return true;
        }
        self.looked = Some(now);
        self.watch(directories);
        false
    }

    fn has_news(&self) -> bool {
        let (Some(inotify), Some(mounts)) = (&self.inotify, &self.mounts) else { return true };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(inotify, PollFlags::IN), PollFd::new(mounts, PollFlags::PRI)];
        if poll(&mut fds, Some(&now)) == Ok(0) {
            return false;
        }
        let more = |read: &Inotify| read.read_events().is_ok_and(|events| !events.is_empty());
        let _ = (0..READS).take_while(|_| more(inotify)).count();
        true
    }

    /// Watches what bears these names now.
    fn watch(&mut self, directories: &[&Path]) {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        self.complete = false;
        if self.inotify.is_none() {
            self.inotify = Inotify::init(flags).ok();
        }
        if self.mounts.is_none() {
            self.mounts = File::open(MOUNTS).ok();
        }
        let Some(inotify) = &self.inotify else { return };
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let watch = |directory: &&Path| inotify.add_watch(*directory, changes).ok();
        let watches: Vec<WatchDescriptor> = directories.iter().filter_map(watch).collect();
        self.complete = watches.len() == directories.len();
        let before = std::mem::replace(&mut self.watches, watches);
        for gone in before.iter().filter(|before| !self.watches.contains(before)) {
            // The kernel has ended that of a directory that was removed.
            let _ = inotify.rm_watch(*gone);
        }
        // Of the end of a watch there is news, too. The look at the files is yet to come.
        self.has_news();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn whatever_happens_is_told_once() {
        let top = tempfile::tempdir().unwrap();
        let (one, two) = (top.path().join("one"), top.path().join("two"));
        fs::create_dir(&one).unwrap();
        let mut watched = WatchedDirectories::default();
        let mut untouched = || watched.are_untouched(&[&one, &two]);
        assert!(!untouched() && !untouched(), "one is not there yet");
        fs::create_dir(&two).unwrap();
        assert!(!untouched() && untouched() && untouched());
        let file = two.join("file");
        let changes: [(&str, &dyn Fn()); 8] = [
            ("made", &|| fs::write(&file, "1").unwrap()),
            ("overwritten in place", &|| fs::write(&file, "2").unwrap()),
            ("another mode", &|| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
                fs::set_permissions(&file, mode).unwrap();
            }),
            ("moved", &|| fs::rename(&file, one.join("file")).unwrap()),
            ("removed", &|| fs::remove_file(one.join("file")).unwrap()),
            ("the directory removed", &|| fs::remove_dir(&one).unwrap()),
            ("the directory made", &|| fs::create_dir(&one).unwrap()),
            ("the directory replaced", &|| {
                fs::rename(&two, top.path().join("before")).unwrap();
                fs::create_dir(&two).unwrap();
            }),
        ];
        for (what, change) in changes {
            change();
            assert!(!untouched(), "{what}");
            // What is not there cannot be watched.
            assert_eq!(untouched(), one.exists(), "{what}: told once");
        }
        fs::write(top.path().join("before/file"), "").unwrap();
        assert!(untouched(), "it is another directory now");
        fs::write(&file, "3").unwrap();
        assert!(!untouched());
    }

    #[test]
    fn a_look_is_due_after_a_while() {
        let top = tempfile::tempdir().unwrap();
        let mut watched = WatchedDirectories::default();
        assert!(!watched.are_untouched(&[top.path()]) && watched.are_untouched(&[top.path()]));
        watched.looked = watched.looked.map(|looked| looked - ANYWAY);
        assert!(!watched.are_untouched(&[top.path()]) && watched.are_untouched(&[top.path()]));
    }

    #[test]
    fn a_crowd_of_changes_is_told_and_ends() {
        let top = tempfile::tempdir().unwrap();
        let mut watched = WatchedDirectories::default();
        assert!(!watched.are_untouched(&[top.path()]));
        // More than the kernel keeps for us.
        for _ in 0..20_000 {
            fs::write(top.path().join("a"), "").unwrap();
            fs::remove_file(top.path().join("a")).unwrap();
        }
        let touched = (0..100).take_while(|_| !watched.are_untouched(&[top.path()])).count();
        assert!((1..100).contains(&touched), "{touched}");
    }
}
