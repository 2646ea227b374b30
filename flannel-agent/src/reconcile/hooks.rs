//! The parts of a pass that carry something out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use flannel_core::blackhole;
use flannel_core::events;
use flannel_core::health::{Found, Part, Subject};
use flannel_core::link::{Link, vrf_of};
use flannel_core::model;
use flannel_core::op::Op;
use flannel_core::schedule::Wake;
use flannel_core::subnet::within;
use flannel_ebpf::abi::MAX_PEERS;
use ipnetwork::Ipv4Network;

use super::{Reconciler, devices, is_device, is_ground};
use crate::bpf::{BpfError, DatapathConfig, FastPath, HookReport, Places};
use crate::firewall::Firewall;
use crate::kernel::{Kernel, KernelError};
use crate::status::lock;
use crate::watch::Settled;
use flannel_core::repair::Repair;
use flannel_core::status::{Attachment, DatapathKind, FlowTableStatus, What};

/// So long hooks are attached before leases get their turn.
const TURN: Duration = Duration::from_millis(20);

const LOOSE: &str = "net.netfilter.nf_conntrack_tcp_loose";

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Makes the blackhole route of our subnet what `--ip-blackhole-route` says;
    /// whether something had to be changed.
    pub(super) async fn seal(&mut self) -> bool {
        let wanted = Some(self.identity.subnet).filter(|_| self.settings.blackhole);
        let sealed = async {
            let mut present = self.kernel.blackholes().await?;
            // Those of another agent's network are not ours to remove.
            present.retain(|route| within(self.identity.network, route.destination));
            let (removed, added) = blackhole::diff(wanted, &present);
            let changes = !removed.is_empty() || added.is_some();
            for route in removed {
                self.kernel.remove_blackhole(route).await?;
                tracing::info!(destination = %route.destination, "removed a blackhole route");
            }
            if let Some(route) = added {
                self.kernel.add_blackhole(route).await?;
                tracing::info!(destination = %route.destination, "added the blackhole route");
            }
            Ok::<_, KernelError>(changes)
        };
        let sealed = sealed.await;
        self.sealed = sealed.is_ok();
        self.unfinished.wake.look |= sealed.is_err();
        self.shared.report(Subject::BlackholeRoute, sealed.as_ref().map(drop));
        sealed.unwrap_or(true)
    }

    /// Carries out a plan in its order: neighbouring operations of one kind go
    /// together. Returns whether the device was created or deleted.
    pub(super) async fn carry_out(&mut self, ops: &[Op]) -> bool {
        let mut ran = Ran { device_changed: false, grounded: true, unreached: BTreeSet::new() };
        for group in ops.chunk_by(|a, b| kind(a) == kind(b)) {
            if !ran.grounded && kind(&group[0]) == Kind::Entries {
                continue;
            }
            // What a peer was reached by stays until the new way is there.
            let group: Vec<Op> =
                group.iter().filter(|op| !needed(&ran.unreached, op)).cloned().collect();
            let group = group.as_slice();
            if group.is_empty() {
                continue;
            }
            let results = match kind(&group[0]) {
                Kind::Maps => self.write_maps(group),
                Kind::Device | Kind::Entries | Kind::Direct => self
                    .kernel
                    .apply(self.tunnel.as_deref().unwrap_or_default(), group)
                    .await
                    .into_iter()
                    .map(|result| result.map_err(|error| error.to_string()))
                    .collect(),
            };
            for (op, result) in group.iter().zip(results) {
                // Without a device nothing on it works: one cause, one
                // complaint.
                if ran.grounded || !is_device(op) {
                    self.ran(op, result, &mut ran);
                }
            }
        }
        ran.device_changed
    }

    /// Takes what became of one operation.
    fn ran(&mut self, op: &Op, result: Result<(), String>, ran: &mut Ran) {
        if let Err(reason) = result {
            match op {
                Op::PutRoute(subnet) => ran.unreached.insert(*subnet),
                Op::PutDirect(route) => ran.unreached.insert(route.destination),
                _ => false,
            };
            self.retries.failed(op, reason);
            ran.grounded &= !is_ground(op);
            self.stale = true;
            return;
        }
        self.log(op);
        if self.settled {
            self.shared.lock().record.repaired(Repair::of(op), 1);
        }
        self.retries.worked(op);
        if matches!(op, Op::CreateDevice(_) | Op::DeleteDevice { .. }) {
            ran.device_changed = true;
            self.overlay = None;
        }
        if let Some(observed) = &mut self.observed {
            model::apply(observed, op);
        }
    }

    fn log(&self, op: &Op) {
        match op {
            Op::CreateDevice(device) => tracing::info!(
                device = device.name,
                mac = %device.mac,
                mtu = device.mtu,
                "created the VXLAN device"
            ),
            Op::DeleteDevice { name, why } => {
                tracing::warn!(device = name, why, "deleted a device that does not fit");
            }
            Op::SetMac(mac) => tracing::warn!(%mac, "gave the device its MAC back"),
            Op::SetMtu(mtu) => tracing::info!(mtu, "set the device's MTU"),
            Op::SetChecksum(by) => {
                tracing::info!(%by, "set who makes checksums of what goes into the tunnel");
            }
            Op::PutLinkRoute(network) => tracing::debug!(%network, "put the overlay's route"),
            Op::PutRoute(subnet) => tracing::debug!(%subnet, "put a peer's route"),
            Op::RemoveRoute(route) => {
                tracing::debug!(subnet = %route.destination, "removed a route");
            }
            Op::PutDirect(route) => {
                tracing::debug!(subnet = %route.destination, "put a peer's direct route");
            }
            Op::RemoveDirect(route) => {
                tracing::debug!(subnet = %route.destination, "removed a direct route");
            }
            _ => {}
        }
    }

    fn write_maps(&self, group: &[Op]) -> Vec<Result<(), String>> {
        let mut guard = lock(&self.datapath);
        let Some(datapath) = guard.as_mut() else {
            return group.iter().map(|_| Err("there is no eBPF data path".to_owned())).collect();
        };
        let mut put = Vec::new();
        let mut remove = Vec::new();
        for op in group {
            match op {
                Op::PutMaps(peer) => put.push(*peer),
                Op::RemoveMaps(subnet) => remove.push(*subnet),
                _ => {}
            }
        }
        let there = self.observed.as_ref().and_then(|observed| observed.maps.as_ref());
        let full = there.map_or(0, BTreeMap::len) + put.len() > MAX_PEERS as usize;
        let mut remove_peers = || datapath.remove_peers(&remove);
        // Room is made first only where it is needed: otherwise a subnet that is
        // replaced by another keeps its peer meanwhile.
        let written = if full { remove_peers() } else { Ok(()) };
        let written = written
            .and_then(|()| datapath.put_peers(&put))
            .and_then(|()| if full { Ok(()) } else { datapath.remove_peers(&remove) })
            .map_err(|error| error.to_string());
        group.iter().map(|_| written.clone()).collect()
    }

    /// Settings and hooks of the programs.
    pub(super) fn serve_pods(&mut self) {
        // Without links there are no veths: all hooks of pods would go.
        if lock(&self.datapath).is_none() || self.links.is_empty() {
            return;
        }
        let tunnel = self.tunnel.clone();
        let overlay = self.overlay.filter(|_| tunnel.is_some());
        if tunnel.is_some() && overlay.is_none() {
            return;
        }
        let tcp = self.tcp_allowed();
        let fast_path = self.fast_path();
        self.keep_idle_connections(tcp && fast_path != FastPath::Off);
        let udp_window = self.udp_window();
        let exemptions = self.exemptions(fast_path);
        let underlay = &self.identity.underlay;
        let scene = self.scene(overlay);
        let source_ports = self.sysctl.local_port_range();
        self.shared.report(Subject::SourcePorts, source_ports.as_ref());
        let Ok(source_ports) = source_ports else { return };
        let wanted = self.datapath_config(source_ports);
        let mut config =
            DatapathConfig { fast_path, tcp, udp_window, overlay: overlay.unwrap_or(0), ..wanted };
        let mut guard = lock(&self.datapath);
        let Some(datapath) = guard.as_mut() else { return };
        let settled =
            self.watch.settle(scene, config.port, datapath.as_ref(), fast_path != FastPath::Off);
        let mut failures = BTreeMap::new();
        if let Err(error) = datapath.set_direct(&self.direct) {
            failures.insert("peers".to_owned(), error);
        }
        // Before the fast path begins, which must not carry what is exempt.
        if let Err(error) = datapath.exempt(&exemptions) {
            failures.insert("exemptions".to_owned(), error);
            config.fast_path = FastPath::Off;
        }
        if let Err(error) = datapath.configure(&config) {
            failures.insert("settings".to_owned(), error);
        }
        let report = datapath.ensure_hooks(Places {
            underlay: &underlay.name,
            underlay_kind: kind_of(&self.links, underlay.ifindex),
            inlets: &settled.inlets,
            overlay: tunnel.as_deref(),
            direct: config.direct_mtu.is_some(),
            veths: &settled.veths,
            turn: TURN,
        });
        self.hooks_left = report.unfinished;
        let (unpinned, attachment) = (datapath.unpinned(), report.attachment);
        drop(guard);
        failures.extend(self.tell_hooks(report, unpinned));
        self.judge(&failures, attachment, tcp, &settled);
    }

    /// What the programs have to know that is no finding of a look.
    fn datapath_config(&self, source_ports: (u16, u16)) -> DatapathConfig {
        let (vxlan, underlay) = (self.identity.backend.vxlan(), &self.identity.underlay);
        let direct = self.identity.backend.facts().reaches().directly();
        let window = self.settings.fast_path.window;
        DatapathConfig {
            window,
            udp_window: window,
            verify_source: self.settings.programs.verify_source,
            fast_path: FastPath::Off,
            tcp: false,
            vni: vxlan.map_or(0, |vxlan| vxlan.vni),
            gbp: vxlan.is_some_and(|vxlan| vxlan.gbp),
            port: vxlan.map_or(0, |vxlan| vxlan.port),
            underlay: underlay.ifindex,
            underlay_vrf: vrf_of(&self.links, underlay.ifindex),
            overlay: 0,
            local: underlay.address,
            network: self.identity.network,
            subnet: self.identity.subnet,
            mtu: u16::try_from(self.mtu).unwrap_or(u16::MAX),
            direct_mtu: direct.then(|| u16::try_from(underlay.mtu).unwrap_or(u16::MAX)),
            vtep_mac: self.identity.vtep_mac,
            source_ports,
        }
    }

    /// Tells what became of the hooks; those that failed.
    fn tell_hooks(&self, report: HookReport, unpinned: Option<String>) -> Vec<(String, BpfError)> {
        if !report.attached.is_empty() {
            tracing::info!(hooks = ?report.attached, "attached programs");
        }
        if !report.detached.is_empty() {
            tracing::info!(hooks = ?report.detached, "detached programs");
        }
        let mut state = self.shared.lock();
        state.report(Subject::Pins, unpinned);
        state.report(Subject::Xdp, report.xdp.complaint);
        state.datapath.xdp = report.xdp.status;
        let (hooks, more) = events::named(&report.attached);
        if !hooks.is_empty() {
            let restored = report.restored;
            state.note(What::HooksAttached { hooks, more, restored });
        }
        let (hooks, more) = events::named(&report.detached);
        if !hooks.is_empty() {
            state.note(What::HooksDetached { hooks, more });
        }
        state.record.repaired(Repair::Hook, report.restored);
        state.record.hooks = report.running;
        report.failed
    }

    /// A pod without hooks is on the kernel path; the node is, if the hooks of
    /// its devices are missing: then no flow can be confirmed.
    fn judge(
        &self,
        failures: &BTreeMap<String, BpfError>,
        attach: Attachment,
        tcp: bool,
        settled: &Settled,
    ) {
        let whole = failures.iter().find(|(hook, _)| !devices::is_of_one(settled, hook));
        let mut state = self.shared.lock();
        let failed = failures.iter().map(|(hook, error)| (hook.clone(), error.to_string()));
        state.report(
            Subject::Hook,
            failed.map(|(hook, why)| (Part::Name(hook), why)).collect::<Found>(),
        );
        state.datapath.envelope.hooks = devices::hook_reports(failures);
        state.datapath.tcp = tcp;
        state.datapath.attach = Some(attach);
        let mode = if whole.is_some() { DatapathKind::Kernel } else { DatapathKind::Ebpf };
        let reason = whole.map(|(hook, error)| format!("{} {hook}: {error}", Subject::Hook));
        if state.datapath.mode != Some(mode) {
            state.note(What::Datapath { mode, reason: reason.clone() });
        }
        state.datapath.mode = Some(mode);
        state.datapath.reason = reason;
    }

    /// What `--fast-path` asks for, as far as this node has it.
    fn fast_path(&self) -> FastPath {
        let asked = self.settings.fast_path.mode;
        let reason = match asked {
            _ if !self.identity.underlay.ethernet => None,
            FastPath::Eager => match self.sysctl.tcp_conntrack_loose() {
                Ok(true) => None,
                Ok(false) => Some(format!(
                    "{LOOSE} is 0: conntrack would take connections that it did not see begin for \
                     invalid; --fast-path=confirmed is in force"
                )),
                Err(error) => Some(format!("{error}; --fast-path=confirmed is in force")),
            },
            FastPath::Confirmed | FastPath::Off => None,
        };
        let eager = reason.is_none();
        self.shared.report(Subject::Eager, reason);
        match eager {
            _ if !self.identity.underlay.ethernet => FastPath::Off,
            true => asked,
            false => FastPath::Confirmed,
        }
    }

    /// Whether the hooks and conntrack are as they should be; puts them right. What
    /// else is to be looked at. Cheap, for a quick timer: nobody tells when a tcx
    /// program is detached, or a map's entry changed.
    pub fn check_hooks(&mut self) -> Wake {
        if self.mtu != 0 {
            self.check_forwarding();
            self.serve_pods();
            self.attend();
            self.check_flow_table();
            self.check_strangers();
        }
        self.mend_maps()
    }

    /// Puts right what somebody else wrote into the maps. What cannot be written is
    /// left to a look at everything, which says so.
    fn mend_maps(&self) -> Wake {
        let mended = lock(&self.datapath).as_mut().map(|datapath| datapath.mend());
        match mended {
            Some(Ok(mended)) if mended > 0 => {
                tracing::warn!(entries = mended, "put entries of the maps right");
                self.shared.lock().record.repaired(Repair::Map, mended);
                Wake::default()
            }
            Some(Ok(_)) | None => Wake::default(),
            Some(Err(_)) => Wake { look: true, ..Wake::default() },
        }
    }

    /// Whether hooks were left for the next look: it should come at once.
    pub fn has_hooks_left(&self) -> bool {
        self.hooks_left
    }

    fn check_flow_table(&mut self) {
        let entered = lock(&self.datapath).as_ref().map(|datapath| datapath.flows_entered());
        let Some(entered) = entered else { return };
        let looked = entered.map(|entered| self.turnover.look(Instant::now(), entered));
        let mut state = self.shared.lock();
        match looked {
            Ok(complaint) => state.report(Subject::FlowTable, complaint),
            Err(error) => {
                return state.report(Subject::FlowTable, Found::not_well(error.to_string()));
            }
        }
        state.datapath.flows = Some(FlowTableStatus {
            size: self.settings.programs.flow_table_size,
            new_per_window: self.turnover.per_window(),
        });
    }
}

