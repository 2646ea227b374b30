//! The sign of life for the programs: the maps are true, as far as leases are
//! known.

use std::time::Duration;

use flannel_core::health::Subject;
use tokio::time::Instant;

use super::Reconciler;
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::status::lock;

/// It is given this often: a tenth of the time for which the programs believe it
/// may be lost without harm.
const EVERY: Duration = Duration::from_secs(5);

/// When it was given.
#[derive(Debug, Default)]
pub(super) struct AttendanceSigns {
    /// The last look at the node worked: maps follow the leases.
    sees: bool,
    given: Option<Instant>,
}

impl AttendanceSigns {
    /// Takes whether a look at the node has worked.
    pub(super) fn looked(&mut self, sees: bool) {
        self.sees = sees;
    }

    fn is_due(&self, now: Instant) -> bool {
        self.sees && self.given.is_none_or(|given| now >= given + EVERY)
    }
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Gives the sign of life when it is due. Not while nothing can be seen: the
    /// programs then stop to refuse senders that they do not know.
    pub(super) fn attend(&mut self) {
        let now = Instant::now();
        if !self.attendance.is_due(now) {
            return;
        }
        let Some(attended) = lock(&self.datapath).as_mut().map(|datapath| datapath.attend()) else {
            return;
        };
        self.attendance.given = attended.is_ok().then_some(now);
        self.shared.report(Subject::SignOfLife, attended);
    }
}
