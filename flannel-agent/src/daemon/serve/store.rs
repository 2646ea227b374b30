//! What the store tells, and what becomes of peers that it lost.

use flannel_core::health::{Found, Subject};
use flannel_core::lease::update::LeaseUpdate;
use flannel_core::text::{self, counted};
use tokio::time::Instant;

use super::Loop;
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::source::{LEASE_TTL, LeaseSource};

impl<S: LeaseSource, K: Kernel, F: Firewall> Loop<'_, S, K, F> {
    pub(super) fn take_update(&mut self, update: LeaseUpdate) {
        match &update {
            LeaseUpdate::Disconnected { reason } => {
                let mut state = self.shared.lock();
                state.store.connected = false;
                state.store.detail = Some(text::shown(reason, text::REASON));
                state.record.store_failed();
                state.report(Subject::Store, Found::not_well(reason));
            }
            // It says nothing of the connection.
            LeaseUpdate::Unreadable { .. } => {}
            LeaseUpdate::OtherHistory { reason } => self.other_history = Some(reason.clone()),
            _ => {
                let mut state = self.shared.lock();
                state.store.connected = true;
                state.store.detail = None;
                state.report(Subject::Store, Found::well());
                if let Some(revision) = update.revision() {
                    state.record.store_told(revision);
                }
            }
        }
        let listed = matches!(update, LeaseUpdate::Snapshot { .. });
        let changes = self.table.apply(update);
        // What a store lost, nobody took from us.
        let broken = if listed { self.other_history.take() } else { None };
        if let Some(own) = changes.own {
            self.take_own(own, broken.is_some());
        }
        self.tell_history(broken);
        if changes.leases {
            self.schedule.odd(Instant::now());
        }
        if !changes.peers.is_empty() {
            self.peers_changed = true;
            self.changed.extend(changes.peers);
            self.schedule.leases_changed(Instant::now());
        }
    }

    /// Says that peers stand which the store has no word of, or no longer.
    fn tell_history(&mut self, broken: Option<String>) {
        let held = self.table.held();
        match broken {
            Some(reason) if held > 0 => {
                let why = format!(
                    "etcd has other data than before ({reason}): {} that it lost, or has \
                     older words of, will stay until their nodes write their leases again, or 24 \
                     hours; if the data were replaced on purpose, restart the agent to drop those \
                     peers now",
                    counted(held, "peer")
                );
                self.shared.report(Subject::StoreHistory, Found::not_well(why));
                self.held_until = Some(Instant::now() + LEASE_TTL);
            }
            Some(reason) => tracing::warn!(reason, "etcd data replaced"),
            None => {}
        }
        if held == 0 && self.held_until.take().is_some() {
            self.shared.report(Subject::StoreHistory, Found::well());
        }
    }

    /// Their leases would have ended by now.
    pub(super) fn release_held(&mut self) {
        let changes = self.table.release_held();
        self.tell_history(None);
        if !changes.peers.is_empty() {
            self.peers_may_have_changed();
        }
    }
}
