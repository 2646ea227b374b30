//! Looks at the devices around the programs, and tells the programs what follows.
//!
//! A [`Watch`] is shared: the reconciler settles it with each pass and each look
//! after the hooks, and a task of its own ([`start`]) answers the kernel's events
//! without waiting for a pass, or for the hooks.

mod arrivals;
mod detours;
mod limits;
mod said;
mod task;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flannel_core::checksum::TunnelChecksum;
use flannel_core::envelope::{
    DeviceFacts, EnvelopeReport, IpsecPolicy, Judgement, NetdevChain, Scene, Seen, judge,
};
use flannel_core::envelope::{Inlet, PodVeth};
use flannel_core::firewall::packet_rules::outer::OuterRule;
use flannel_core::firewall::packet_rules::ranges::Addresses;
use flannel_core::health::Subject;
use flannel_core::limits::LimitedRoutes;
use flannel_core::schedule::HOOKS_REST;
use ipnetwork::Ipv4Network;
use tokio::time::Instant;

use self::arrivals::Arrivals;
use self::detours::Detours;
pub use self::task::start;
use crate::bpf::{Datapath, Teller};
use crate::kernel::Inspect;
use crate::kernel::events::Scope;
use crate::status::Shared;

/// What is seen and judged, for the reconciler and the task.
#[derive(Clone)]
pub struct Watch {
    shared: Shared,
    scope: Scope,
    /// The overlay network.
    network: Ipv4Network,
    state: Arc<Mutex<State>>,
    /// What leads elsewhere what pods send to peers.
    detours: Arc<Detours>,
    /// For the generation alone: it waits for no look.
    teller: Arc<Mutex<Option<Box<dyn Teller>>>>,
}

struct State {
    inspector: Box<dyn Inspect>,
    /// The programs, once there are some.
    teller: Option<Box<dyn Teller>>,
    /// When the programs on all devices were read last.
    programs_read: Option<Instant>,
    scene: Scene,
    seen: Seen,
    judgement: Judgement,
    arrivals: Arrivals,
    /// Routing rules were read.
    rules_known: bool,
    /// Routes with limits of their own, once they were read.
    limited: Option<LimitedRoutes>,
    /// All IPsec policies on what the node sends.
    policies: Vec<IpsecPolicy>,
    /// The tunnel's port; 0: there is no tunnel.
    port: u16,
    /// The fast path is asked for: that it carries nothing is worth a complaint.
    wanted: bool,
}

/// Where programs have to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The pods' veths.
    pub veths: Vec<PodVeth>,
    /// Devices beside the underlay by which packets of the tunnel may come.
    pub inlets: Vec<Inlet>,
    /// New veths were left for the next time.
    pub unfinished: bool,
}

/// New veths that are looked at before the turn's end is looked for.
const AT_ONCE: usize = 8;

impl Watch {
    /// A watch that has not looked at anything yet. Decisions are repeated for
    /// `window` at most.
    pub fn new(
        inspector: Box<dyn Inspect>,
        shared: Shared,
        network: Ipv4Network,
        window: Duration,
    ) -> Self {
        let scope = Scope::default();
        scope.set_network(network, window);
        let state = State {
            inspector,
            teller: None,
            programs_read: None,
            scene: Scene::default(),
            seen: Seen::default(),
            judgement: Judgement::default(),
            arrivals: Arrivals::default(),
            rules_known: false,
            limited: None,
            policies: Vec::new(),
            port: 0,
            wanted: false,
        };
        let (state, teller) = (Arc::new(Mutex::new(state)), Arc::default());
        Self { shared, scope, network, state, detours: Arc::default(), teller }
    }

    /// What the kernel's events have to be about to matter.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells where the peers are, and how many did not fit into the tables.
    pub fn set_peers(&self, addresses: impl Iterator<Item = Ipv4Addr>, left_out: usize) {
        self.scope.set_peers(addresses);
        let mut state = self.state();
        state.seen.peers_left_out = left_out;
        self.choose_policies(&mut state);
    }

