//! The parts of a pass that look: links, the device and what hangs on it.

use std::collections::BTreeMap;

use flannel_core::desired::Desired;
use flannel_core::health::Subject;
use flannel_core::lease::judge::NodeAddresses;
use flannel_core::observed::Observed;
use flannel_core::peer::Peer;
use ipnetwork::Ipv4Network;

use super::Reconciler;
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::status::lock;

/// What is there, as last seen and changed by us since.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The kernel's tables and the maps; `None` before the first look.
    pub(super) observed: Option<Observed>,
    /// `observed` may be wrong: something failed, or could not be read.
    pub(super) stale: bool,
    /// Others' routes may have been put before ours since.
    pub(super) unordered: bool,
    /// Index of the VXLAN device, as read back.
    pub(super) device: Option<u32>,
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    pub(super) async fn look_at_links(&mut self) {
        let links = self.kernel.links().await;
        self.unfinished.wake.links = links.is_err();
        self.shared.report(Subject::Links, links.as_ref());
        if let Ok(links) = links {
            self.links.addresses = NodeAddresses::of(&links, self.identity.underlay.ifindex);
            self.links.all = links;
            self.look_for_uplinks().await;
            self.check_forwarding().await;
        }
    }

    /// The data path is there now: the next pass fills its maps. What else was seen is
    /// as true as before.
    pub fn datapath_opened(&mut self) {
        self.opened = true;
        let maps = self.look_at_maps();
        match (&mut self.seen.observed, maps) {
            (Some(observed), Ok(maps)) => observed.maps = maps,
            (Some(_), Err(_)) => self.seen.stale = true,
            (None, _) => {}
        }
    }

    /// The maps' peers; `None` where there are no programs.
    fn look_at_maps(&self) -> Result<Option<BTreeMap<Ipv4Network, Peer>>, String> {
        let peers = lock(&self.datapath).as_mut().map(|datapath| datapath.peers());
        peers.transpose().map_err(|error| error.to_string())
    }

    pub(super) async fn look(&mut self, desired: &Desired) {
        let order = self.seen.unordered || self.seen.observed.is_none();
        let maps = self.look_at_maps();
        let observed = match (self.look_at_kernel(desired, order).await, maps) {
            (Ok(observed), Ok(maps)) => Ok(Observed { maps, ..observed }),
            (Err(error), _) => Err(error.to_string()),
            (_, Err(reason)) => Err(reason),
        };
        self.shared.report(Subject::Observation, observed.as_ref());
        self.seen.stale = observed.is_err();
        self.attendance.looked(observed.is_ok());
        self.unfinished.wake.look = self.seen.stale;
        if let Ok(observed) = observed {
            let device = observed.device.as_ref().filter(|device| device.vxlan.is_some());
            self.seen.unordered = false;
            self.seen.device = device.map(|device| device.ifindex);
            self.seen.observed = Some(observed);
        }
    }
}
