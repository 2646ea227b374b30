//! By what a file is seen to be another, or to have other contents.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Two changes within so much may have one time: file systems take it from a clock that
/// goes by jiffies.
const TICK: Duration = Duration::from_millis(100);

/// How a file or directory looks from outside. One system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds since 1970.
    changed: (i64, i64),
}

impl Stamp {
    /// That of what is there now, if something is.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether a later change will have another stamp.
    pub fn is_settled(&self) -> bool {
        let Ok(seconds) = u64::try_from(self.changed.0) else { return false };
        let changed = UNIX_EPOCH + Duration::new(seconds, self.changed.1 as u32);
        SystemTime::now().duration_since(changed).is_ok_and(|age| age > TICK)
    }
}
