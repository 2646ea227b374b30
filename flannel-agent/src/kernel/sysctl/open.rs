//! Files that stay open: reading one again is one system call, and not five.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

/// More are closed: devices come and go, and each has files of its own.
const MOST: usize = 32;
/// Longer values are read in the other way.
const LENGTH: usize = 64;

/// By key.
#[derive(Clone, Debug, Default)]
pub(super) struct Open(Arc<Mutex<BTreeMap<String, File>>>);

impl Open {
    /// The value without its newline, if its file is open and the kernel still has it: a
    /// module or device may have gone, and come again.
    pub(super) fn read(&self, key: &str) -> Option<String> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; LENGTH];
        match files.get(key)?.read_at(&mut bytes, 0) {
            Ok(length) if length < LENGTH => {
                Some(str::from_utf8(&bytes[..length]).ok()?.trim_end().to_owned())
            }
            _ => {
                files.remove(key);
                None
            }
        }
    }

    pub(super) fn keep(&self, key: &str, file: File) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= MOST {
            files.clear();
        }
        files.insert(key.to_owned(), file);
    }
}
