//! Grace periods of RCU that are short while programs are attached.
//!
//! The kernel waits for one with each tcx program, and holds its lock of all devices
//! meanwhile ([`tcx_entry_sync`]). Whatever else waits under this lock asks for a short
//! one ([`synchronize_net`]). tcx does so only where the whole machine is told to, by
//! `/sys/kernel/rcu_expedited`.
//!
//! [`tcx_entry_sync`]: https://github.com/torvalds/linux/blob/v6.12/include/net/tcx.h
//! [`synchronize_net`]: https://github.com/torvalds/linux/blob/v6.12/net/core/dev.c

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{BpfError, GracePeriodMode};

/// Name of the symbolic link in a version's directory that is there as long as the setting
/// is ours: an agent that is killed in between leaves it to the next.
pub(super) const RECORD: &str = "expedited";

const SETTINGS: &str = "/sys/kernel";

/// The setting, which is changed for some milliseconds and only from 0 to 1.
#[derive(Debug)]
pub(super) struct GracePeriods {
    settings: PathBuf,
    /// Nothing is changed: nobody asked for it, or it was refused.
    left_alone: bool,
    /// Where it is recorded that the setting is ours now.
    record: Option<PathBuf>,
}

impl GracePeriods {
    pub(super) fn new(mode: GracePeriodMode) -> Self {
        Self::of(Path::new(SETTINGS), mode)
    }

    fn of(settings: &Path, mode: GracePeriodMode) -> Self {
        let left_alone = mode == GracePeriodMode::Normal;
        Self { settings: settings.to_owned(), left_alone, record: None }
    }

    /// Makes them short until [`GracePeriods::restore`]. Without a place for the record
    /// they stay as they are.
    pub(super) fn shorten(&mut self, record: Option<PathBuf>) {
        let Some(record) = record.filter(|_| !self.left_alone && self.record.is_none()) else {
            return;
        };
        let is = |name, value: &str| {
            fs::read_to_string(self.settings.join(name)).is_ok_and(|text| text.trim() == value)
        };
        // Where the setting is 1 already it is somebody else's. A machine that wants all
        // grace periods to be normal gets no short ones by it.
        if !is("rcu_expedited", "0") || is("rcu_normal", "1") {
            return;
        }
        match note(&record).and_then(|()| write(&self.settings, "1")) {
            Ok(()) => self.record = Some(record),
            Err(error) => {
                let _ = fs::remove_file(&record);
                self.left_alone = true;
                tracing::info!(%error, "grace periods stay long: each program takes some 15 ms");
            }
        }
    }

    /// Makes them what they were.
    pub(super) fn restore(&mut self) {
        if let Some(record) = self.record.take()
            && let Err(error) = undo(&self.settings, &record)
        {
            tracing::warn!(%error, "grace periods stay short");
        }
    }
}

impl Drop for GracePeriods {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Restores what an agent that was killed has left in this version's directory.
///
/// # Errors
/// The setting cannot be written. The record stays, for a later try.
pub(super) fn restore_after_crash(version: &Path) -> Result<(), BpfError> {
    let record = version.join(RECORD);
    if fs::symlink_metadata(&record).is_err() {
        return Ok(());
    }
    undo(Path::new(SETTINGS), &record).map_err(|error| {
        error.with_hint("an agent that was killed has left 1 there: write 0, or try again later")
    })
}

fn note(record: &Path) -> Result<(), BpfError> {
    match symlink("rcu_expedited", record) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(BpfError::new("record", record.display().to_string(), &error))
        }
        _ => Ok(()),
    }
}

fn undo(settings: &Path, record: &Path) -> Result<(), BpfError> {
    write(settings, "0")?;
    match fs::remove_file(record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::new("remove", record.display().to_string(), &error))
        }
        _ => Ok(()),
    }
}

fn write(settings: &Path, value: &str) -> Result<(), BpfError> {
    let path = settings.join("rcu_expedited");
    fs::write(&path, value)
        .map_err(|error| BpfError::new("write", path.display().to_string(), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn with(expedited: &str, normal: &str) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            fs::write(machine.0.path().join("rcu_expedited"), expedited).unwrap();
            fs::write(machine.0.path().join("rcu_normal"), normal).unwrap();
            machine
        }

        fn record(&self) -> PathBuf {
            self.0.path().join(RECORD)
        }

        fn is(&self) -> (String, bool) {
            let value = fs::read_to_string(self.0.path().join("rcu_expedited")).unwrap();
            (value.trim().to_owned(), fs::symlink_metadata(self.record()).is_ok())
        }

        fn grace(&self, mode: GracePeriodMode) -> GracePeriods {
            GracePeriods::of(self.0.path(), mode)
        }
    }

    #[test]
    fn they_are_short_for_a_while_and_that_is_recorded_meanwhile() {
        let machine = Machine::with("0\n", "0\n");
        let mut grace = machine.grace(GracePeriodMode::Expedited);
        for _ in 0..2 {
            grace.shorten(Some(machine.record()));
            grace.shorten(Some(machine.record()));
            assert_eq!(machine.is(), ("1".to_owned(), true));
            grace.restore();
            assert_eq!(machine.is(), ("0".to_owned(), false));
        }
        grace.shorten(Some(machine.record()));
        drop(grace);
        assert_eq!(machine.is(), ("0".to_owned(), false), "also where nobody restores them");
    }

    #[test]
    fn what_is_somebody_elses_stays() {
        for (expedited, normal, mode, has_place) in [
            ("1", "0", GracePeriodMode::Expedited, true),
            ("0", "1", GracePeriodMode::Expedited, true),
            ("0", "0", GracePeriodMode::Normal, true),
            ("0", "0", GracePeriodMode::Expedited, false),
        ] {
            let machine = Machine::with(expedited, normal);
            let mut grace = machine.grace(mode);
            grace.shorten(has_place.then(|| machine.record()));
            assert_eq!(machine.is(), (expedited.to_owned(), false));
            grace.restore();
            assert_eq!(machine.is(), (expedited.to_owned(), false));
        }
    }

    #[test]
    fn what_a_killed_agent_left_is_restored() {
        let machine = Machine::with("0", "0");
        let mut killed = machine.grace(GracePeriodMode::Expedited);
        killed.shorten(Some(machine.record()));
        std::mem::forget(killed);
        assert_eq!(machine.is(), ("1".to_owned(), true));
        undo(machine.0.path(), &machine.record()).unwrap();
        assert_eq!(machine.is(), ("0".to_owned(), false));
    }

    #[test]
    fn a_refusal_leaves_nothing_behind_and_is_final() {
        let machine = Machine::with("0", "0");
        let mut grace = machine.grace(GracePeriodMode::Expedited);
        grace.shorten(Some(machine.0.path().join("no/such/place")));
        assert_eq!(machine.is(), ("0".to_owned(), false));
        grace.shorten(Some(machine.record()));
        assert_eq!(machine.is(), ("0".to_owned(), false));
    }
}
