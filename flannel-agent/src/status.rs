//! The agent's state as others see it: filled by the loop, read by the control
//! socket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use flannel_core::envelope::Report;
use flannel_core::firewall::packet_rules::exempt::RuleLine;
use flannel_core::health::{About, Change, Found, Health, Line, Subject};
use flannel_core::mac::MacAddr;
use flannel_core::peer::Peer;
use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::backend::udp::{SharedProxy, UdpCounters};
use crate::bpf::{Datapath, PeerCounters, XdpStatus};
use crate::firewall::packet_rules::Mode;
use crate::record::Record;

/// The loaded data path, if there is one: shared with the control socket, which
/// reads its counters.
pub type SharedDatapath = Arc<Mutex<Option<Box<dyn Datapath>>>>;

/// Which data path carries the packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DatapathStatus {
    /// `ebpf`, `kernel` or `udp proxy`.
    pub mode: &'static str,
    /// Why it is the kernel path, if it was not asked for.
    pub reason: Option<String>,
    /// `tcx` or `clsact`.
    pub attach: Option<String>,
    /// TCP flows are confirmed too.
    pub tcp: bool,
    /// The underlay's XDP program.
    pub xdp: XdpStatus,
    /// The flow table; `null` on the kernel path.
    pub flows: Option<FlowTableStatus>,
    /// What the fast path carries, and why it does not carry the rest.
    #[serde(flatten)]
    pub envelope: Report,
}

/// Room for flows, and how fast it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FlowTableStatus {
    /// Entries that the table holds.
    pub size: u32,
    /// New entries within `--fast-path-window`, lately. More than `size`: flows
    /// are evicted before their time.
    pub new_per_window: Option<u64>,
}

/// Rules that judge each packet and not the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PacketRulesStatus {
    /// `--packet-rules`.
    pub mode: Mode,
    /// The node's rules are known; until then nothing takes the fast path.
    pub read: bool,
    /// What stays on the kernel path because of them.
    pub exempt: Vec<String>,
    /// These rules, and those that log or offload what they see.
    pub rules: Vec<RuleLine>,
    /// Rules that are not in the list.
    pub more: usize,
}

/// Our lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Our subnet.
    pub subnet: Ipv4Network,
    /// What peers send to.
    pub public_ip: std::net::Ipv4Addr,
    /// `None` for a reservation.
    pub expires: Option<SystemTime>,
}

/// The overlay's device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// `flannel.<VNI>`, or `flannel0`.
    pub name: String,
    /// MAC of our VTEP; `null` with the backends that have none.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// Everything that the loop tells.
#[derive(Debug, Default)]
pub struct State {
    /// Lease held, data plane programmed, files written: pods have a network.
    pub ready: bool,
    /// Our lease was deleted, ran out or was taken, and is not ours again yet.
    pub lease_lost: bool,
    /// Present complaints.
    pub health: Health,
    /// The data path.
    pub datapath: DatapathStatus,
    /// The firewall in use and why it is this one, once chosen.
    pub firewall: Option<String>,
    /// Rules that judge each packet; `None` where there is no fast path.
    pub packet_rules: Option<PacketRulesStatus>,
    /// Our lease, once acquired.
    pub lease: Option<LeaseStatus>,
    /// The device, once created.
    pub device: Option<DeviceStatus>,
    /// The store is being followed.
    pub connected: bool,
    /// Why it is not.
    pub store_detail: Option<String>,
    /// The backend's type; empty before the first pass.
    pub backend: &'static str,
    /// The udp backend's proxy.
    pub proxy: SharedProxy,
    /// By which of etcd's APIs, and why if it was not asked for.
    pub store_api: Option<String>,
    /// Programmed peers.
    pub peers: Arc<BTreeMap<Ipv4Network, Peer>>,
    /// Those of them that are reached without encapsulation.
    pub direct: Arc<BTreeSet<Ipv4Network>>,
    /// Those of them that the programs' tables have no place for.
    pub unmapped: Arc<BTreeSet<Ipv4Network>>,
    /// Leases and keys that are left out, with the reason.
    pub ignored: Vec<String>,
    /// What the loop did, for `/metrics`.
    pub record: Record,
}

impl State {
    /// Whether pods have a network: without subnet.env none can be made, and
    /// without a lease peers may send elsewhere.
    pub fn is_ready(&self) -> bool {
        self.ready && !self.lease_lost && self.health.reason(Subject::SubnetFile).is_none()
    }

    /// All complaints as they are now.
    pub fn complaints(&self) -> Vec<Line> {
        self.health.lines(Instant::now())
    }

    /// Takes in how a subject is now, and logs what is new of it.
    pub fn report(&mut self, subject: Subject, found: impl Into<Found>) {
        for change in self.health.report(subject, found, Instant::now()) {
            match change {
                Change::Began(what, reason) if what.subject.is_grave() => {
                    tracing::error!(%what, reason, "not well");
                }
                Change::Began(what, reason) => tracing::warn!(%what, reason, "not well"),
                Change::Differs(what, reason) => tracing::warn!(%what, reason, "still not well"),
                Change::Unlisted(what, reason) => {
                    tracing::debug!(%what, reason, "not well; not listed, too many complaints");
                }
                Change::Ended(what) => tracing::info!(%what, "well again"),
            }
        }
    }
}