    /// One peer is elsewhere, came or went; all still fit into the tables, and there
    /// are no IPsec policies.
    pub fn change_peer(&self, before: Option<Ipv4Addr>, now: Option<Ipv4Addr>) {
        self.scope.change_peer(before, now);
    }

    /// Tells who makes the checksums of what goes into the tunnel. Before the first
    /// [`Watch::settle`].
    pub fn set_checksum(&self, by: TunnelChecksum) {
        self.state().seen.checksum = by;
    }

    /// Whether there are IPsec policies on what the node sends.
    pub fn has_policies(&self) -> bool {
        !self.state().policies.is_empty()
    }

    /// Tells of the chains of nftables' netdev family, and of the rules about the
    /// tunnel's packets that go out, where they are read.
    pub fn set_rules(&self, chains: Vec<NetdevChain>, outer: Vec<OuterRule>) {
        let mut state = self.state();
        let seen = &mut state.seen;
        if seen.chains != chains || seen.outer_rules != outer {
            (seen.chains, seen.outer_rules) = (chains, outer);
            self.judge_and_tell(&mut state);
        }
    }

    /// Takes the present roles of the devices, looks at those that are new, and
    /// tells the programs what follows. `port`: the tunnel's. `wanted`: it is worth a
    /// complaint if they carry nothing. New veths are looked at for one `turn` only, but
    /// for the first time: what an earlier run told the programs of them is true until then.
    pub fn settle(
        &self,
        scene: Scene,
        port: u16,
        datapath: &dyn Datapath,
        wanted: bool,
        turn: Duration,
    ) -> Settled {
        let mut state = self.state();
        state.wanted = wanted;
        let first = state.teller.is_none();
        if first {
            state.teller = Some(datapath.teller());
            *self.teller.lock().unwrap_or_else(PoisonError::into_inner) = Some(datapath.teller());
        }
        let devices = scene.devices();
        if state.scene != scene {
            self.scope.set_devices(devices.clone());
            state.take(scene);
        }
        let known = state.look_again(&devices);
        let unfinished = state.look_at_new(&devices, (!first).then_some(turn));
        state.read_programs(&known);
        state.port = port;
        if !state.rules_known {
            self.read_rules(&mut state);
        }
        self.settle_routes(&mut state);
        self.choose_policies(&mut state);
        state.look_for_arrivals(datapath);
        self.judge_and_tell(&mut state);
        Settled {
            veths: state.judgement.veths.clone(),
            inlets: state.scene.inlets.iter().skip(1).cloned().collect(),
            unfinished,
        }
    }

    /// Looks at these devices anew, and tells the programs what follows.
    fn look(&self, devices: &BTreeSet<u32>) {
        let mut state = self.state();
        let known = state.scene.devices();
        let devices: BTreeSet<u32> = devices.intersection(&known).copied().collect();
        if devices.is_empty() {
            return;
        }
        state.look_at(&devices);
        self.judge_and_tell(&mut state);
    }

    /// Looks at the other side of pods' veths.
    fn look_into_pods(&self, veths: &BTreeSet<u32>) {
        let mut state = self.state();
        state.look_into_pods(veths);
        self.judge_and_tell(&mut state);
    }

    /// Reads the routing rules anew.
    fn look_at_rules(&self) {
        let mut state = self.state();
        if state.teller.is_some() {
            self.read_rules(&mut state);
            self.judge_and_tell(&mut state);
        }
    }

    fn read_rules(&self, state: &mut State) {
        let read = state.inspector.rules_look_at_marks();
        let policies = state.inspector.ipsec_policies();
        state.rules_known = read.is_ok() && policies.is_ok();
        let reason = read
            .as_ref()
            .map_err(|error| {
                format!("{error}; packets with a firewall mark are left to the kernel")
            })
            .map(drop);
        // What cannot be read may look at marks.
        state.seen.mark_rules = read.unwrap_or(true);
        self.shared.report(Subject::RoutingRules, reason);
        self.shared.report(Subject::Ipsec, policies.as_ref().map(drop));
        // What cannot be read may be there.
        state.policies = policies.unwrap_or_else(|_| vec![IpsecPolicy::anything()]);
        self.choose_policies(state);
    }

