//! The devices around the programs: their roles, and whose hooks failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flannel_core::backend::Reaches;
use flannel_core::desired::Desired;
use flannel_core::detours::Here;
use flannel_core::envelope::{HookReport, Scene};
use flannel_core::health::Subject;
use flannel_core::lease::judge::NodeAddresses;
use flannel_core::link::Link;
use flannel_core::pods;
use flannel_core::pods::Choice;
use flannel_core::subnet::within;

use super::Reconciler;
use crate::bpf::BpfError;
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::status::lock;
use crate::watch::Settled;

/// The node's links, as last seen.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) all: Vec<Link>,
    /// Of those that may be a pod's, the ones by which routes lead elsewhere.
    pub(super) uplinks: BTreeSet<u32>,
    /// The addresses of all.
    pub(super) addresses: NodeAddresses,
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// The roles of the links as last seen.
    pub(super) fn scene(&self, overlay: Option<u32>) -> Scene {
        Scene::of(&self.links.all, self.choice(overlay))
    }

    /// What the roles hang on, with the overlay's device of this index.
    pub(super) fn choice(&self, overlay: Option<u32>) -> Choice<'_> {
        Choice {
            underlay: self.identity.underlay.ifindex,
            overlay,
            network: self.identity.network,
            subnet: self.identity.subnet,
            uplinks: &self.links.uplinks,
            names: self.settings.programs.attach_iface.as_ref(),
        }
    }

    /// Interface indexes of the pods' veths.
    pub(super) fn pods(&self) -> Vec<u32> {
        let choice = self.choice(self.seen.device);
        pods::pod_veths(&self.links.all, choice).into_iter().map(|link| link.ifindex).collect()
    }

    /// Asks of links that may be a routed pod's or a network card where routes
    /// lead by them. Where the kernel does not answer, what was known stays.
    pub(super) async fn look_for_uplinks(&mut self) {
        let doubtful = self.links.all.iter().filter(|link| pods::is_doubtful(link));
        let doubtful: BTreeSet<u32> = doubtful.map(|link| link.ifindex).collect();
        let found = match doubtful.is_empty() {
            true => Ok(BTreeSet::new()),
            false => self.kernel.uplinks(&doubtful, self.identity.network).await,
        };
        self.shared.report(Subject::Uplinks, found.as_ref());
        if let Ok(found) = found {
            self.links.uplinks = found;
        }
    }

    /// Whether routes tell what this link is.
    pub(super) fn is_doubtful(&self, ifindex: u32) -> bool {
        let mut links = self.links.all.iter();
        links.any(|link| (link.ifindex == ifindex || ifindex == 0) && pods::is_doubtful(link))
    }

    /// Says which ways to peers are right.
    pub(super) fn tell_ways(&self) {
        let overlay = self.seen.device.or(self.udp.ifindex());
        let (network, subnet) = (self.identity.network, self.identity.subnet);
        let reaches = self.identity.backend.facts().reaches() != Reaches::Nobody;
        let ours = |link: &&Link| {
            let mut addresses = link.addresses.iter();
            Some(link.ifindex) != overlay
                && addresses.any(|address| within(subnet, address.network))
        };
        let here = (reaches && (overlay.is_some() || self.device().is_none())).then(|| Here {
            network,
            subnet,
            overlay,
            inputs: self.links.all.iter().filter(ours).map(|link| link.name.clone()).collect(),
        });
        self.watch.set_here(here);
    }

    /// Says where the peers are, and which of them the programs do not know.
    pub(super) fn tell_peers(&self, desired: &Desired) {
        let addresses = desired.peers.values().map(|peer| peer.public_ip);
        self.watch.set_peers(addresses, desired.unmapped.len());
        let reason = desired.unmapped.first().map(|first| {
            format!(
                "{} peers are more than the programs' tables hold ({}): the newest {}, {first} \
                 among them, are reached by the kernel's path only",
                desired.peers.len(),
                desired.peers.len() - desired.unmapped.len(),
                desired.unmapped.len()
            )
        });
        let programs = lock(&self.datapath).is_some();
        let mut state = self.shared.lock();
        state.report(Subject::Peers, reason.filter(|_| programs));
        if *state.unmapped != desired.unmapped {
            state.unmapped = Arc::new(desired.unmapped.clone());
        }
    }
}

/// Whether a failure is about one pod, or a device by which nothing may come:
/// the others go on.
pub(super) fn is_of_one(settled: &Settled, hook: &str) -> bool {
    let device = hook.split('/').next().unwrap_or(hook);
    settled.veths.iter().any(|veth| veth.name == device)
        || settled.inlets.iter().any(|inlet| inlet.name == device)
}

/// The failed hooks, for status.
pub(super) fn hook_reports(failures: &BTreeMap<String, BpfError>) -> Vec<HookReport> {
    let report = |(hook, error): (&String, &BpfError)| HookReport {
        hook: hook.clone(),
        reason: error.to_string(),
    };
    failures.iter().map(report).collect()
}
