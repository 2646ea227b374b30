//! One agent for each state directory.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::time::Instant;

use super::make_directory;

/// How long an agent that was killed, or is ending, may take to be gone.
const GONE: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(10);

/// Who may read a file may lock it.
const MODE: u32 = 0o600;

/// The lock; released when dropped, or when the process ends however.
#[derive(Debug)]
pub struct StateLock {
    path: PathBuf,
    _held: Flock<File>,
    /// Device and inode of what is held: no other file has them meanwhile.
    place: (u64, u64),
}

/// The state directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent runs.
    #[error(
        "another agent runs with state directory {}; give each its own --state-dir, --pin-dir and \
         --subnet-file",
        .0.display()
    )]
    Taken(PathBuf),
    /// The directory or its lock file cannot be used.
    #[error("lock state directory {}: {source}; {}", path.display(), advice(source))]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "only root may, or name another --state-dir",
        _ => "see --state-dir",
    }
}

impl StateLock {
    /// Takes the lock, making the directory if need be.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be made.
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        let unusable = |source| LockError::Unusable { path: state_dir.to_owned(), source };
        make_directory(state_dir).map_err(unusable)?;
        let path = file(state_dir);
        // One that is not empty stays, and there is no lock.
        if path.is_dir() {
            let _ = std::fs::remove_dir(&path);
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(MODE)
            .open(path)
            .map_err(unusable)?;
        // An earlier version made it for all to read.
        file.set_permissions(Permissions::from_mode(MODE)).map_err(unusable)?;
        let place = place(&file.metadata().map_err(unusable)?);
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Self { path: state_dir.to_owned(), _held: held, place }),
            Err((_, Errno::EWOULDBLOCK)) => Err(LockError::Taken(state_dir.to_owned())),
            Err((_, errno)) => Err(unusable(errno.into())),
        }
    }

    /// Takes the lock, and waits a moment for an agent that was just killed.
    ///
    /// # Errors
    /// As of [`StateLock::take`].
    pub async fn take_soon(state_dir: &Path) -> Result<Self, LockError> {
        let end = Instant::now() + GONE;
        loop {
            match Self::take(state_dir) {
                Err(LockError::Taken(_)) if Instant::now() < end => {
                    tokio::time::sleep(AGAIN).await;
                }
                taken => return taken,
            }
        }
    }

    /// Takes the lock anew where somebody has removed or replaced its file: what is held
    /// then keeps nobody out. One system call where it is as it was.
    ///
    /// # Errors
    /// As of [`StateLock::take`]; what was held before stays held.
    pub fn renew(&mut self) -> Result<(), LockError> {
        let there = std::fs::metadata(file(&self.path)).ok().map(|found| place(&found));
        if there != Some(self.place) {
            *self = Self::take(&self.path)?;
        }
        Ok(())
    }
}

fn place(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let lock = StateLock::take(folder.path()).unwrap();
        assert!(matches!(StateLock::take(folder.path()), Err(LockError::Taken(_))));
        drop(lock);
        StateLock::take(folder.path()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_ending_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let lock = StateLock::take(folder.path()).unwrap();
        let taken = StateLock::take_soon(folder.path()).await;
        assert!(matches!(taken, Err(LockError::Taken(_))), "{taken:?}");
        tokio::spawn(async move {
            tokio::time::sleep(GONE / 2).await;
            drop(lock);
        });
        StateLock::take_soon(folder.path()).await.unwrap();
    }

    #[test]
    fn nobody_else_can_lock_it() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let state = folder.path().join("state");
        drop(StateLock::take(&state).unwrap());
        assert_eq!((mode(&state), mode(&file(&state))), (0o755, 0o600));
        std::fs::set_permissions(file(&state), Permissions::from_mode(0o644)).unwrap();
        let _lock = StateLock::take(&state).unwrap();
        assert_eq!(mode(&file(&state)), 0o600);
    }

    #[test]
    fn a_file_that_was_removed_is_locked_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut lock = StateLock::take(&path).unwrap();
        lock.renew().unwrap();
        let wrongs: [fn(&Path); 4] = [
            |path| std::fs::remove_file(path.join("lock")).unwrap(),
            |path| std::fs::remove_dir_all(path).unwrap(),
            |path| {
                std::fs::write(path.join("other"), "").unwrap();
                std::fs::rename(path.join("other"), path.join("lock")).unwrap();
            },
            |path| {
                std::fs::remove_file(path.join("lock")).unwrap();
                std::fs::create_dir(path.join("lock")).unwrap();
            },
        ];
        for wrong in wrongs {
            wrong(&path);
            lock.renew().unwrap();
            assert!(matches!(StateLock::take(&path), Err(LockError::Taken(_))));
        }
        // What is in a directory is somebody's.
        std::fs::remove_file(path.join("lock")).unwrap();
        std::fs::create_dir_all(path.join("lock/other")).unwrap();
        assert!(lock.renew().unwrap_err().to_string().contains("directory"));
        std::fs::remove_dir_all(path.join("lock")).unwrap();
        lock.renew().unwrap();
        // Somebody else was quicker.
        std::fs::remove_file(path.join("lock")).unwrap();
        let other = StateLock::take(&path).unwrap();
        assert!(matches!(lock.renew(), Err(LockError::Taken(_))));
        drop(other);
        lock.renew().unwrap();
        assert!(matches!(StateLock::take(&path), Err(LockError::Taken(_))));
    }
}
