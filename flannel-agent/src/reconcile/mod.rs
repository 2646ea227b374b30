//! One pass makes the node what it should be: desired -> observed -> plan ->
//! apply -> hooks -> firewall. Start, a new peer, a lost device and the slow
//! timer are the same pass with different things to look at.

mod attendance;
mod blackhole;
mod carry_out;
pub mod conntrack;
mod devices;
mod direct;
mod guard;
mod hooks;
mod look;
pub mod packet_rules;
mod retry;
mod revise;
mod strangers;
#[cfg(test)]
mod tests;
mod traces;
mod turnover;
mod udp;
mod underlay;
mod wake;

use std::sync::Arc;

use flannel_core::backend::VxlanConfig;
use flannel_core::checksum::TunnelChecksum;
use flannel_core::config::Backend;
use flannel_core::desired;
use flannel_core::desired::roster::Roster;
use flannel_core::desired::{Desired, Node};
use flannel_core::events::PeerChanges;
use flannel_core::health::{Found, Part, Subject};
use flannel_core::mac::MacAddr;
use flannel_core::peer::Peer;
use flannel_core::plan;
use flannel_core::schedule::{Wake, earliest};
use flannel_core::state::Traces;
use flannel_core::underlay::{Underlay, Wish};
use ipnetwork::Ipv4Network;
use tokio::time::Instant;

use self::attendance::AttendanceSigns;
use self::carry_out::is_ground;
use self::conntrack::Conntrack;
use self::devices::Links;
use self::direct::NextHops;
use self::guard::Guard;
pub use self::guard::Guarded;
use self::look::Seen;
use self::packet_rules::PacketRules;
use self::retry::{Retries, Unfinished};
use self::turnover::Turnover;
use self::underlay::Absence;
use crate::backend::udp::UdpBackend;
use crate::bpf::{FastPathOptions, ProgramOptions};
use crate::firewall::{Firewall, RuleOptions};
use crate::kernel::Kernel;
use crate::kernel::sysctl::Sysctl;
use crate::status::{Shared, SharedDatapath};
use crate::task::TaskEnded;
use crate::watch::Watch;
use flannel_core::status::DeviceStatus;

/// What this node is, as leases and config say.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Our subnet.
    pub subnet: Ipv4Network,
    /// The overlay network.
    pub network: Ipv4Network,
    /// Our VTEP's MAC; kept for later with the backends that have none.
    pub vtep_mac: MacAddr,
    /// The external interface.
    pub underlay: Underlay,
    /// The backend with its settings.
    pub backend: Backend,
}

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct LoopOptions {
    /// Which interface is to be the underlay.
    pub underlay: Wish,
    /// Which rules there are.
    pub rules: RuleOptions,
    /// `--ip-blackhole-route`.
    pub blackhole: bool,
    /// When packets take the fast path.
    pub fast_path: FastPathOptions,
    /// How the programs are made, and where they hang.
    pub programs: ProgramOptions,
    /// `--tunnel-checksum`.
    pub tunnel_checksum: TunnelChecksum,
}

/// What a pass has changed that others have to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassResult {
    /// The underlay's address or MTU is another now.
    pub underlay_changed: bool,
    /// When the next failed operation is due.
    pub retry_at: Option<Instant>,
    /// When confirmations have to be ended: that was done just now.
    pub raise_at: Option<Instant>,
}

/// News of what is done beside the passes.
#[derive(Debug)]
pub enum News {
    /// A look at the firewall has ended: [`Reconciler::take_guarded`].
    Firewall(Guarded),
    /// Something else is known of rules that judge each packet:
    /// [`Reconciler::check_hooks`].
    PacketRules,
    /// A worker of the udp backend's proxy has ended: a pass looks at it.
    UdpProxy,
}

/// What the last pass wanted.
#[derive(Debug, Default)]
struct Wanted {
    /// Device, peers and routes; `None` before the first pass.
    desired: Option<Arc<Desired>>,
    /// Its peers by MAC, if a few changes of leases may be taken in without a pass.
    roster: Option<Roster>,
}

/// Brings the node from what is seen to what is wanted, by its effects. What has state
/// of its own is a type in a file of its own.
pub struct Reconciler<K, F> {
    // What it acts on.
    /// Links, routes, neighbour and FDB entries.
    kernel: K,
    /// The firewall's rules, which a task of its own keeps.
    guard: Guard<F>,
    /// Maps and hooks of the programs; empty where there are none.
    datapath: SharedDatapath,
    sysctl: Sysctl,
    /// conntrack's settings.
    conntrack: Conntrack,
    /// Device and proxy of the udp backend.
    udp: UdpBackend,

    // Whom it tells.
    /// Status, health and events.
    shared: Shared,
    /// Judges the devices around the programs.
    watch: Watch,

