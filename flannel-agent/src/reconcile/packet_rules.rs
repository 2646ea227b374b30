//! What rules that judge each packet keep off the fast path.

use std::sync::Arc;

use flannel_core::config::Backend;
use flannel_core::envelope::{NetdevChain, Side};
use flannel_core::firewall::packet_rules::devices::{Devices, NodeDevices};
use flannel_core::firewall::packet_rules::exempt::{
    Present, Resolved, describe, everything, resolve,
};
use flannel_core::firewall::packet_rules::outer::{self, OuterRule};
use flannel_core::firewall::packet_rules::ranges::Addresses;
use flannel_core::firewall::packet_rules::walk::{Findings, Overlay};
use flannel_core::health::{Found, Subject};
use flannel_ebpf::abi::{Exemption, MAX_EXEMPTIONS};

use super::Reconciler;
use crate::bpf::FastPath;
use crate::firewall::Firewall;
use crate::firewall::packet_rules::follow::{Reading, RulesFollower};
use crate::kernel::Kernel;
use crate::task::TaskEnded;
use flannel_core::status::PacketRulesMode;
use flannel_core::status::PacketRulesStatus;

/// The rules as they are known.
#[derive(Debug, Default)]
pub(super) struct PacketRules {
    follower: Option<RulesFollower>,
    /// What the log knows.
    logged: Vec<Exemption>,
    /// What they meant at the last look.
    last: Option<Last>,
}

/// What rules mean, and what that depends on.
#[derive(Debug)]
struct Last {
    findings: Arc<Findings>,
    devices: Devices,
    eager: bool,
    helpers: bool,
    resolved: Arc<Resolved>,
}

impl PacketRules {
    /// The rules have changed.
    pub(super) fn notice(&self) {
        if let Some(follower) = &self.follower {
            follower.notice();
        }
    }

    /// Rules that no event tells of may have changed.
    pub(super) fn glance(&self) {
        if let Some(follower) = &self.follower {
            follower.glance();
        }
    }

    /// Waits until something else is known of the rules. Cancel safe.
    pub(super) async fn changed(&mut self) -> Result<(), TaskEnded> {
        match &mut self.follower {
            Some(follower) => follower.changed().await,
            None => std::future::pending().await,
        }
    }

    fn reading(&mut self) -> Reading {
        self.follower.as_mut().map(RulesFollower::reading).unwrap_or_default()
    }
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// From now on rules that judge each packet are what this one reads. Without one
    /// nothing is known of them.
    pub fn follow_packet_rules(&mut self, follower: RulesFollower) {
        self.packet_rules.follower = Some(follower);
    }

    /// What the programs have to leave alone at the moment; says so.
    pub(super) fn exemptions(&mut self, fast_path: FastPath) -> Vec<Exemption> {
        let mode = self.settings.fast_path.packet_rules;
        if mode == PacketRulesMode::Ignore || fast_path == FastPath::Off {
            self.watch.set_rules(Vec::new(), Vec::new());
            let status = PacketRulesStatus { mode, read: false, ..PacketRulesStatus::default() };
            let mut state = self.shared.lock();
            state.report(Subject::PacketRules, Found::well());
            state.packet_rules = Some(status).filter(|_| fast_path != FastPath::Off);
            return Vec::new();
        }
        let reading = self.packet_rules.reading();
        self.watch.set_rules(self.egress_chains(&reading), self.outer_rules(&reading));
        let resolved = match &reading.findings {
            Some(findings) => self.resolve(findings, fast_path),
            None => Arc::new(Resolved { exemptions: everything(), ..Resolved::default() }),
        };
        self.tell_of_rules(&reading, &resolved);
        resolved.exemptions.clone()
    }

    /// The chains that see what this node's devices send.
    fn egress_chains(&self, reading: &Reading) -> Vec<NetdevChain> {
        let chains = reading.findings.iter().flat_map(|findings| &findings.egress);
        let on_links = chains.flat_map(|chain| {
            let links = self.links.all.iter().filter(|link| chain.devices.fit(&link.name));
            links.map(|link| NetdevChain {
                device: link.name.clone(),
                side: Side::Egress,
                chain: chain.chain.clone(),
            })
        });
        on_links.collect()
    }

