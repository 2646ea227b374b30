//! What becomes of the other nodes' leases.

use flannel_core::desired::roster::PeerChange;
use flannel_core::lease::update::LeaseUpdate;
use flannel_core::schedule::Wake;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{FOLLOWS_LEASES, Loop, StartError};
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::source::LeaseSource;
use crate::task::TaskEnded;

impl<S: LeaseSource, K: Kernel, F: Firewall> Loop<'_, S, K, F> {
    /// The first look needs the peers: without them it would remove theirs.
    pub(super) async fn first_snapshot(
        &mut self,
        updates: &mut mpsc::Receiver<LeaseUpdate>,
    ) -> Result<(), StartError> {
        while let Some(update) = updates.recv().await {
            let known = matches!(update, LeaseUpdate::Snapshot { .. });
            self.take_update(update);
            if known {
                return Ok(());
            }
        }
        Err(TaskEnded::of(FOLLOWS_LEASES).into())
    }

    pub(super) fn tell_oddities(&mut self) {
        self.schedule.tell_oddities(Instant::now());
        let oddities = self.table.oddities();
        let mut state = self.shared.lock();
        for oddity in oddities.iter().filter(|oddity| !state.ignored.contains(oddity)) {
            tracing::warn!(reason = %oddity, "lease not used as it is");
        }
        state.ignored = oddities;
    }

    /// Takes in what leases say, and looks at nothing else if that will do.
    pub(super) async fn revise(&mut self) {
        let began = Instant::now();
        self.schedule.begin_leases();
        let changed = std::mem::take(&mut self.changed);
        let changes: Vec<PeerChange> =
            changed.into_iter().map(|subnet| (subnet, self.table.peer_at(subnet))).collect();
        match self.reconciler.revise(&changes).await {
            Some(outcome) => {
                self.schedule.end_confirmations(outcome.raise_at);
                self.shared.lock().record.passed(began.elapsed());
                self.tell_systemd();
            }
            None => {
                self.wake(Wake { generation: true, ..Wake::default() });
                self.pass().await;
            }
        }
        self.schedule.leases_taken(began.elapsed(), Instant::now());
    }

    /// What was observed stays true as long as no event says otherwise: one
    /// lease costs no look at all of them.
    pub(super) fn peers_may_have_changed(&mut self) {
        self.peers_changed = true;
        self.wake(Wake { generation: true, ..Wake::default() });
    }
}
