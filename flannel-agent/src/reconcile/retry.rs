//! Operations that failed, and when each is due again: one peer's failure never
//! stops the others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{is_device, subject_of_peer};
use crate::backoff::Backoff;
use crate::plan::Op;
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
        op if is_device(op) => "device".to_owned(),
        Op::PutMaps(peer) => format!("map entry {}", peer.subnet),
        Op::RemoveMaps(subnet) => format!("map entry {subnet}"),
        Op::PutRoute(subnet) => subject_of_peer(*subnet),
        Op::RemoveRoute(route) => subject_of_peer(route.destination),
        Op::PutNeighbour(address, _) | Op::RemoveNeighbour(address, _) => {
            format!("neighbour {address}")
        }
        Op::PutFdb(mac, _) | Op::RemoveFdb(mac, _) => format!("FDB entry {mac}"),
        _ => "device".to_owned(),
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
