//! The programs' settings and hooks: what a pass and the quick timer put right.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flannel_core::events;
use flannel_core::health::{Found, Part, Subject};
use flannel_core::link::{Link, vrf_of};
use flannel_core::schedule::Wake;

use super::conntrack::Timeouts;
use super::{Reconciler, devices};
use crate::bpf::{BpfError, DatapathConfig, Device, FastPath, HookChanges, Places};
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::status::lock;
use crate::watch::Settled;
use flannel_core::repair::Repair;
use flannel_core::status::{Attachment, DatapathKind, FlowTableStatus, What};

/// So long hooks are attached before leases get their turn: some ten tcx programs, or one
/// where grace periods are long.
const TURN: Duration = Duration::from_millis(5);

const LOOSE: &str = "net.netfilter.nf_conntrack_tcp_loose";

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Settings and hooks of the programs.
    pub(super) fn serve_pods(&mut self) {
        self.keep_pins();
        // Where none can be attached, none is to be attached at once.
        self.hooks_left = false;
        // Without links there are no veths: all hooks of pods would go.
        if lock(&self.datapath).is_none() || self.links.all.is_empty() {
            return;
        }
        let tunnel = self.tunnel();
        let overlay = self.seen.device.filter(|_| tunnel.is_some());
        if tunnel.is_some() && overlay.is_none() {
            return;
        }
        let device = |ifindex, name| Device { ifindex, name };
        let tcp = self.conntrack.tcp_allowed(&self.sysctl, &self.shared);
        let fast_path = self.fast_path();
        let carries_tcp = tcp && fast_path != FastPath::Off;
        // What waits for the state file is written into it at once.
        let will_carry = fast_path != FastPath::Off && self.conntrack.waits();
        let kept = carries_tcp || will_carry;
        let mut timeouts = Timeouts::new(&self.sysctl);
        self.conntrack.keep_idle_connections(&mut timeouts, &self.shared, kept);
        let window = timeouts.window(self.settings.fast_path.window);
        let udp_window = timeouts.udp_window(&self.shared, window);
        let exemptions = self.exemptions(fast_path);
        let underlay = &self.identity.underlay;
        let scene = self.scene(overlay);
        let source_ports = self.sysctl.local_port_range();
        let ttl = self.sysctl.default_ttl();
        self.shared.report(Subject::SourcePorts, source_ports.as_ref().and(ttl.as_ref()));
        let (Ok(source_ports), Ok(ttl)) = (source_ports, ttl) else { return };
        let wanted = self.datapath_config(source_ports, ttl);
        let mut config = DatapathConfig {
            fast_path,
            tcp,
            window,
            udp_window,
            overlay: overlay.unwrap_or(0),
            ..wanted
        };
        let mut guard = lock(&self.datapath);
        let Some(datapath) = guard.as_mut() else { return };
        let settled = self.watch.settle(
            scene,
            config.port,
            datapath.as_ref(),
            fast_path != FastPath::Off,
            TURN,
        );
        let mut failures = BTreeMap::new();
        let direct = self.wanted.desired.as_deref().map(|desired| &desired.direct);
        if let Some(direct) = direct
            && let Err(error) = datapath.set_direct(direct)
        {
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
            underlay: device(underlay.ifindex, &underlay.name),
            underlay_kind: kind_of(&self.links.all, underlay.ifindex),
            inlets: &settled.inlets,
            overlay: overlay.zip(tunnel.as_deref()).map(|(ifindex, name)| device(ifindex, name)),
            direct: config.direct_mtu.is_some(),
            veths: &settled.veths,
            turn: TURN,
        });
        self.hooks_left = report.unfinished || settled.unfinished;
        let (unpinned, attachment) = (datapath.unpinned(), report.attachment);
        drop(guard);
        failures.extend(self.tell_hooks(report, unpinned));
        self.judge(&failures, attachment, tcp, &settled);
    }

    /// Pins are kept also where there is no device to attach to.
    fn keep_pins(&self) {
        let unpinned = lock(&self.datapath).as_mut().map(|datapath| {
            datapath.keep_pins();
            datapath.unpinned()
        });
        self.shared.report(Subject::Pins, unpinned.flatten());
    }

    /// What the programs have to know that is no finding of a look.
    fn datapath_config(&self, source_ports: (u16, u16), ttl: u8) -> DatapathConfig {
        let (vxlan, underlay) = (self.identity.backend.facts().vxlan(), &self.identity.underlay);
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
            underlay_vrf: vrf_of(&self.links.all, underlay.ifindex),
            overlay: 0,
            local: underlay.address,
            network: self.identity.network,
            subnet: self.identity.subnet,
            mtu: u16::try_from(self.mtu().unwrap_or(0)).unwrap_or(u16::MAX),
            direct_mtu: direct.then(|| u16::try_from(underlay.mtu).unwrap_or(u16::MAX)),
            vtep_mac: self.identity.vtep_mac,
            source_ports,
            ttl,
        }
    }

    /// Tells what became of the hooks; those that failed.
    fn tell_hooks(&self, report: HookChanges, unpinned: Option<String>) -> Vec<(String, BpfError)> {
        if !report.attached.is_empty() {
            tracing::info!(hooks = ?report.attached, "programs attached");
        }
        if !report.detached.is_empty() {
            tracing::info!(hooks = ?report.detached, "programs detached");
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
        if self.mtu().is_some() {
            self.serve_pods();
            self.attend();
            self.check_flow_table();
            self.check_strangers();
        }
        self.packet_rules.glance();
        self.mend_maps()
    }

    /// Puts right what somebody else wrote into the maps. What cannot be written is
    /// left to a look at everything, which says so.
    pub fn mend_maps(&self) -> Wake {
        let mended = lock(&self.datapath).as_mut().map(|datapath| datapath.mend());
        match mended {
            Some(Ok(mended)) if mended > 0 => {
                tracing::warn!(entries = mended, "map entries repaired");
                self.shared.lock().record.repaired(Repair::Map, mended);
                Wake::default()
            }
            Some(Ok(_)) | None => Wake::default(),
            Some(Err(_)) => Wake { look: true, ..Wake::default() },
        }
    }

    /// Whether the next look after the hooks should come at once.
    pub fn has_more_to_do(&self) -> bool {
        self.hooks_left
    }

    /// Whether hooks or settings were left for a later look. Some settings wait until the
    /// state file knows of them.
    pub fn has_hooks_left(&self) -> bool {
        self.hooks_left || self.conntrack.waits()
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
