//! One agent for each state directory.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The lock; released when dropped, or when the process ends however.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

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
    #[error("state directory {}: {source}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl StateLock {
    /// Takes the lock, making the directory if need be.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be made.
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        let unusable = |source| LockError::Unusable { path: state_dir.to_owned(), source };
        std::fs::create_dir_all(state_dir).map_err(unusable)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(state_dir.join("lock"))
            .map_err(unusable)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Err(LockError::Taken(state_dir.to_owned())),
            Err((_, errno)) => Err(unusable(errno.into())),
        }
    }
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
}
