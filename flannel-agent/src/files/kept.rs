//! A file that is kept as we left it: somebody may delete or overwrite it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::WriteError;

/// What was written, and how the file looked then.
#[derive(Debug)]
pub struct Kept<T>(Option<(T, Stamp)>);

/// By what a file is seen to be another, or to have other contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Some(Self { inode: metadata.ino(), size: metadata.size(), changed })
    }
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone + PartialEq> Kept<T> {
    /// Lets `write` write the file unless it is as we left it: one system call then.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn ensure(
        &mut self,
        path: &Path,
        value: &T,
        write: impl FnOnce() -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let stamp = Stamp::of(path);
        if let (Some((written, left)), Some(now)) = (&self.0, stamp)
            && written == value
            && *left == now
        {
            return Ok(());
        }
        self.0 = None;
        write()?;
        self.0 = Stamp::of(path).map(|stamp| (value.clone(), stamp));
        Ok(())
    }
}
