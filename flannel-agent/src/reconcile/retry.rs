//! Operations that failed, and when each is due again: one peer's failure never
//! stops the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flannel_core::health::{About, Found, Part, Subject};
use flannel_core::op::Op;
use flannel_core::peer::Peer;
use flannel_core::schedule::Wake;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::status::Shared;

const FIRST: Duration = Duration::from_millis(200);
/// Nothing tells of the end of most causes: they are over at most so long before it shows.
const LIMIT: Duration = Duration::from_secs(5);
/// The same of the device, without which no peer is reached.
const DEVICE_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Retries(BTreeMap<About, Failure>);

#[derive(Debug)]
struct Failure {
    backoff: Backoff,
    due: Instant,
    reason: String,
}

/// What operations can be about.
const SUBJECTS: [Subject; 10] = [
    Subject::Device,
    Subject::DeviceMac,
    Subject::DeviceMtu,
    Subject::DeviceChecksum,
    Subject::DeviceAddress,
    Subject::DeviceRoute,
    Subject::Peer,
    Subject::Neighbour,
    Subject::FdbEntry,
    Subject::MapEntry,
];

/// What an operation is about, for backoff and complaints.
fn about(op: &Op) -> About {
    let of = |subject, part| About { subject, part };
    match op {
        Op::DeleteDevice { .. } | Op::CreateDevice(_) | Op::EndProtoDown | Op::SetUp => {
            Subject::Device.into()
        }
        Op::SetMac(_) => Subject::DeviceMac.into(),
        Op::SetMtu(_) => Subject::DeviceMtu.into(),
        Op::SetChecksum(_) => Subject::DeviceChecksum.into(),
        Op::AddAddress(_) | Op::PutLocal(_) | Op::RemoveAddress(_) => Subject::DeviceAddress.into(),
        Op::PutMaps(peer) => of(Subject::MapEntry, Part::Subnet(peer.subnet)),
        Op::RemoveMaps(subnet) => of(Subject::MapEntry, Part::Subnet(*subnet)),
        Op::PutLinkRoute(_) => Subject::DeviceRoute.into(),
        Op::PutRoute(subnet) => About::peer(*subnet),
        Op::RemoveRoute(route) => About::peer(route.destination),
        Op::PutDirect(route) | Op::RemoveDirect(route) => About::peer(route.destination),
        Op::PutNeighbour(address, _) | Op::RemoveNeighbour(address, _) => {
            of(Subject::Neighbour, Part::Address(*address))
        }
        Op::PutFdb(mac, _) | Op::RemoveFdb(mac, _) => of(Subject::FdbEntry, Part::Mac(*mac)),
    }
}

impl Retries {
    /// Whether nothing has failed.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn is_due(&self, op: &Op) -> bool {
        self.0.is_empty()
            || self.0.get(&about(op)).is_none_or(|failure| failure.due <= Instant::now())
    }

    pub(super) fn failed(&mut self, op: &Op, reason: String) {
        let about = about(op);
        let limit = if about.subject == Subject::Device { DEVICE_LIMIT } else { LIMIT };
        let failure = self.0.entry(about).or_insert_with(|| Failure {
            backoff: Backoff::new(FIRST, limit),
            due: Instant::now(),
            reason: String::new(),
        });
        failure.due = Instant::now() + failure.backoff.fail();
        failure.reason = reason;
    }

    pub(super) fn worked(&mut self, op: &Op) {
        if !self.0.is_empty() {
            self.0.remove(&about(op));
        }
    }

    /// What they may have failed for is over: all are due, as if for the first time.
    pub(super) fn hurry(&mut self) {
        for failure in self.0.values_mut() {
            failure.backoff.reset();
            failure.due = Instant::now();
        }
    }

    /// Forgets what no plan asks for any more: the peer has left, or somebody
    /// else put it right.
    pub(super) fn forget_all_but(&mut self, plan: &[Op]) {
        if !self.0.is_empty() {
            let planned: BTreeSet<About> = plan.iter().map(about).collect();
            self.0.retain(|about, _| planned.contains(about));
        }
    }

    /// Why something of a peer cannot be programmed.
    pub(super) fn reason_of(&self, peer: &Peer) -> Option<&str> {
        if self.0.is_empty() {
            return None;
        }
        let of = |subject, part| About { subject, part };
        [
            About::peer(peer.subnet),
            of(Subject::Neighbour, Part::Address(peer.subnet.network())),
            of(Subject::FdbEntry, Part::Mac(peer.vtep_mac)),
            of(Subject::MapEntry, Part::Subnet(peer.subnet)),
        ]
        .iter()
        .find_map(|about| self.0.get(about))
        .map(|failure| failure.reason.as_str())
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.values().map(|failure| failure.due).min()
    }

    /// Complains about what failed; is silent about what works again.
    pub(super) fn report(&self, shared: &Shared) {
        let mut state = shared.lock();
        for subject in SUBJECTS {
            let failed = self.0.iter().filter(|(about, _)| about.subject == subject);
            let failed =
                failed.map(|(about, failure)| (about.part.clone(), failure.reason.clone()));
            state.report(subject, failed.collect::<Found>());
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
