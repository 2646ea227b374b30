//! One lease more or less: what is desired then, without a look at all the others.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use flannel_ebpf::abi::MAX_PEERS;
use ipnetwork::Ipv4Network;

use super::{Desired, Node, unusable};
use crate::mac::MacAddr;
use crate::peer::Peer;

/// A peer that came, changed or went.
pub type PeerChange = (Ipv4Network, Option<Peer>);

/// What a [`Desired`] without contradictions has by MAC. Where two leases contradict
/// each other, all of them have to be looked at: there is no roster then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster(BTreeMap<MacAddr, Ipv4Network>);

/// What a change is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Subnets of the peers.
    pub subnets: BTreeSet<Ipv4Network>,
    /// Their MACs, before and after.
    pub macs: BTreeSet<MacAddr>,
}

impl Roster {
    /// The roster of what was desired as a whole. `whole`: no lease was left out.
    pub fn of(node: Node<'_>, desired: &Desired, whole: bool) -> Option<Self> {
        let simple = whole
            && desired.device.is_some()
            && desired.unmapped.is_empty()
            && !node.backend.facts().reaches().directly();
        let mut roster = Self(BTreeMap::new());
        let mut alone = desired.peers.values().filter(|_| simple);
        let unique = alone.all(|peer| roster.0.insert(peer.vtep_mac, peer.subnet).is_none());
        (simple && unique).then_some(roster)
    }

    /// Makes `desired` what it is after these changes. `None` if they contradict
    /// something: both are worth nothing any more.
    pub fn revise(
        &mut self,
        node: Node<'_>,
        desired: &mut Desired,
        changes: &[PeerChange],
    ) -> Option<Touched> {
        let mut touched = Touched::default();
        for (subnet, _) in changes {
            if let Some(old) = desired.peers.remove(subnet) {
                touched.subnets.insert(*subnet);
                self.0.remove(&old.vtep_mac);
                touched.macs.insert(old.vtep_mac);
            }
        }
        for peer in changes.iter().filter_map(|(_, peer)| *peer) {
            let contradicts = unusable(node, peer).is_some()
                || begins_where_another_does(desired, peer.subnet)
                || self.0.insert(peer.vtep_mac, peer.subnet).is_some();
            if contradicts {
                return None;
            }
            touched.subnets.insert(peer.subnet);
            touched.macs.insert(peer.vtep_mac);
            desired.peers.insert(peer.subnet, peer);
        }
        (desired.peers.len() <= MAX_PEERS as usize).then_some(touched)
    }
}

/// Networks are in the order of their addresses.
fn begins_where_another_does(desired: &Desired, subnet: Ipv4Network) -> bool {
    let same = |other: Option<(&Ipv4Network, &Peer)>| {
        other.is_some_and(|(other, _)| other.network() == subnet.network())
    };
    same(desired.peers.range(..subnet).next_back()) || same(desired.peers.range(subnet..).next())
}

#[cfg(test)]
mod tests;
