//! One pass makes the node what it should be: desired -> observed -> plan ->
//! apply -> hooks -> firewall. Start, a new peer, a lost device and the slow
//! timer are the same pass with different things to look at.

mod attendance;
pub mod conntrack;
mod devices;
mod direct;
mod effects;
pub mod packet_rules;
mod retry;
mod strangers;
#[cfg(test)]
mod tests;
mod turnover;
mod udp;
mod underlay;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flannel_core::config::Backend;
use flannel_core::desired;
use flannel_core::desired::{Desired, Node, routes_directly};
use flannel_core::firewall::Rules;
use flannel_core::health::{Found, Part, Subject};
use flannel_core::link::Link;
use flannel_core::mac::MacAddr;
use flannel_core::observed::Observed;
use flannel_core::op::Op;
use flannel_core::peer::Peer;
use flannel_core::plan;
use flannel_core::underlay::{Underlay, Wish};
use ipnetwork::Ipv4Network;
use regex::Regex;
use tokio::time::Instant;

use self::attendance::Attendance;
use self::direct::Paths;
use self::packet_rules::PacketRules;
use self::retry::{Retries, Unfinished};
use self::turnover::Turnover;
use crate::backend::udp::{self as udp_backend, Overlay};
use crate::bpf::{FastPath, VerifySource};
use crate::firewall::Firewall;
use crate::firewall::packet_rules::Mode;
use crate::kernel::sysctl::Sysctl;
use crate::kernel::{Kernel, KernelEvent};
use crate::status::{DeviceStatus, Shared, SharedDatapath, lock};
use crate::watch::Watch;

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
pub struct Settings {
    /// Which interface is to be the underlay.
    pub underlay: Wish,
    /// `--ip-masq`.
    pub masquerade: bool,
    /// `--iptables-forward-rules`.
    pub forward: bool,
    /// Not `--ip-masq-fully-random-disable`.
    pub fully_random: bool,
    /// `--ip-blackhole-route`.
    pub blackhole: bool,
    /// `--fast-path`.
    pub fast_path: FastPath,
    /// `--flow-table-size`.
    pub flow_table: u32,
    /// `--fast-path-window`.
    pub window: Duration,
    /// `--packet-rules`.
    pub packet_rules: Mode,
    /// `--verify-source`.
    pub verify_source: VerifySource,
    /// `--attach-iface`.
    pub attach_iface: Option<Regex>,
    /// Take over the direct routes that are there without a mark: nothing of
    /// ours was on this node before.
    pub take_over: bool,
}

/// What a pass has to look at anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wake {
    /// The device and all that hangs on it.
    pub look: bool,
    /// Links: underlay and veths.
    pub links: bool,
    /// The ways to the peers' PublicIPs.
    pub paths: bool,
    /// The kernel's decisions may have changed: end all confirmations.
    pub generation: bool,
    /// The firewall rules.
    pub firewall: bool,
}

impl Wake {
    /// Look at everything; confirmations stay.
    pub const ALL: Self =
        Self { look: true, links: true, paths: true, generation: false, firewall: true };

    /// Both.
    pub fn merge(&mut self, other: Self) {
        self.look |= other.look;
        self.links |= other.links;
        self.paths |= other.paths;
        self.generation |= other.generation;
        self.firewall |= other.firewall;
    }

    /// Whether there is nothing to look at.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// What a pass has changed that others have to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The underlay's address or MTU is another now.
    pub underlay_changed: bool,
    /// When the next failed operation is due.
    pub retry_at: Option<Instant>,
}

