//! A few leases more or less: only what hangs on them is looked at.

use std::sync::Arc;

use flannel_core::desired::roster::{PeerChange, Touched};
use flannel_core::events::PeerChanges;
use flannel_core::health::Subject;
use flannel_core::observed::ObservedRoute;
use flannel_core::plan;
use flannel_core::schedule::GENERATION;
use tokio::time::Instant;

use super::{PassResult, Reconciler};
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::status::lock;

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Takes in a few changes since the last pass. `None` if all has to be looked at:
    /// something failed or is contradictory, and a pass has to follow.
    pub async fn revise(&mut self, changes: &[PeerChange]) -> Option<PassResult> {
        if self.seen.stale || !self.retries.is_empty() || self.seen.device.is_none() {
            return None;
        }
        // What such a rule or policy keeps off the fast path depends on who the peers are.
        if self.has_outer_rules() || self.watch.has_policies() {
            return None;
        }
        // Taken out: if something goes wrong on the way, a pass makes it anew.
        let mut roster = self.wanted.roster.take()?;
        let mut desired = self.wanted.desired.take()?;
        let touched = roster.revise(self.node(), Arc::make_mut(&mut desired), changes);
        let ops = touched.zip(self.seen.observed.as_ref());
        let ops = ops.map(|(touched, observed)| plan::diff_of(&desired, observed, &touched));
        self.wanted.desired = Some(desired);
        let ops = ops?;
        self.carry_out(&ops, false).await;
        if self.seen.stale || !self.retries.is_empty() {
            return None;
        }
        self.publish_changes(changes);
        self.wanted.roster = Some(roster);
        let raise_at = if ops.is_empty() { None } else { self.raise_soon() };
        Some(PassResult { raise_at, ..PassResult::default() })
    }

    /// Puts a peer's route back that somebody took away; whether nothing else is left to
    /// be looked at.
    pub async fn put_back(&mut self, ifindex: u32, route: &ObservedRoute) -> bool {
        if self.seen.stale || !self.retries.is_empty() || self.seen.device != Some(ifindex) {
            return false;
        }
        let (Some(desired), Some(observed)) = (&self.wanted.desired, &mut self.seen.observed)
        else {
            return false;
        };
        let subnet = route.destination;
        let Some(peer) = desired.peers.get(&subnet).filter(|_| observed.routes.remove(route))
        else {
            return false;
        };
        let touched = Touched { subnets: [subnet].into(), macs: [peer.vtep_mac].into() };
        let ops = plan::diff_of(desired, observed, &touched);
        self.carry_out(&ops, true).await;
        !self.seen.stale && self.retries.is_empty()
    }

    fn publish_changes(&self, changes: &[PeerChange]) {
        let mut state = self.shared.lock();
        let mut told = PeerChanges::default();
        let peers = Arc::make_mut(&mut state.peers);
        for (subnet, now) in changes {
            let before = match now {
                Some(now) => peers.insert(*subnet, *now),
                None => peers.remove(subnet),
            };
            told.note(before.as_ref(), now.as_ref());
            let address = |peer: flannel_core::peer::Peer| peer.public_ip;
            self.watch.change_peer(before.map(address), now.map(address));
        }
        state.note_all(told.events());
        self.watch.peers_changed();
    }

    /// Ends all confirmations, unless that was done just now: gives when it is due, or due
    /// again because it failed.
    pub fn raise_soon(&mut self) -> Option<Instant> {
        let free = self.raised.map(|raised| raised + GENERATION);
        match free.filter(|free| *free > Instant::now()) {
            Some(free) => Some(free),
            None => {
                self.raise();
                let again = self.unfinished.schedule();
                again.filter(|_| self.unfinished.wake.generation)
            }
        }
    }

    /// Ends all confirmations now.
    pub(super) fn raise(&mut self) {
        self.raised = Some(Instant::now());
        if let Some(datapath) = lock(&self.datapath).as_mut() {
            let raised = datapath.raise_generation();
            self.unfinished.wake.generation = raised.is_err();
            self.shared.report(Subject::Generation, raised);
        }
    }
}
