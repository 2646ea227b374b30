//! Operations that failed, and when each is due again: one peer's failure never
//! stops the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flannel_core::plan::Op;
use tokio::time::Instant;

use super::{Wake, subject_of_peer};
use crate::backoff::Backoff;
use crate::status::Shared;

const FIRST: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Retries(BTreeMap<String, Failure>);

#[derive(Debug)]
struct Failure {
    backoff: Backoff,
    due: Instant,
    reason: String,
}

/// What an operation is about, for backoff and complaints.
fn subject(op: &Op) -> String {
    match op {
        Op::DeleteDevice { .. } | Op::CreateDevice(_) | Op::SetUp => "device".to_owned(),
        Op::SetMac(_) => "device MAC".to_owned(),
        Op::SetMtu(_) => "device MTU".to_owned(),
        Op::AddAddress(_) | Op::RemoveAddress(_) => "device address".to_owned(),
        Op::PutMaps(peer) => format!("map entry {}", peer.subnet),
        Op::RemoveMaps(subnet) => format!("map entry {subnet}"),
        Op::PutLinkRoute(_) => "device route".to_owned(),
        Op::PutRoute(subnet) => subject_of_peer(*subnet),
        Op::RemoveRoute(route) => subject_of_peer(route.destination),
        Op::PutDirect(route) | Op::RemoveDirect(route) => subject_of_peer(route.destination),
        Op::PutNeighbour(address, _) | Op::RemoveNeighbour(address, _) => {
            format!("neighbour {address}")
        }
        Op::PutFdb(mac, _) | Op::RemoveFdb(mac, _) => format!("FDB entry {mac}"),
    }
}

impl Retries {
    pub(super) fn is_due(&self, op: &Op) -> bool {
        self.0.get(&subject(op)).is_none_or(|failure| failure.due <= Instant::now())
    }

    pub(super) fn failed(&mut self, op: &Op, reason: String) {
        let failure = self.0.entry(subject(op)).or_insert_with(|| Failure {
            backoff: Backoff::new(FIRST, LIMIT),
            due: Instant::now(),
            reason: String::new(),
        });
        failure.due = Instant::now() + failure.backoff.fail();
        failure.reason = reason;
    }

    pub(super) fn worked(&mut self, op: &Op) {
        if !self.0.is_empty() {
            self.0.remove(&subject(op));
        }
    }

    /// Forgets what no plan asks for any more: the peer has left, or somebody
    /// else put it right.
    pub(super) fn forget_all_but(&mut self, plan: &[Op]) {
        if !self.0.is_empty() {
            let planned: BTreeSet<String> = plan.iter().map(subject).collect();
            self.0.retain(|subject, _| planned.contains(subject));
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.values().map(|failure| failure.due).min()
    }

    /// Complains about what failed; is silent about what works again.
    pub(super) fn report(&self, shared: &Shared) {
        let present: BTreeMap<String, String> = self
            .0
            .iter()
            .map(|(subject, failure)| (subject.clone(), failure.reason.clone()))
            .collect();
        let mut state = shared.lock();
        for prefix in ["device", "peer ", "neighbour ", "FDB entry ", "map entry "] {
            let group = present
                .iter()
                .filter(|(subject, _)| subject.starts_with(prefix))
                .map(|(subject, reason)| (subject.clone(), reason.clone()))
                .collect();
            state.health.replace_group(prefix, &group);
        }
    }
}

/// What could not be looked at or put right as a whole, and when to try again.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// What failed last time.
    pub(super) wake: Wake,
    due: Option<Instant>,
    backoff: Backoff,
}

impl Default for Unfinished {
    fn default() -> Self {
        Self { wake: Wake::default(), due: None, backoff: Backoff::new(FIRST, LIMIT) }
    }
}

impl Unfinished {
    /// What is due now.
    pub(super) fn due(&self) -> Wake {
        if self.due.is_some_and(|due| due <= Instant::now()) { self.wake } else { Wake::default() }
    }

    /// After a pass: when the rest is due.
    pub(super) fn schedule(&mut self) -> Option<Instant> {
        if self.wake.is_nothing() {
            self.backoff.reset();
            self.due = None;
        } else if self.due.is_none_or(|due| due <= Instant::now()) {
            self.due = Some(Instant::now() + self.backoff.fail());
        }
        self.due
    }
}
