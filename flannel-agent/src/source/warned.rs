//! One warning for each key that cannot be read, not one for each look at it.

use std::collections::BTreeMap;

use flannel_core::text;

/// Most keys whose warning is remembered.
const WARNINGS: usize = 1024;

/// Keys that were warned of, with the revision they had.
#[derive(Default)]
pub(super) struct Warned(BTreeMap<Vec<u8>, i64>);

impl Warned {
    /// Warns, unless it was done for this revision of the key.
    pub(super) fn once(&mut self, key: &[u8], revision: i64, cause: &str) {
        if self.0.len() >= WARNINGS {
            self.0.clear();
        }
        if self.0.insert(key.to_vec(), revision) != Some(revision) {
            let key = text::shown(&String::from_utf8_lossy(key), text::VALUE);
            let cause = text::shown(cause, text::VALUE);
            tracing::warn!(%key, cause, "lease ignored: it cannot be read");
        }
    }
}
