//! What runs on tcx hooks. One look asks twice: whether others act on packets there, and
//! whether our program does.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::sys::{Attached, TcxHook, tcx_programs};

/// So long an answer serves who asks the same: a part of one look.
const FRESH: Duration = Duration::from_millis(50);

/// The kernel's answers of a moment ago, for all who ask.
#[derive(Clone, Default)]
pub(super) struct TcxAnswers(Arc<Mutex<Answers>>);

type Answers = BTreeMap<(u32, TcxHook), (Instant, Vec<Attached>)>;

impl TcxAnswers {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the kernel. The answer may be taken once.
    ///
    /// # Errors
    /// As of [`tcx_programs`].
    pub(super) fn ask(&self, ifindex: u32, hook: TcxHook) -> io::Result<Vec<Attached>> {
        let found = tcx_programs(ifindex, hook)?;
        self.answers().insert((ifindex, hook), (Instant::now(), found.clone()));
        Ok(found)
    }

    /// Takes an answer of a moment ago, or asks the kernel where there is none.
    ///
    /// # Errors
    /// As of [`tcx_programs`].
    pub(super) fn take(&self, ifindex: u32, hook: TcxHook) -> io::Result<Vec<Attached>> {
        match self.answers().remove(&(ifindex, hook)) {
            Some((asked, found)) if asked.elapsed() < FRESH => Ok(found),
            _ => tcx_programs(ifindex, hook),
        }
    }

    /// Forgets what nobody has taken.
    pub(super) fn forget(&self) {
        self.answers().clear();
    }
}