    /// The rules about the tunnel's packets to the peers.
    fn outer_rules(&self, reading: &Reading) -> Vec<OuterRule> {
        let findings = reading.findings.as_deref().filter(|findings| !findings.outer.is_empty());
        let Some(findings) = findings else { return Vec::new() };
        let has_peer = |addresses: &Addresses| self.watch.scope().has_peer(addresses);
        outer::rules(findings, &self.devices(), has_peer)
    }

    /// Whether there are rules about tunnel packets, of whatever peers.
    pub(super) fn has_outer_rules(&mut self) -> bool {
        let findings = self.packet_rules.reading().findings;
        self.settings.fast_path.packet_rules == PacketRulesMode::Respect
            && findings.is_some_and(|findings| !findings.outer.is_empty())
    }

    fn devices(&self) -> Devices {
        Devices::of(NodeDevices {
            links: &self.links.all,
            pods: &self.pods(),
            underlay: self.identity.underlay.ifindex,
            overlay: self.seen.device,
            direct: self.identity.backend.facts().reaches().directly(),
            subnet: self.identity.subnet,
        })
    }

    fn resolve(&mut self, findings: &Arc<Findings>, fast_path: FastPath) -> Arc<Resolved> {
        let helpers = match self.sysctl.automatic_helpers() {
            Ok(helpers) => helpers,
            Err(error) => {
                tracing::debug!(%error, "sysctl nf_conntrack_helper unreadable; helpers are taken to be given by port");
                true
            }
        };
        if findings.rules.is_empty() && !helpers {
            return Arc::default();
        }
        let devices = self.devices();
        let eager = fast_path == FastPath::Eager;
        let same = |last: &&Last| {
            Arc::ptr_eq(&last.findings, findings)
                && last.devices == devices
                && (last.eager, last.helpers) == (eager, helpers)
        };
        if let Some(last) = self.packet_rules.last.as_ref().filter(same) {
            return Arc::clone(&last.resolved);
        }
        let overlay = overlay(self.identity.network, &self.identity.backend);
        let present = Present { devices: &devices, overlay, eager, helpers };
        let resolved = Arc::new(resolve(findings, present));
        self.packet_rules.last = Some(Last {
            findings: Arc::clone(findings),
            devices,
            eager,
            helpers,
            resolved: Arc::clone(&resolved),
        });
        resolved
    }

    fn tell_of_rules(&mut self, reading: &Reading, resolved: &Resolved) {
        let known = reading.findings.is_some();
        if known && self.packet_rules.logged != resolved.exemptions {
            self.packet_rules.logged.clone_from(&resolved.exemptions);
            let flows: Vec<String> = resolved.exemptions.iter().map(describe).collect();
            match flows.as_slice() {
                [] => tracing::info!("packet rules keep no flow on the kernel path any more"),
                flows => {
                    tracing::info!(?flows, "packet rules keep flows on the kernel path");
                }
            }
        }
        let complaint = match (&reading.failed, known) {
            (Some(reason), true) => Some(format!("{reason}; the rules as last read hold")),
            (Some(reason), false) => {
                Some(format!("{reason}; nothing takes the fast path until they are read"))
            }
            (None, _) if resolved.crowded => Some(format!(
                "more than {MAX_EXEMPTIONS} kinds of flows are matched by rules that judge each \
                 packet; nothing takes the fast path"
            )),
            (None, _) => None,
        };
        let mut state = self.shared.lock();
        state.report(Subject::PacketRules, complaint);
        state.packet_rules = Some(PacketRulesStatus {
            mode: PacketRulesMode::Respect,
            read: known,
            exempt: resolved.exemptions.iter().map(describe).collect(),
            rules: resolved.rules.clone(),
            more: resolved.more,
        });
    }
}

/// What has to be known of the overlay for reading rules.
pub fn overlay(network: ipnetwork::Ipv4Network, backend: &Backend) -> Overlay {
    Overlay { network, port: backend.facts().vxlan().map(|vxlan| vxlan.port) }
}