    // What the node should be.
    settings: LoopOptions,
    identity: Identity,
    wanted: Wanted,

    // What the node is.
    seen: Seen,
    links: Links,
    /// Of the peers that may be reached without a tunnel.
    next_hops: NextHops,
    /// How long the underlay is away, and what takes its place.
    absence: Absence,
    packet_rules: PacketRules,
    /// Of the flow table.
    turnover: Turnover,

    // What is left to do.
    /// What earlier runs left, and what this one has changed; without sysctls.
    traces: Traces,
    retries: Retries,
    unfinished: Unfinished,
    /// Hooks were left for the next look.
    hooks_left: bool,
    /// The data path was opened after the last pass.
    opened: bool,
    /// The blackhole route is what it should be.
    sealed: bool,
    /// When confirmations were ended last.
    raised: Option<Instant>,
    attendance: AttendanceSigns,
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// A reconciler that has not looked at anything yet.
    pub fn new(
        kernel: K,
        firewall: F,
        datapath: SharedDatapath,
        shared: Shared,
        sysctl: Sysctl,
        settings: LoopOptions,
        identity: Identity,
    ) -> Self {
        let window = settings.fast_path.window;
        let turnover = Turnover::new(settings.programs.flow_table_size, window);
        let watch = Watch::new(kernel.inspector(), shared.clone(), identity.network, window);
        if identity.backend.facts().vxlan().is_some() {
            watch.set_checksum(settings.tunnel_checksum);
        }
        Self {
            kernel,
            guard: Guard::new(firewall),
            datapath,
            sysctl,
            conntrack: Conntrack::default(),
            udp: UdpBackend::default(),
            shared,
            watch,
            settings,
            identity,
            wanted: Wanted::default(),
            seen: Seen::default(),
            links: Links::default(),
            next_hops: NextHops::default(),
            absence: Absence::default(),
            packet_rules: PacketRules::default(),
            turnover,
            traces: Traces::default(),
            retries: Retries::default(),
            unfinished: Unfinished::default(),
            hooks_left: false,
            opened: false,
            sealed: false,
            raised: None,
            attendance: AttendanceSigns::default(),
        }
    }

    /// What this node is now.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the underlay is chosen by.
    pub fn wish(&self) -> &Wish {
        &self.settings.underlay
    }

    /// What looks at the devices around the programs.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Name of the overlay's device, if the backend has one.
    pub fn device(&self) -> Option<String> {
        self.identity.backend.facts().device()
    }

    /// Name of the VXLAN device, if there is one.
    fn tunnel(&self) -> Option<String> {
        self.identity.backend.facts().vxlan().map(VxlanConfig::device_name)
    }

    /// MTU for pods in bytes, once known.
    pub fn mtu(&self) -> Option<u32> {
        self.wanted.desired.as_ref().map(|desired| desired.mtu)
    }

    /// Makes the node what these peers (oldest lease first) and the underlay
    /// demand.
    pub async fn pass(&mut self, peers: &[Peer], mut wake: Wake) -> PassResult {
        let mut outcome = PassResult::default();
        wake.merge(self.unfinished.due());
        self.seen.unordered |= wake.order;
        if wake.firewall {
            self.ask_for_rules();
        }
        let waited = self.absence.due().is_some_and(|due| due <= Instant::now());
        if wake.links || waited || self.links.all.is_empty() {
            self.look_at_links().await;
            outcome.underlay_changed = self.follow_underlay().await;
        }
        if self.identity.backend.facts().reaches().directly() {
            self.look_at_next_hops(peers, wake.next_hops).await;
        }
        outcome.retry_at = self.absence.due();
        let Some(desired) = self.desire(peers).map(Arc::new) else {
            self.put_off(wake);
            return outcome;
        };
        // What has to be changed then is a repair.
        let settled = self.is_settled(&desired) && !std::mem::take(&mut self.opened);
        // Without the flag there is only an earlier run's route to remove.
        let seal = !self.sealed || (self.settings.blackhole && wake.look);
        let look = wake.look || self.seen.observed.is_none();
        let mut changed = self.converge(&desired, wake.look, settled).await;
        if seal {
            changed |= self.seal().await;
        }
        self.settle_traces();
        self.retries.report(&self.shared);
        self.serve_udp(&desired, look).await;
        let had_direct = self.has_direct();
        self.wanted.desired = Some(Arc::clone(&desired));
        if self.has_direct() != had_direct {
            self.check_forwarding().await;
        }
        self.tell_peers(&desired);
        self.serve_pods();
        self.attend();
        if changed || wake.generation {
            self.raise();
        }
        self.publish(&desired);
        self.tell_ways();
        outcome.retry_at = earliest(self.retries.next_due(), self.unfinished.schedule());
        outcome.retry_at = earliest(outcome.retry_at, self.absence.due());
        outcome
    }

