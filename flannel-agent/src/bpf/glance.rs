//! A directory of pins that is looked into again only when it has changed: one system
//! call tells, none where nothing has happened to the pins at all.

use std::path::Path;

use crate::files::stamp::Stamp;

/// What was found right, and how the directory looked then. `K` is what else that hangs
/// on.
pub(super) struct Glance<K>(Option<(K, Stamp)>);

impl<K> Default for Glance<K> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: PartialEq> Glance<K> {
    /// Whether all is right, as `look` says. It is not asked while neither the directory
    /// nor `key` has changed since it said yes. `untouched`: nothing has happened there since
    /// the last call.
    pub(super) fn look(
        &mut self,
        (directory, untouched): (&Path, bool),
        key: K,
        look: impl FnOnce() -> bool,
    ) -> bool {
        if untouched && self.0.as_ref().is_some_and(|(known, _)| *known == key) {
            return true;
        }
        let stamp = Stamp::of(directory);
        if let (Some((known, left)), Some(now)) = (&self.0, &stamp)
            && *known == key
            && left == now
        {
            return true;
        }
        let right = look();
        self.0 = stamp.filter(|stamp| right && stamp.is_settled()).map(|stamp| (key, stamp));
        right
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_directory_is_looked_into_when_it_or_the_key_changes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pins");
        fs::create_dir(&folder).unwrap();
        let looks = Cell::new(0);
        let mut glance = Glance::default();
        let mut look = |key, answer| {
            glance.look((&folder, false), key, || {
                looks.set(looks.get() + 1);
                answer
            })
        };
        let times = |expected| assert_eq!(looks.replace(0), expected);
        // What has just been made may change again within the same jiffy.
        assert!(look(1, true) && look(1, true));
        times(2);
        sleep(Duration::from_millis(150));
        assert!(look(1, true) && look(1, true));
        times(1);
        assert!(!look(2, false) && !look(2, false));
        times(2);
        assert!(look(2, true) && look(2, true));
        times(1);
        fs::write(folder.join("pin"), "").unwrap();
        assert!(look(2, true));
        times(1);
        sleep(Duration::from_millis(150));
        assert!(look(2, true) && look(2, true));
        times(1);
        fs::remove_file(folder.join("pin")).unwrap();
        assert!(!look(2, false));
        times(1);
        fs::remove_dir(&folder).unwrap();
        assert!(!look(2, false));
        fs::create_dir(&folder).unwrap();
        assert!(!look(2, false));
        times(2);
    }
}
