//! What a change has to be about to alter a decision of the kernel that the
//! programs repeat.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flannel_core::firewall::packet_rules::ranges::Addresses;
use ipnetwork::Ipv4Network;

use crate::kernel::Own;

/// Shared between who knows the node's part in the overlay and who hears the
/// kernel. What is not set yet counts as everything.
#[derive(Clone, Debug, Default)]
pub struct Scope(Arc<Mutex<Bounds>>);

#[derive(Debug, Default)]
struct Bounds {
    network: Option<Ipv4Network>,
    window: Duration,
    /// PublicIPs of the peers, in order.
    peers: Option<Vec<u32>>,
    /// Devices that packets of the overlay pass.
    devices: Option<BTreeSet<u32>>,
    own: Own,
}

impl Scope {
    fn lock(&self) -> MutexGuard<'_, Bounds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the overlay network, and how long a decision is repeated at most.
    pub fn set_network(&self, network: Ipv4Network, window: Duration) {
        let mut bounds = self.lock();
        bounds.network = Some(network);
        bounds.window = window;
    }

    /// Sets the peers' PublicIPs.
    pub fn set_peers(&self, addresses: impl Iterator<Item = Ipv4Addr>) {
        let mut peers: Vec<u32> = addresses.map(u32::from).collect();
        peers.sort_unstable();
        self.lock().peers = Some(peers);
    }

    /// Whether a peer has one of these addresses.
    pub fn has_peer(&self, addresses: &Addresses) -> bool {
        let bounds = self.lock();
        let Some(peers) = &bounds.peers else { return true };
        addresses.ranges().iter().any(|(low, high)| {
            let next = peers.get(peers.partition_point(|peer| peer < low));
            next.is_some_and(|peer| peer <= high)
        })
    }

    /// A peer's PublicIP is another, or a peer came or went.
    pub fn change_peer(&self, before: Option<Ipv4Addr>, now: Option<Ipv4Addr>) {
        let mut bounds = self.lock();
        // What is not set yet counts as everything.
        let Some(peers) = &mut bounds.peers else { return };
        if let Some(Ok(place)) = before.map(|before| peers.binary_search(&before.into())) {
            peers.remove(place);
        }
        if let Some(now) = now.map(u32::from) {
            peers.insert(peers.partition_point(|peer| *peer < now), now);
        }
    }

    /// Sets the devices that packets of the overlay pass: underlays, overlay,
    /// pods' veths and their bridges.
    pub fn set_devices(&self, devices: BTreeSet<u32>) {
        self.lock().devices = Some(devices);
    }

    /// Sets what we do ourselves: its echo is no event.
    pub fn set_own(&self, own: Own) {
        self.lock().own = own;
    }

    /// What we do ourselves.
    pub(super) fn own(&self) -> Own {
        self.lock().own.clone()
    }

    /// How long a decision is repeated at most.
    pub(super) fn window(&self) -> Duration {
        self.lock().window
    }

    /// Whether a route there can be the way of a packet of pods or peers.
    pub(super) fn reaches(&self, destination: Ipv4Network) -> bool {
        let bounds = self.lock();
        let (Some(network), Some(peers)) = (bounds.network, &bounds.peers) else { return true };
        let first = u32::from(destination.network());
        let peer = peers.get(peers.partition_point(|peer| *peer < first));
        peer.is_some_and(|peer| *peer <= u32::from(destination.broadcast()))
            || network.contains(destination.network())
            || destination.contains(network.network())
    }

    /// Whether a route there can be the way to some of the overlay network.
    pub(super) fn overlaps(&self, destination: Ipv4Network) -> bool {
        self.lock().network.is_none_or(|network| {
            network.contains(destination.network()) || destination.contains(network.network())
        })
    }

    /// Whether a destination is within the overlay network.
    pub(super) fn holds(&self, destination: Ipv4Network) -> bool {
        self.lock().network.is_none_or(|network| network.contains(destination.network()))
    }

    /// Whether packets of the overlay pass this device.
    pub(super) fn passes(&self, ifindex: u32) -> bool {
        self.lock().devices.as_ref().is_none_or(|devices| devices.contains(&ifindex))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    #[test]
    fn routes_matter_that_hold_a_peer_or_a_part_of_the_overlay() {
        let scope = Scope::default();
        assert!(scope.reaches(net("198.51.100.0/24")), "nothing is known yet");
        scope.set_network(net("10.5.0.0/16"), Duration::from_secs(5));
        let peers = ["192.0.2.12", "203.0.113.9"].map(|ip| ip.parse().unwrap());
        scope.set_peers(peers.into_iter());
        for reached in [
            "0.0.0.0/0",
            "10.5.7.0/24",
            "10.0.0.0/8",
            "192.0.2.0/24",
            "192.0.2.12/32",
            "203.0.113.9/32",
        ] {
            assert!(scope.reaches(net(reached)), "{reached}");
        }
        for other in
            ["10.6.0.0/16", "192.0.2.13/32", "192.0.2.0/29", "203.0.113.128/25", "10.4.0.0/16"]
        {
            assert!(!scope.reaches(net(other)), "{other}");
        }
    }

    #[test]
    fn devices_count_once_they_are_known() {
        let scope = Scope::default();
        assert!(scope.passes(7));
        scope.set_devices([8].into());
        assert!(!scope.passes(7));
        scope.set_devices([7].into());
        assert!(scope.passes(7));
    }
}