    /// Nothing can be desired now: what was asked for is due when something can, and the
    /// programs go on.
    fn put_off(&mut self, wake: Wake) {
        self.seen.stale |= wake.look;
        if wake.generation {
            self.raise();
        }
    }

    /// Makes what is there what is desired, as far as it is due; whether something
    /// had to be changed.
    async fn converge(&mut self, desired: &Desired, mut look: bool, repairs: bool) -> bool {
        let mut changed = false;
        // A new device has to be looked at again: its index is new, and what
        // hung on the old one has gone with it.
        for _ in 0..3 {
            if look || self.seen.stale || self.seen.observed.is_none() {
                self.look(desired).await;
            }
            look = true;
            let Some(observed) = self.seen.observed.as_ref().filter(|_| !self.seen.stale) else {
                break;
            };
            let mut ops = plan::diff(desired, observed);
            self.retries.forget_all_but(&ops);
            // Nothing hangs on a device that cannot be made yet.
            let grounded = ops.iter().all(|op| !is_ground(op) || self.retries.is_due(op));
            ops.retain(|op| {
                self.retries.is_due(op) && (grounded || op.is_maps() || op.is_direct())
            });
            if ops.is_empty() {
                break;
            }
            changed = true;
            if !self.carry_out(&ops, repairs).await {
                break;
            }
        }
        changed
    }

    /// What this node is, as leases are judged by.
    fn node(&self) -> Node<'_> {
        Node {
            subnet: self.identity.subnet,
            network: self.identity.network,
            vtep_mac: self.identity.vtep_mac,
            underlay: &self.identity.underlay,
            addresses: &self.links.addresses,
            backend: &self.identity.backend,
            next_hops: self.next_hops.known(),
            checksum: self.settings.tunnel_checksum.wanted(self.traces.tunnel_checksum),
        }
    }

    fn desire(&mut self, peers: &[Peer]) -> Option<Desired> {
        let node = self.node();
        let desired = desired::desired(node, peers.iter().copied());
        let mut state = self.shared.lock();
        state.report(Subject::Mtu, desired.as_ref());
        let (desired, rejected) = desired.ok()?;
        let underlay = &self.identity.underlay;
        let cut = desired.cut_mtu.map(|mtu| {
            format!(
                "{mtu} in the network config is more than the MTU {} of {}, which counts",
                underlay.mtu, underlay.name
            )
        });
        state.report(Subject::BackendMtu, cut);
        let roster = Roster::of(node, &desired, rejected.is_empty());
        self.wanted.roster = roster;
        let rejected = rejected
            .iter()
            .map(|rejected| (Part::Subnet(rejected.peer.subnet), rejected.reason.to_string()));
        state.report(Subject::Lease, rejected.collect::<Found>());
        Some(desired)
    }

    /// Waits for news of what is done beside the passes. Cancel safe.
    ///
    /// # Errors
    /// The task that reads the node's rules has ended.
    pub async fn told(&mut self) -> Result<News, TaskEnded> {
        tokio::select! {
            guarded = self.guard.ended() => Ok(News::Firewall(guarded)),
            changed = self.packet_rules.changed() => changed.map(|()| News::PacketRules),
            () = self.udp.ended() => Ok(News::UdpProxy),
        }
    }

    /// Whether the last pass made this, and nothing of it failed.
    fn is_settled(&self, desired: &Desired) -> bool {
        let state = self.shared.lock();
        state.backend.is_some()
            && self.retries.next_due().is_none()
            && *state.peers == desired.peers
            && *state.direct == desired.direct
            && state.device.as_ref().is_none_or(|device| device.mtu == desired.mtu)
    }

    fn publish(&self, desired: &Desired) {
        let mut state = self.shared.lock();
        if *state.peers != desired.peers {
            let changes = PeerChanges::between(&state.peers, &desired.peers);
            state.note_all(changes.events());
            state.peers = Arc::new(desired.peers.clone());
            self.watch.peers_changed();
        }
        if *state.direct != desired.direct {
            state.direct = Arc::new(desired.direct.clone());
            self.watch.peers_changed();
        }
        let failed = |peer: &Peer| Some((peer.subnet, self.retries.reason_of(peer)?.to_owned()));
        state.failed = desired.peers.values().filter_map(failed).collect();
        state.backend = Some(self.identity.backend.kind());
        state.device = self.device().map(|name| DeviceStatus {
            name,
            mac: desired.device.as_ref().map(|device| device.mac),
            mtu: desired.mtu,
            checksum: desired.device.as_ref().map(|_| self.settings.tunnel_checksum),
        });
    }
}
