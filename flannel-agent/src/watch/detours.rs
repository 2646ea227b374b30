//! Others' rules and routes that lead what pods send to peers elsewhere: found when rules,
//! routes or peers change, and told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::detours::{Here, Peers, Ways};
use flannel_core::health::{Found, Subject};
use nix::net::if_::if_indextoname;
use tokio::sync::Notify;

use super::Watch;

/// What is known of them, for the reconciler and the task.
#[derive(Debug, Default)]
pub(super) struct Detours {
    /// `None` while there is no way to peers of ours.
    here: Mutex<Option<Here>>,
    /// Something may lead elsewhere, some peer or other.
    some: AtomicBool,
    /// They have to be looked for.
    asked: Notify,
}

impl Detours {
    fn here(&self) -> MutexGuard<'_, Option<Here>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Tells what ways to peers are right; `None` while there are none of ours.
    pub fn set_here(&self, here: Option<Here>) {
        let mut known = self.detours.here();
        if *known != here {
            *known = here;
            self.detours.asked.notify_one();
        }
    }

    /// The programmed peers are others.
    pub fn peers_changed(&self) {
        if self.has_detours() {
            self.detours.asked.notify_one();
        }
    }

    /// Whether something may lead elsewhere, whoever the peers are.
    pub(super) fn has_detours(&self) -> bool {
        self.detours.some.load(Ordering::Relaxed)
    }

    /// Waits until they have to be looked for. Cancel safe.
    pub(super) async fn detours_asked(&self) {
        self.detours.asked.notified().await;
    }

    /// Looks for rules and routes that lead elsewhere, and tells of them.
    pub(super) fn look_for_detours(&self) {
        let here = self.detours.here().clone();
        let found = here.map_or_else(Found::well, |here| self.find_detours(&here));
        self.shared.report(Subject::Detour, found);
    }

    fn find_detours(&self, here: &Here) -> Found {
        let tables = self.state().inspector.detours(here);
        let tables = match tables {
            Ok(tables) => tables,
            Err(error) => {
                self.detours.some.store(true, Ordering::Relaxed);
                return Found::not_well(error.to_string());
            }
        };
        let ways = Ways::of(&tables, here);
        // Before the peers are read: those that come later ask again.
        self.detours.some.store(!ways.are_straight(), Ordering::Relaxed);
        if ways.are_straight() {
            return Found::well();
        }
        let (all, direct) = {
            let state = self.shared.lock();
            (Arc::clone(&state.peers), Arc::clone(&state.direct))
        };
        ways.detours(Peers { all: &all, direct: &direct }, here, name)
    }
}

fn name(ifindex: u32) -> String {
    let name = if_indextoname(ifindex).ok();
    let name = name.map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| format!("interface {ifindex}"))
}