/// [`State`], shared.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<State>>);

impl Shared {
    /// The state; a short lock.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Answer to `status`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Version of the agent.
    pub version: &'static str,
    /// Its process.
    pub pid: u32,
    /// The data path.
    pub datapath: DatapathStatus,
    /// The backend's type; empty before the first pass.
    pub backend: &'static str,
    /// The firewall in use and why it is this one.
    pub firewall: Option<String>,
    /// Rules that judge each packet; `null` where there is no fast path.
    pub packet_rules: Option<PacketRulesStatus>,
    /// Our lease.
    pub lease: Option<LeaseLine>,
    /// The device.
    pub device: Option<DeviceStatus>,
    /// The store.
    pub store: StoreLine,
    /// Number of peers.
    pub peers: usize,
    /// Packets by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Present complaints.
    pub health: Vec<Line>,
    /// Leases and keys that are left out.
    pub ignored: Vec<String>,
}

/// Our lease in [`Status`].
#[derive(Debug, Serialize)]
pub struct LeaseLine {
    /// Our subnet.
    pub subnet: Ipv4Network,
    /// What peers send to.
    pub public_ip: std::net::Ipv4Addr,
    /// Seconds left; `null` for a reservation.
    pub expires_in_seconds: Option<u64>,
}

/// The store in [`Status`].
#[derive(Debug, Serialize)]
pub struct StoreLine {
    /// It is being followed.
    pub connected: bool,
    /// Why it is not.
    pub detail: Option<String>,
    /// By which of etcd's APIs, and why if it was not asked for.
    pub api: Option<String>,
}

/// One line of the answer to `peers`.
#[derive(Debug, Serialize)]
pub struct PeerLine {
    /// The peer's subnet.
    pub subnet: Ipv4Network,
    /// Its underlay address.
    pub public_ip: std::net::Ipv4Addr,
    /// MAC of its VTEP; `null` with the backends that have none.
    pub vtep_mac: Option<MacAddr>,
    /// `direct` (a route through the underlay), or the backend's type.
    pub path: &'static str,
    /// `ok`, or what is wrong.
    pub state: String,
    /// Packets and bytes; zero on the kernel path.
    #[serde(flatten)]
    pub counters: Counters,
}

/// Packets and bytes of a peer, as the backend counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Counters {
    /// By path, of the programs.
    Programs(PeerCounters),
    /// Of the udp backend's proxy.
    Udp(UdpCounters),
}

/// Builds the answer to `status`.
pub fn status(shared: &Shared, datapath: &SharedDatapath) -> Status {
    let outcomes = lock(datapath).as_ref().map(|datapath| datapath.outcomes()).transpose();
    let mut state = shared.lock();
    state.report(Subject::Counters, outcomes.as_ref());
    let outcomes = outcomes.ok().flatten().unwrap_or_default();
    let outcomes = state.proxy.outcomes().unwrap_or(outcomes);
    Status {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        datapath: state.datapath.clone(),
        backend: state.backend,
        firewall: state.firewall.clone(),
        packet_rules: state.packet_rules.clone(),
        lease: state.lease.as_ref().map(|lease| LeaseLine {
            subnet: lease.subnet,
            public_ip: lease.public_ip,
            expires_in_seconds: lease.expires.map(|expires| {
                expires.duration_since(SystemTime::now()).unwrap_or_default().as_secs()
            }),
        }),
        device: state.device.clone(),
        store: StoreLine {
            connected: state.connected,
            detail: state.store_detail.clone(),
            api: state.store_api.clone(),
        },
        peers: state.peers.len(),
        outcomes,
        health: state.complaints(),
        ignored: state.ignored.clone(),
    }
}

/// Builds the answer to `peers`.
pub fn peers(shared: &Shared, datapath: &SharedDatapath) -> Vec<PeerLine> {
    let meter = lock(datapath).as_ref().map(|datapath| datapath.meter());
    let counters = meter.and_then(|meter| meter.peer_counters().ok()).unwrap_or_default();
    let state = shared.lock();
    let through_proxy = state.proxy.peer_counters();
    state
        .peers
        .values()
        .map(|peer| PeerLine {
            subnet: peer.subnet,
            public_ip: peer.public_ip,
            vtep_mac: Some(peer.vtep_mac).filter(|mac| *mac != MacAddr::default()),
            path: if state.direct.contains(&peer.subnet) { "direct" } else { state.backend },
            state: state
                .health
                .reason(About::peer(peer.subnet))
                .unwrap_or(match state.unmapped.contains(&peer.subnet) {
                    true => "ok, by the kernel's path only: the programs' tables are full",
                    false => "ok",
                })
                .to_owned(),
            counters: match &through_proxy {
                Some(all) => Counters::Udp(all.get(&peer.subnet).copied().unwrap_or_default()),
                None => Counters::Programs(counters.get(&peer.subnet).copied().unwrap_or_default()),
            },
        })
        .collect()
}
