//! Keys among the leases that cannot be read as leases: what is told of them.

use std::collections::BTreeMap;

use flannel_core::lease::update::UnreadableKeys;
use flannel_core::text;

/// Most keys that are remembered.
const KEYS: usize = 1024;

/// Such keys by their whole names, with the reasons.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    keys: BTreeMap<Vec<u8>, String>,
    /// They are others than were told.
    changed: bool,
}

impl Unreadable {
    /// A list of all keys follows.
    pub(super) fn begin_list(&mut self) {
        self.changed |= !self.keys.is_empty();
        self.keys.clear();
    }

    /// This one cannot be read.
    pub(super) fn note(&mut self, key: &[u8], cause: &str) {
        if self.keys.len() >= KEYS && !self.keys.contains_key(key) {
            return;
        }
        // It may have a value's text.
        let cause = text::shown(cause, text::VALUE);
        let before = self.keys.insert(key.to_vec(), cause.clone());
        if before.as_ref() != Some(&cause) {
            self.changed = true;
            // Whoever follows the leases tells of it; others only list them once.
            let key = text::shown(&String::from_utf8_lossy(key), text::VALUE);
            tracing::debug!(%key, cause, "key not read as a lease");
        }
    }

    /// This one can, or has gone.
    pub(super) fn forget(&mut self, key: &[u8]) {
        self.changed |= self.keys.remove(key).is_some();
    }

    /// This directory has gone.
    pub(super) fn forget_directory(&mut self, key: &[u8]) {
        let below = [key, b"/"].concat();
        let before = self.keys.len();
        self.keys.retain(|known, _| known != key && !known.starts_with(&below));
        self.changed |= self.keys.len() != before;
    }

    /// What is to be told, if it is something else than before.
    pub(super) fn take(&mut self) -> Option<UnreadableKeys> {
        std::mem::take(&mut self.changed).then(|| {
            let shown = |(key, cause): (&Vec<u8>, &String)| {
                (String::from_utf8_lossy(key).into_owned(), cause.clone())
            };
            self.keys.iter().map(shown).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(unreadable: &mut Unreadable) -> Option<Vec<String>> {
        Some(unreadable.take()?.into_iter().map(|(key, cause)| format!("{key}: {cause}")).collect())
    }

    #[test]
    fn what_is_told_is_what_cannot_be_read_now() {
        let mut unreadable = Unreadable::default();
        unreadable.forget(b"a");
        unreadable.begin_list();
        assert_eq!(unreadable.take(), None);
        unreadable.note(b"a", "no JSON");
        unreadable.note(b"\xff", "no UTF-8");
        assert_eq!(told(&mut unreadable).unwrap(), ["a: no JSON", "\u{fffd}: no UTF-8"]);
        unreadable.note(b"a", "no JSON");
        assert_eq!(unreadable.take(), None, "as it was");
        unreadable.note(b"a", "no PublicIP");
        unreadable.forget(b"\xff");
        assert_eq!(told(&mut unreadable).unwrap(), ["a: no PublicIP"]);
        unreadable.begin_list();
        assert_eq!(told(&mut unreadable).unwrap(), [""; 0]);
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let mut unreadable = Unreadable::default();
        (0..2 * KEYS as u32).for_each(|key| unreadable.note(&key.to_be_bytes(), "garbage"));
        assert_eq!(unreadable.keys.len(), KEYS);
    }
}
