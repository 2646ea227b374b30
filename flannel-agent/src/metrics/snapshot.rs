//! What a scrape tells: read at once, without holding up whoever writes it.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use flannel_core::health::Subject;
use flannel_core::repair::Repair;
use flannel_core::status::{DatapathKind, PeerState};
use flannel_ebpf::abi::{MAX_EXEMPTIONS, MAX_PEERS, MAX_VETHS, map};
use ipnetwork::Ipv4Network;
use prometheus_client::metrics::histogram::Histogram;

use super::process::{Process, seconds};
use super::totals::Traffic;
use crate::status::State;

/// States of peers.
pub(super) const PEER_STATES: [&str; 3] = ["ok", "pending", "unmapped"];

/// The agent at one moment.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) ready: bool,
    pub(super) mode: Option<DatapathKind>,
    pub(super) fallback: bool,
    pub(super) not_well: BTreeMap<&'static str, u64>,
    /// Of programs, or of the udp backend's proxy.
    pub(super) outcomes: BTreeMap<&'static str, u64>,
    /// Packets that fail the source check are dropped.
    pub(super) forged_are_dropped: bool,
    pub(super) traffic: Vec<Traffic>,
    /// By peer, if that is wanted.
    pub(super) by_peer: Vec<(Ipv4Network, Vec<Traffic>)>,
    pub(super) peers: [u64; PEER_STATES.len()],
    /// Of programs.
    pub(super) narrow_peers: Option<u64>,
    pub(super) lease_expiration: Option<f64>,
    pub(super) store_up: bool,
    pub(super) store_errors: u64,
    pub(super) store_revision: Option<i64>,
    pub(super) store_event: Option<f64>,
    pub(super) passes: Histogram,
    pub(super) repairs: BTreeMap<Repair, u64>,
    pub(super) map_pressure: BTreeMap<&'static str, f64>,
    pub(super) hooks: BTreeMap<&'static str, u64>,
    pub(super) process: Process,
}

impl Snapshot {
    /// What the loop has told; counters of packets come later.
    pub(super) fn of(state: &State) -> Self {
        let count = |subject: &Subject| (subject.text(), state.health.count(*subject) as u64);
        Self {
            ready: state.is_ready(),
            mode: state.datapath.mode,
            fallback: state.datapath.reason.is_some(),
            not_well: Subject::ALL.iter().map(count).collect(),
            outcomes: BTreeMap::new(),
            forged_are_dropped: false,
            traffic: Vec::new(),
            by_peer: Vec::new(),
            peers: peers(state),
            narrow_peers: None,
            lease_expiration: state.lease.as_ref().and_then(|lease| lease.expires).map(date),
            store_up: state.store.connected,
            store_errors: state.record.store_errors,
            store_revision: state.record.store_revision,
            store_event: state.record.store_event.map(seconds),
            passes: state.record.passes.clone(),
            repairs: state.record.repairs.clone(),
            map_pressure: map_pressure(state),
            hooks: state.record.hooks.clone(),
            process: Process::default(),
        }
    }
}

/// How many peers there are of each state.
fn peers(state: &State) -> [u64; PEER_STATES.len()] {
    let mut counts = [0; PEER_STATES.len()];
    for subnet in state.peers.keys() {
        let at = match state.peer_state(*subnet) {
            PeerState::Ok => 0,
            PeerState::Pending(_) => 1,
            PeerState::Unmapped => 2,
        };
        counts[at] += 1;
    }
    counts
}

/// What the clock will show at this time, in whole seconds since 1970: the clock may be
/// set meanwhile.
fn date(time: Instant) -> f64 {
    seconds(SystemTime::now() + time.saturating_duration_since(Instant::now())).round()
}

/// From what the loop knows: no map is walked for it.
fn map_pressure(state: &State) -> BTreeMap<&'static str, f64> {
    let mut pressure = BTreeMap::new();
    if state.datapath.mode != Some(DatapathKind::Ebpf) {
        return pressure;
    }
    let share = |count: usize, of: u32| count as f64 / f64::from(of);
    let peers = share(state.peers.len() - state.unmapped.len().min(state.peers.len()), MAX_PEERS);
    pressure.insert(map::SUBNETS4, peers);
    pressure.insert(map::PEERS4, peers);
    pressure.insert(map::VETHS, share(state.datapath.envelope.veths.len(), MAX_VETHS));
    let exempt = state.packet_rules.as_ref().map_or(0, |rules| rules.exempt.len());
    pressure.insert(map::EXEMPTIONS, share(exempt, MAX_EXEMPTIONS));
    if let Some(flows) = state.datapath.flows
        && let Some(new) = flows.new_per_window
    {
        pressure.insert(map::FLOWS4, new as f64 / f64::from(flows.size.max(1)));
    }
    pressure
}
