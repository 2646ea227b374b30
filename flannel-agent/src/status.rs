//! The agent's state as others see it: filled by the loop, read by the control
//! socket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use flannel_core::backend::BackendKind;
use flannel_core::events::{self, Ring};
use flannel_core::health::{Found, Health, HealthChange, Line, Subject};
use flannel_core::lease::Lease;
use flannel_core::mac::MacAddr;
use flannel_core::peer::Peer;
use flannel_core::status::{
    Counters, DatapathStatus, DeviceStatus, LeaseStatus, NarrowPeer, PacketRulesStatus, PeerPath,
    PeerState, PeerStatus, Status, StoreStatus, What,
};
use flannel_core::text;
use ipnetwork::Ipv4Network;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::backend::udp::SharedProxy;
use crate::bpf::{Datapath, OTHERS};
use crate::record::Record;
use crate::task::{TaskEnded, Watched};

/// While one of these is not well, pods have no network.
const NO_NETWORK: [Subject; 3] = [Subject::Device, Subject::SubnetFile, Subject::UdpProxy];

/// The loaded data path, if there is one: shared with the control socket, which
/// reads its counters.
pub type SharedDatapath = Arc<Mutex<Option<Box<dyn Datapath>>>>;

/// Everything that the loop tells.
#[derive(Debug, Default)]
pub struct State {
    /// Lease held, data plane programmed, files written: pods have a network.
    pub ready: bool,
    /// Our lease was deleted, ran out or was taken, and is not ours again yet.
    pub lease_lost: bool,
    /// A task that was to last has ended, and the agent is about to.
    pub ended: Option<TaskEnded>,
    /// Present complaints.
    pub health: Health,
    /// The data path.
    pub datapath: DatapathStatus,
    /// The firewall in use and why it is this one, once chosen.
    pub firewall: Option<String>,
    /// Rules that judge each packet; `None` where there is no fast path.
    pub packet_rules: Option<PacketRulesStatus>,
    /// Our lease, once acquired.
    pub lease: Option<Lease>,
    /// The device, once created.
    pub device: Option<DeviceStatus>,
    /// The store.
    pub store: StoreStatus,
    /// The backend's type; `None` before the first pass.
    pub backend: Option<BackendKind>,
    /// The udp backend's proxy.
    pub proxy: SharedProxy,
    /// Programmed peers.
    pub peers: Arc<BTreeMap<Ipv4Network, Peer>>,
    /// Those of them that are reached without encapsulation.
    pub direct: Arc<BTreeSet<Ipv4Network>>,
    /// Those of them that the programs' tables have no place for.
    pub unmapped: Arc<BTreeSet<Ipv4Network>>,
    /// Those of them of which something cannot be programmed, with the reason.
    pub failed: BTreeMap<Ipv4Network, String>,
    /// Leases and keys that are left out, with the reason.
    pub ignored: Vec<String>,
    /// What the loop did, for `/metrics`.
    pub record: Record,
    /// What it did or noticed lately.
    pub events: Ring,
}

impl State {
    /// Whether pods have a network: without subnet.env none can be made, without a
    /// lease peers may send elsewhere, and without the overlay's device nobody is reached.
    pub fn is_ready(&self) -> bool {
        self.ready
            && !self.lease_lost
            && self.ended.is_none()
            && self.health.first_of(&NO_NETWORK).is_none()
    }

    /// Whether a peer can be reached. Nothing is programmed on a device that cannot be
    /// made.
    pub fn peer_state(&self, subnet: Ipv4Network) -> PeerState {
        let device =
            || self.health.reason(Subject::Device).filter(|_| !self.direct.contains(&subnet));
        match self.failed.get(&subnet).map(String::as_str).or_else(device) {
            Some(reason) => PeerState::Pending(text::shown(reason, text::REASON)),
            None if self.unmapped.contains(&subnet) => PeerState::Unmapped,
            None => PeerState::Ok,
        }
    }

    /// All complaints as they are now.
    pub fn complaints(&self) -> Vec<Line> {
        self.health.lines(Instant::now())
    }

    /// Takes in how a subject is now, and logs what is new of it.
    pub fn report(&mut self, subject: Subject, found: impl Into<Found>) {
        for change in self.health.report(subject, found, Instant::now()) {
            events::of_condition(&change).into_iter().for_each(|what| self.note(what));
            match change {
                HealthChange::Began(what, reason) if what.subject.is_grave() => {
                    tracing::error!(%what, reason, "degraded");
                }
                HealthChange::Began(what, reason) => tracing::warn!(%what, reason, "degraded"),
                HealthChange::Differs(what, reason) => {
                    tracing::warn!(%what, reason, "degraded for another reason")
                }
                HealthChange::Unlisted(what, reason) => {
                    tracing::debug!(%what, reason, "degraded; too many complaints to list it");
                }
                HealthChange::Ended(what) => tracing::info!(%what, "recovered"),
            }
        }
    }
}

impl State {
    /// Notes an event for each kind of what was put right since the last call.
    pub fn tell_repairs(&mut self) {
        for (what, times) in self.record.take_repairs() {
            self.note(What::Repaired { what, times });
        }
    }

    /// Notes these events.
    pub fn note_all(&mut self, all: impl IntoIterator<Item = What>) {
        all.into_iter().for_each(|what| self.note(what));
    }