/// Kind of a link; one that is not seen is not taken for hardware.
fn kind_of(links: &[Link], ifindex: u32) -> &str {
    links.iter().find(|link| link.ifindex == ifindex).map_or("unseen", |link| link.kind.as_str())
}

/// What became of a plan so far.
struct Ran {
    /// The device was created or deleted.
    device_changed: bool,
    /// What entries hang on is there.
    grounded: bool,
    /// Peers whose new route could not be put.
    unreached: BTreeSet<Ipv4Network>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Device,
    Entries,
    Direct,
    Maps,
}

/// Whether this removal would take the present way to a peer for which no new
/// one could be put.
fn needed(unreached: &BTreeSet<Ipv4Network>, op: &Op) -> bool {
    match op {
        Op::RemoveRoute(route) => unreached.contains(&route.destination),
        Op::RemoveDirect(route) => unreached.contains(&route.destination),
        Op::RemoveNeighbour(address, _) => begins_at(unreached, *address),
        Op::RemoveFdb(..) => !unreached.is_empty(),
        _ => false,
    }
}

/// Whether one of these subnets begins at this address.
fn begins_at(subnets: &BTreeSet<Ipv4Network>, address: Ipv4Addr) -> bool {
    let [first, last] = [0, 32].map(|prefix| Ipv4Network::new(address, prefix));
    let (Ok(first), Ok(last)) = (first, last) else { return false };
    subnets.range(first..=last).next().is_some()
}

fn kind(op: &Op) -> Kind {
    if op.is_maps() {
        Kind::Maps
    } else if op.is_direct() {
        Kind::Direct
    } else if is_device(op) {
        Kind::Device
    } else {
        Kind::Entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_found_by_its_first_address() {
        let subnets: BTreeSet<Ipv4Network> =
            ["10.5.1.0/24", "10.5.3.0/32", "10.5.5.0/25"].map(|text| text.parse().unwrap()).into();
        for third in 0..7 {
            let address = Ipv4Addr::new(10, 5, third, 0);
            let expected = subnets.iter().any(|subnet| subnet.network() == address);
            assert_eq!(begins_at(&subnets, address), expected, "{address}");
        }
        assert!(!begins_at(&subnets, Ipv4Addr::new(10, 5, 1, 1)));
    }
}
