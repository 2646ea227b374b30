//! Files that stay open: reading one again is one system call, and not five.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// More are closed: devices come and go, and each has files of its own.
const MOST: usize = 32;
/// Longer values are read in the other way.
const LENGTH: usize = 64;

#[derive(Clone, Debug, Default)]
pub(super) struct Open(Arc<Mutex<Files>>);

#[derive(Debug, Default)]
struct Files {
    /// By key.
    open: BTreeMap<String, File>,
    /// Keys that the kernel does not have while it has the others.
    absent: BTreeSet<String>,
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value without its newline, if its file is open and the kernel still has it: a
    /// module or device may have gone, and come again.
    pub(super) fn read(&self, key: &str) -> Option<String> {
        let mut files = self.lock();
        let mut bytes = [0; LENGTH];
        match files.open.get(key)?.read_at(&mut bytes, 0) {
            Ok(length) if length < LENGTH => {
                Some(str::from_utf8(&bytes[..length]).ok()?.trim_end().to_owned())
            }
            _ => {
                files.open.remove(key);
                files.absent.clear();
                None
            }
        }
    }

    pub(super) fn keep(&self, key: &str, file: File) {
        let mut files = self.lock();
        if files.open.len() >= MOST {
            files.open.clear();
        }
        files.open.insert(key.to_owned(), file);
        files.absent.clear();
    }

    /// Notes that there is no such value. A module makes all of its files at a time: that
    /// holds until another file comes or goes.
    pub(super) fn note_absent(&self, key: &str) {
        self.lock().absent.insert(key.to_owned());
    }

    pub(super) fn is_absent(&self, key: &str) -> bool {
        self.lock().absent.contains(key)
    }
}