    /// Of the IPsec policies those that may be about tunnel packets.
    fn choose_policies(&self, state: &mut State) {
        let has_peer = |addresses: &Addresses| self.scope.has_peer(addresses);
        let port = state.port;
        let policies = state.policies.iter();
        let about_tunnel = policies.filter(|policy| policy.is_about_tunnel(port, has_peer));
        state.seen.ipsec = about_tunnel.cloned().collect();
    }

    /// The other network namespaces that are not looked into yet, or `all`.
    fn namespaces(&self, all: bool) -> BTreeSet<i32> {
        let mut state = self.state();
        if state.teller.is_none() {
            return BTreeSet::new();
        }
        let Ok(present) = state.inspector.namespaces() else { return BTreeSet::new() };
        state.seen.stacked.retain(|netns, _| present.contains(netns));
        let known = |netns: &i32| state.seen.stacked.contains_key(netns);
        present.into_iter().filter(|netns| all || !known(netns)).collect()
    }

    /// Looks for devices in that namespace that no program can serve.
    fn look_into_namespace(&self, netns: i32) {
        let mut state = self.state();
        match state.inspector.stacked(netns, self.network) {
            Ok(stacked) => {
                let nothing = stacked.is_empty();
                let before = state.seen.stacked.insert(netns, stacked);
                // It is only for status, so no program has to be told.
                if before.is_some_and(|before| !before.is_empty()) || !nothing {
                    self.judge(&mut state);
                }
            }
            Err(error) => tracing::debug!(%error, "network namespace not inspected"),
        }
    }

    /// Ends all confirmations; whether that worked, or there are none.
    fn raise(&self) -> bool {
        let mut teller = self.teller.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(raised) = teller.as_mut().map(|teller| teller.raise_generation()) else {
            return true;
        };
        let worked = raised.is_ok();
        self.shared.report(Subject::Generation, raised);
        worked
    }

    /// Judges, and tells the programs. What is as before costs a comparison.
    fn judge_and_tell(&self, state: &mut State) {
        self.judge(state);
        let judged = &state.judgement;
        let Some(teller) = &mut state.teller else { return };
        let told = teller.set_veths(&judged.veths).and_then(|()| teller.set_keep(judged.keep));
        self.shared.report(Subject::Devices, told);
    }

    fn judge(&self, state: &mut State) {
        let served = state.judgement.served();
        let judged = judge(&state.scene, &state.seen, &served);
        let changed = judged.report != state.judgement.report;
        if changed {
            said::log(&state.judgement.report, &judged.report);
            let told = said::events(&state.judgement.report, &judged.report);
            self.shared.lock().note_all(told);
        }
        state.judgement = judged;
        let complaint = said::complaint(state);
        let mut shared = self.shared.lock();
        shared.report(Subject::FastPath, complaint);
        if changed {
            let hooks = std::mem::take(&mut shared.datapath.envelope.hooks);
            shared.datapath.envelope = EnvelopeReport { hooks, ..state.judgement.report.clone() };
        }
    }

    /// All devices that have a role.
    fn devices(&self) -> BTreeSet<u32> {
        self.state().scene.devices()
    }

    fn is_pods_veth(&self, ifindex: u32) -> bool {
        self.state().scene.veths.iter().any(|veth| veth.ifindex == ifindex)
    }
}

impl State {
    /// Takes the roles, and forgets what has none any more.
    fn take(&mut self, scene: Scene) {
        let devices = scene.devices();
        self.seen.devices.retain(|ifindex, _| devices.contains(ifindex));
        self.seen.xdp_above.retain(|ifindex, _| devices.contains(ifindex));
        let end = |scene: &Scene, ifindex: u32| {
            let veth = scene.veths.iter().find(|veth| veth.ifindex == ifindex);
            veth.and_then(|veth| veth.end)
        };
        let before = std::mem::replace(&mut self.scene, scene);
        let same = |ifindex: &u32| {
            let now = end(&self.scene, *ifindex);
            now.is_some() && now == end(&before, *ifindex)
        };
        self.seen.xdp.retain(|ifindex, _| same(ifindex));
    }