    /// Notes an event.
    pub fn note(&mut self, what: What) {
        self.events.note(what, SystemTime::now());
    }
}

/// [`State`], shared.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    state: Arc<Mutex<State>>,
    /// A task has ended.
    ended: Arc<Notify>,
}

impl Shared {
    /// The state; a short lock.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a task that lasts: the daemon ends if it does. `task` completes "what ...".
    pub fn spawn(
        &self,
        task: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        tokio::spawn(self.watched(task).work(work))
    }

    /// For the owner of a task or thread that lasts.
    pub fn watched(&self, task: &'static str) -> Watched<impl FnOnce(TaskEnded) + Send + use<>> {
        let shared = self.clone();
        Watched::new(task, move |ended| {
            shared.lock().ended.get_or_insert(ended);
            shared.ended.notify_one();
        })
    }

    /// Waits until such a task has ended. Cancel safe.
    pub async fn task_has_ended(&self) -> TaskEnded {
        loop {
            if let Some(ended) = self.lock().ended {
                return ended;
            }
            self.ended.notified().await;
        }
    }

    /// Notes an event.
    pub fn note(&self, what: What) {
        self.lock().note(what);
    }

    /// [`State::report`], with a lock of its own.
    pub fn report(&self, subject: Subject, found: impl Into<Found>) {
        self.lock().report(subject, found);
    }
}

/// Locks the data path.
pub fn lock(datapath: &SharedDatapath) -> MutexGuard<'_, Option<Box<dyn Datapath>>> {
    datapath.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Builds the answer to `status`.
pub fn status(shared: &Shared, datapath: &SharedDatapath) -> Status {
    let told = lock(datapath).as_ref().map(|datapath| (datapath.outcomes(), datapath.bounds()));
    let (outcomes, bounds) = told.unzip();
    let outcomes = outcomes.transpose();
    let mut state = shared.lock();
    state.report(Subject::Counters, outcomes.as_ref());
    let outcomes = outcomes.ok().flatten().unwrap_or_default();
    let outcomes = state.proxy.outcomes().unwrap_or(outcomes);
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        datapath: state.datapath.clone(),
        backend: state.backend,
        firewall: state.firewall.clone(),
        packet_rules: state.packet_rules.clone(),
        lease: state.lease.as_ref().map(|lease| LeaseStatus {
            subnet: lease.subnet,
            public_ip: lease.attrs.public_ip,
            expires_in_seconds: lease
                .expires
                .map(|expires| expires.saturating_duration_since(Instant::now()).as_secs()),
        }),
        device: state.device.clone(),
        store: state.store.clone(),
        peers: state.peers.len(),
        narrow_peers: bounds
            .into_iter()
            .flatten()
            .map(|(subnet, largest)| NarrowPeer { subnet, largest })
            .collect(),
        outcomes: outcomes.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
        health: state.complaints(),
        ignored: state.ignored.clone(),
    }
}

/// Builds the answer to `peers`.
pub fn peers(shared: &Shared, datapath: &SharedDatapath) -> Vec<PeerStatus> {
    let meter = lock(datapath).as_ref().map(|datapath| datapath.meter());
    let counters = meter.and_then(|meter| meter.peer_counters().ok()).unwrap_or_default();
    let state = shared.lock();
    // Peers are programmed in a pass.
    let Some(backend) = state.backend else { return Vec::new() };
    let through_proxy = state.proxy.peer_counters();
    state
        .peers
        .values()
        .map(|peer| PeerStatus {
            subnet: peer.subnet,
            public_ip: peer.public_ip,
            vtep_mac: Some(peer.vtep_mac).filter(|mac| *mac != MacAddr::default()),
            path: match state.direct.contains(&peer.subnet) {
                true => PeerPath::Direct,
                false => PeerPath::Backend(backend),
            },
            state: state.peer_state(peer.subnet),
            counters: match &through_proxy {
                Some(all) => Counters::Udp(all.get(&peer.subnet).copied().unwrap_or_default()),
                None => match counters.get(&peer.subnet) {
                    None if counters.contains_key(&OTHERS) => Counters::Shared {},
                    own => Counters::Programs(own.copied().unwrap_or_default()),
                },
            },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Shared {
        let shared = Shared::default();
        shared.lock().ready = true;
        shared
    }

    #[tokio::test]
    async fn a_task_that_ends_by_itself_is_told_and_one_that_is_aborted_is_not() {
        let shared = ready();
        let aborted = shared.spawn("is aborted", std::future::pending());
        tokio::task::yield_now().await;
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());
        assert!(shared.lock().is_ready());
        for (task, panicked) in [("returns", false), ("panics", true)] {
            let shared = ready();
            let ended = shared.spawn(task, async move { assert!(!panicked, "as it is to") }).await;
            assert_eq!(ended.is_err(), panicked);
            assert_eq!(shared.task_has_ended().await, TaskEnded { task, panicked });
            assert!(!shared.lock().is_ready(), "{task}");
        }
    }

    #[test]
    fn a_thread_that_panics_is_told() {
        let shared = ready();
        let watched = shared.watched("works");
        let thread = std::thread::spawn(move || {
            let _watched = watched;
            panic!("as it is to");
        });
        assert!(thread.join().is_err());
        assert_eq!(shared.lock().ended, Some(TaskEnded { task: "works", panicked: true }));
    }
}