/// Owns the effects.
pub struct Reconciler<K, F> {
    kernel: K,
    firewall: F,
    datapath: SharedDatapath,
    shared: Shared,
    watch: Watch,
    sysctl: Sysctl,
    settings: Settings,
    identity: Identity,
    device: Option<String>,
    paths: Paths,
    udp: Overlay,
    links: Vec<Link>,
    /// Since when the underlay cannot be used.
    underlay_away: Option<Instant>,
    /// When it has been waited for long enough.
    underlay_due: Option<Instant>,
    /// Of those that may be a pod's, the ones by which routes lead elsewhere.
    uplinks: BTreeSet<u32>,
    /// What is there, as last seen and changed by us since.
    observed: Option<Observed>,
    /// `observed` may be wrong: something failed, or could not be read.
    stale: bool,
    /// What is desired is what the last pass left: operations are repairs.
    settled: bool,
    /// Index of the device, as read back.
    overlay: Option<u32>,
    /// Peers that are reached without a tunnel.
    direct: BTreeSet<Ipv4Network>,
    retries: Retries,
    unfinished: Unfinished,
    /// The blackhole route is what it should be.
    sealed: bool,
    /// MTU of the device as it should be; 0 before the first pass.
    mtu: u32,
    turnover: Turnover,
    attendance: Attendance,
    packet_rules: PacketRules,
    /// Remembered for `cleanup`: settings of conntrack as they were before us.
    sysctls_before: BTreeMap<String, String>,
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// A reconciler that has not looked at anything yet.
    pub fn new(
        kernel: K,
        firewall: F,
        datapath: SharedDatapath,
        shared: Shared,
        sysctl: Sysctl,
        settings: Settings,
        identity: Identity,
    ) -> Self {
        let device = identity.backend.vxlan_device();
        let turnover = Turnover::new(settings.flow_table, settings.window);
        let watch =
            Watch::new(kernel.inspector(), shared.clone(), identity.network, settings.window);
        Self {
            kernel,
            firewall,
            datapath,
            shared,
            watch,
            sysctl,
            settings,
            identity,
            device,
            paths: Paths::default(),
            udp: Overlay::default(),
            links: Vec::new(),
            underlay_away: None,
            underlay_due: None,
            uplinks: BTreeSet::new(),
            observed: None,
            stale: false,
            settled: false,
            overlay: None,
            direct: BTreeSet::new(),
            retries: Retries::default(),
            unfinished: Unfinished::default(),
            sealed: false,
            mtu: 0,
            turnover,
            attendance: Attendance::default(),
            packet_rules: PacketRules::default(),
            sysctls_before: BTreeMap::new(),
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
    pub fn device(&self) -> Option<&str> {
        match &self.identity.backend {
            Backend::Udp(_) => Some(udp_backend::DEVICE),
            _ => self.device.as_deref(),
        }
    }

    /// MTU for pods in bytes, once known.
    pub fn mtu(&self) -> Option<u32> {
        Some(self.mtu).filter(|mtu| *mtu != 0)
    }

    /// Settings of conntrack that we have changed, with the values before.
    pub fn sysctls_before(&self) -> &BTreeMap<String, String> {
        &self.sysctls_before
    }

    /// What a kernel event asks to look at; nothing for those that do not
    /// matter, and those that the watch has answered.
    pub fn wake_for(&self, event: KernelEvent) -> Wake {
        let overlay = self.overlay.or(self.udp.ifindex());
        // Their routes hang on other people's links, and the ways to the peers
        // on other people's routes.
        let direct = routes_directly(&self.identity.backend);
        match event {
            // A pass that finds its own work done changes nothing, so the
            // events of our own changes settle.
            KernelEvent::Link { ifindex } => Wake {
                look: direct || overlay.is_none_or(|overlay| overlay == ifindex),
                links: true,
                paths: direct,
                ..Wake::default()
            },
            KernelEvent::Address { ifindex } => Wake {
                look: direct || overlay == Some(ifindex),
                links: true,
                paths: direct,
                ..Wake::default()
            },
            KernelEvent::Route { ifindex } => Wake {
                look: direct || ifindex == 0 || overlay == Some(ifindex),
                links: self.is_doubtful(ifindex),
                paths: direct,
                ..Wake::default()
            },
            KernelEvent::Rule => Wake { paths: direct, ..Wake::default() },
            KernelEvent::Neighbour { ifindex } => {
                Wake { look: overlay == Some(ifindex), ..Wake::default() }
            }
            KernelEvent::Ruleset => {
                self.packet_rules.notice();
                Wake { firewall: true, ..Wake::default() }
            }
            KernelEvent::Overrun => {
                self.packet_rules.notice();
                Wake { generation: true, ..Wake::ALL }
            }
            KernelEvent::Tc { .. }
            | KernelEvent::Decision
            | KernelEvent::IpsecPolicy
            | KernelEvent::Deaf(_)
            | KernelEvent::Hears(_) => Wake::default(),
        }
    }

    /// Makes the node what these peers (oldest lease first) and the underlay
    /// demand.
    pub async fn pass(&mut self, peers: &[Peer], mut wake: Wake) -> Outcome {
        let mut outcome = Outcome::default();
        wake.merge(self.unfinished.due());
        let waited = self.underlay_due.is_some_and(|due| due <= Instant::now());
        if wake.links || waited || self.links.is_empty() {
            self.look_at_links().await;
            outcome.underlay_changed = self.follow_underlay().await;
        }
        if routes_directly(&self.identity.backend) {
            self.look_at_paths(peers, wake.paths).await;
        }
        outcome.retry_at = self.underlay_due;
        let Some(desired) = self.desire(peers) else { return outcome };
        self.settled = self.is_settled(&desired);
        // Without the flag there is only an earlier run's route to remove.
        let seal = !self.sealed || (self.settings.blackhole && wake.look);
        let mut changed = false;
        let look = wake.look || self.observed.is_none();
        // A new device has to be looked at again: its index is new, and what
        // hung on the old one has gone with it.
        for _ in 0..3 {
            if wake.look || self.stale || self.observed.is_none() {
                self.look(&desired).await;
            }
            wake.look = false;
            let Some(observed) = self.observed.as_ref().filter(|_| !self.stale) else { break };
            let mut ops = plan::diff(&desired, observed);
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
            if !self.carry_out(&ops).await {
                break;
            }
            wake.look = true;
        }
        if seal {
            self.seal().await;
        }
        self.retries.report(&self.shared);
        self.serve_udp(&desired, look).await;
        self.mtu = desired.mtu;
        self.direct.clone_from(&desired.direct);
        self.tell_peers(&desired);
        self.serve_pods();
        self.attend();
        if (changed || wake.generation)
            && let Some(datapath) = lock(&self.datapath).as_mut()
        {
            let raised = datapath.raise_generation();
            self.unfinished.wake.generation = raised.is_err();
            self.shared.report(Subject::Generation, raised);
        }
        if wake.firewall {
            self.guard().await;
        }
        self.publish(&desired);
        outcome.retry_at = earliest(self.retries.next_due(), self.unfinished.schedule());
        outcome.retry_at = earliest(outcome.retry_at, self.underlay_due);
        outcome
    }

    fn desire(&mut self, peers: &[Peer]) -> Option<Desired> {
        let node = Node {
            subnet: self.identity.subnet,
            network: self.identity.network,
            vtep_mac: self.identity.vtep_mac,
            underlay: &self.identity.underlay,
            backend: &self.identity.backend,
            paths: self.paths.known(),
        };
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
        let rejected = rejected
            .iter()
            .map(|rejected| (Part::Subnet(rejected.peer.subnet), rejected.reason.to_string()));
        state.report(Subject::Lease, rejected.collect::<Found>());
        Some(desired)
    }

    async fn look_at_links(&mut self) {
        let links = self.kernel.links().await;
        self.unfinished.wake.links = links.is_err();
        self.shared.report(Subject::Links, links.as_ref());
        if let Ok(links) = links {
            self.links = links;
            self.look_for_uplinks().await;
        }
    }

    async fn look(&mut self, desired: &Desired) {
        let maps = match lock(&self.datapath).as_ref().map(|datapath| datapath.peers()) {
            None => Ok(None),
            Some(Ok(peers)) => Ok(Some(peers)),
            Some(Err(error)) => Err(error.to_string()),
        };
        let observed = match (self.look_at_kernel(desired).await, maps) {
            (Ok(observed), Ok(maps)) => Ok(Observed { maps, ..observed }),
            (Err(error), _) => Err(error.to_string()),
            (_, Err(reason)) => Err(reason),
        };
        self.shared.report(Subject::Observation, observed.as_ref());
        self.stale = observed.is_err();
        self.attendance.looked(observed.is_ok());
        self.unfinished.wake.look = self.stale;
        if let Ok(observed) = observed {
            let device = observed.device.as_ref().filter(|device| device.vxlan.is_some());
            self.overlay = device.map(|device| device.ifindex);
            self.observed = Some(observed);
        }
    }

    async fn guard(&mut self) {
        // alloc gives out the subnet and leaves the rest to others.
        if self.identity.backend == Backend::Alloc && !self.settings.masquerade {
            return;
        }
        let rules = Rules {
            network: self.identity.network,
            subnet: self.identity.subnet,
            masquerade: self.settings.masquerade,
            forward: self.settings.forward,
            fully_random: self.settings.fully_random,
            vxlan_port: match &self.identity.backend {
                Backend::Vxlan(vxlan) => vxlan.port,
                Backend::Udp(udp) => udp.port,
                Backend::HostGw | Backend::Alloc => 0,
            },
        };
        let ensured = self.firewall.ensure(&rules).await;
        self.unfinished.wake.firewall = ensured.is_err();
        let mut state = self.shared.lock();
        state.report(Subject::Firewall, ensured);
        let forwarding = match self.sysctl.ip_forward() {
            Ok(true) => None,
            Ok(false) => Some(
                "net.ipv4.ip_forward is 0: packets between pods and peers are not forwarded"
                    .to_owned(),
            ),
            Err(error) => Some(error.to_string()),
        };
        state.report(Subject::Forwarding, forwarding);
    }

    /// Whether the last pass made this, and nothing of it failed.
    fn is_settled(&self, desired: &Desired) -> bool {
        let state = self.shared.lock();
        !state.backend.is_empty()
            && self.retries.next_due().is_none()
            && *state.peers == desired.peers
            && *state.direct == desired.direct
            && state.device.as_ref().is_none_or(|device| device.mtu == desired.mtu)
    }

    fn publish(&self, desired: &Desired) {
        let mut state = self.shared.lock();
        if *state.peers != desired.peers {
            state.peers = Arc::new(desired.peers.clone());
        }
        if *state.direct != desired.direct {
            state.direct = Arc::new(desired.direct.clone());
        }
        state.backend = self.identity.backend.name();
        state.device = self.device().map(|name| DeviceStatus {
            name: name.to_owned(),
            mac: desired.device.as_ref().map(|device| device.mac),
            mtu: desired.mtu,
        });
    }
}

/// Whether the operation is about the device itself.
fn is_device(op: &Op) -> bool {
    matches!(
        op,
        Op::DeleteDevice { .. }
            | Op::CreateDevice(_)
            | Op::SetMac(_)
            | Op::SetMtu(_)
            | Op::SetUp
            | Op::AddAddress(_)
            | Op::RemoveAddress(_)
    )
}

/// Whether entries on the device cannot be made before this has worked.
fn is_ground(op: &Op) -> bool {
    matches!(op, Op::DeleteDevice { .. } | Op::CreateDevice(_) | Op::SetUp)
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