    /// Looks again at what could not be read, of devices that are known; gives those.
    fn look_again(&mut self, devices: &BTreeSet<u32>) -> BTreeSet<u32> {
        let mut known = devices.clone();
        known.retain(|ifindex| self.seen.devices.contains_key(ifindex));
        let mut unread = known.clone();
        unread.retain(|ifindex| self.seen.devices[ifindex].traffic.is_err());
        self.look_at_traffic(&unread);
        let mut unasked = known.clone();
        unasked.retain(|ifindex| !self.seen.xdp.get(ifindex).is_some_and(Result::is_ok));
        self.look_into_pods(&unasked);
        known
    }

    /// Looks at devices that are new, and at the veths among them for one turn; whether
    /// some are left.
    fn look_at_new(&mut self, devices: &BTreeSet<u32>, turn: Option<Duration>) -> bool {
        let began = Instant::now();
        let new = devices.iter().copied().filter(|found| !self.seen.devices.contains_key(found));
        let known: BTreeSet<u32> = self.scene.veths.iter().map(|veth| veth.ifindex).collect();
        let (veths, others): (Vec<u32>, Vec<u32>) = new.partition(|new| known.contains(new));
        self.look_at(&others.into_iter().collect());
        let mut left = veths.chunks(AT_ONCE);
        for some in &mut left {
            self.look_at(&some.iter().copied().collect());
            if turn.is_some_and(|turn| began.elapsed() >= turn) {
                break;
            }
        }
        left.next().is_some()
    }

    /// Reads the programs on these devices, if that was not done just now: nobody tells of
    /// one that is attached.
    fn read_programs(&mut self, devices: &BTreeSet<u32>) {
        if self.programs_read.is_none_or(|read| read.elapsed() >= HOOKS_REST) {
            self.programs_read = Some(Instant::now());
            self.look_at_programs(devices);
        }
    }

    /// Looks at all that stands on these devices.
    fn look_at(&mut self, devices: &BTreeSet<u32>) {
        self.look_at_traffic(devices);
        self.look_into_pods(devices);
        self.look_at_programs(devices);
    }

    fn look_at_traffic(&mut self, devices: &BTreeSet<u32>) {
        if devices.is_empty() {
            return;
        }
        let found = self.inspector.traffic_control(devices);
        for ifindex in devices {
            let traffic = match &found {
                Ok(found) => found.get(ifindex).cloned().ok_or_else(|| "it has gone".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            match self.seen.devices.get_mut(ifindex) {
                Some(facts) => facts.traffic = traffic,
                None => {
                    let tcx = Err("not looked at yet".to_owned());
                    self.seen.devices.insert(*ifindex, DeviceFacts { traffic, tcx });
                }
            }
        }
    }

    fn look_at_programs(&mut self, devices: &BTreeSet<u32>) {
        let Some(teller) = &self.teller else { return };
        for ifindex in devices {
            if let Some(facts) = self.seen.devices.get_mut(ifindex) {
                facts.tcx = teller.tcx(*ifindex).map_err(|error| error.to_string());
            }
        }
        for ifindex in self.scene.bridges().intersection(devices) {
            let runs = self.inspector.xdp_on(*ifindex).map(Option::unwrap_or_default);
            self.seen.xdp_above.insert(*ifindex, runs.map_err(|error| error.to_string()));
        }
    }

    fn look_for_arrivals(&mut self, datapath: &dyn Datapath) {
        let overlay = self.scene.overlay.first().copied();
        self.arrivals.look(overlay, self.inspector.as_mut(), datapath);
    }

    fn look_into_pods(&mut self, veths: &BTreeSet<u32>) {
        for veth in self.scene.veths.iter().filter(|veth| veths.contains(&veth.ifindex)) {
            let Some(end) = veth.end else { continue };
            let runs = match self.inspector.xdp_in_pod(end) {
                // One that has gone takes nothing in.
                Ok(runs) => Ok(runs.unwrap_or(false)),
                Err(error) => Err(error.to_string()),
            };
            self.seen.xdp.insert(veth.ifindex, runs);
        }
    }
}
