//! [`Lease`] and [`LeaseTable`]: all leases of the network as last read. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::Lease;
use super::free::is_free;
use super::judge::{NoPeer, Own, judge};
use super::key::SubnetKey;
use super::update::{LeaseUpdate, UnreadableKeys};
use crate::backend::{Backend, Reaches};
use crate::peer::Peer;
use crate::subnet::within;
use crate::text;

/// Most oddities that are spelled out.
const ODDITIES: usize = 32;

/// Most leases that an oddity of several names.
const NAMED: usize = 8;

/// All leases of the network as last read, and which of them is ours.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseTable {
    network: Ipv4Network,
    backend: Backend,
    own: Option<Own>,
    leases: BTreeMap<Ipv4Network, Judged>,
    /// The next snapshot is of another history of the store.
    other_history: bool,
    /// Leases of an earlier history that nothing in this one speaks against.
    held: BTreeSet<Ipv4Network>,
    /// Keys that cannot be read.
    unreadable: UnreadableKeys,
}

/// A lease with what it is to us. It is judged once, when it comes: its JSON is
/// not read again for each change of another.
#[derive(Clone, Debug, PartialEq)]
struct Judged {
    lease: Lease,
    peer: Result<Peer, NoPeer>,
}

/// What an update changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Subnets whose peer appeared, went, or is reached otherwise than before.
    /// A mere renewal is no change.
    pub peers: BTreeSet<Ipv4Network>,
    /// A lease came or went, or says something else: what is odd may be other than
    /// before.
    pub leases: bool,
    /// What happened to our own lease.
    pub own: Option<OwnChange>,
}

/// What happened to our own lease.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnChange {
    /// It was written (by ourselves, most often), or a snapshot holds it.
    Put(Lease),
    /// It was deleted, ran out, or is not in a snapshot.
    ///
    /// A `revision` below that of our last write is news from before it.
    Removed {
        /// Revision of the store.
        revision: i64,
    },
    /// Another node's lease stands under our key.
    Taken {
        /// The other node's lease.
        lease: Lease,
    },
}

impl LeaseTable {
    /// A table without leases, of the overlay network `network`; peers are the
    /// leases of this backend.
    pub fn new(network: Ipv4Network, backend: Backend) -> Self {
        Self {
            network,
            backend,
            own: None,
            leases: BTreeMap::new(),
            other_history: false,
            held: BTreeSet::new(),
            unreadable: UnreadableKeys::new(),
        }
    }

    /// Tells which subnet (if any yet) and PublicIP are ours.
    ///
    /// What [`peers`](Self::peers) yields may change by this.
    pub fn set_own(&mut self, subnet: Option<Ipv4Network>, public_ip: Ipv4Addr) {
        let own = Some(Own { subnet, public_ip });
        if self.own == own {
            return;
        }
        self.own = own;
        let leases = std::mem::take(&mut self.leases);
        self.leases = leases.into_values().map(|judged| self.judged(judged.lease)).collect();
    }

    /// Takes in one update.
    pub fn apply(&mut self, update: LeaseUpdate) -> Changes {
        match update {
            LeaseUpdate::Snapshot { leases, revision } => self.replace(leases, revision),
            LeaseUpdate::Put { lease } => {
                let subnet = lease.subnet;
                let before = self.leases.get(&subnet);
                let leases = before.is_none_or(|before| before.lease.attrs != lease.attrs);
                let before = self.peer_at(subnet);
                let own = self.own_change(&lease);
                let mut peers = self.release(|held| refutes(&lease, &held.lease));
                self.held.remove(&subnet);
                self.leases.extend([self.judged(lease)]);
                peers.extend(self.changed(subnet, before));
                Changes { peers, leases, own }
            }
            LeaseUpdate::Removed { subnet, revision } => {
                let before = self.peer_at(subnet);
                let leases = self.leases.remove(&subnet).is_some();
                self.held.remove(&subnet);
                let own = self.is_own(subnet).then_some(OwnChange::Removed { revision });
                Changes { peers: self.changed(subnet, before), leases, own }
            }
            LeaseUpdate::OtherHistory { .. } => {
                self.other_history = true;
                Changes::default()
            }
            LeaseUpdate::Unreadable { keys } => {
                self.unreadable = keys;
                Changes { leases: true, ..Changes::default() }
            }
            LeaseUpdate::Disconnected { .. } => Changes::default(),
        }
    }

    /// How many leases stand that the store has no word of: it lost them, and
    /// their nodes have not written them again.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Lets go of these leases.
    pub fn release_held(&mut self) -> Changes {
        Changes { peers: self.release(|_| true), leases: true, own: None }
    }

    fn release(&mut self, which: impl Fn(&Judged) -> bool) -> BTreeSet<Ipv4Network> {
        let held = self.held.iter().copied();
        let gone: Vec<_> =
            held.filter(|subnet| self.leases.get(subnet).is_none_or(&which)).collect();
        for subnet in &gone {
            self.held.remove(subnet);
        }
        gone.into_iter()
            .filter(|subnet| self.leases.remove(subnet).is_some_and(|held| held.peer.is_ok()))
            .collect()
    }

    /// The lease that stands under our subnet's key, if any.
    pub fn own(&self) -> Option<&Lease> {
        self.leases.get(&self.own?.subnet?).map(|judged| &judged.lease)
    }

    /// All leases, in the order of their subnets.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().map(|judged| &judged.lease)
    }

    /// The leases that peers of our backend stand behind, the least recently written
    /// first.
    pub fn peers(&self) -> impl Iterator<Item = Peer> {
        let mut peers: Vec<_> = self
            .leases
            .values()
            .filter_map(|judged| Some((judged.lease.revision, *judged.peer.as_ref().ok()?)))
            .collect();
        peers.sort_by_key(|(revision, peer)| (*revision, peer.subnet));
        peers.into_iter().map(|(_, peer)| peer)
    }

    /// What an operator should look at: leases and keys that are not used and why,
    /// PublicIPs that more than one lease has, subnets that overlap.
    pub fn oddities(&self) -> Vec<String> {
        let mut oddities = self.unused();
        oddities.extend(self.unreadable.iter().map(|(key, cause)| {
            format!("key {} is not used: {cause}", text::shown(key, text::VALUE))
        }));
        oddities.extend(self.shared_addresses());
        oddities.extend(self.link_local());
        oddities.extend(self.overlaps());
        if oddities.len() > ODDITIES {
            let more = oddities.len() - ODDITIES;
            oddities.truncate(ODDITIES);
            oddities.push(format!("{more} more are not listed"));
        }
        oddities.iter().map(|oddity| text::shown(oddity, text::REASON)).collect()
    }

    fn replace(&mut self, leases: Vec<Lease>, revision: i64) -> Changes {
        let mut next: BTreeMap<_, _> = leases.into_iter().map(|lease| self.judged(lease)).collect();
        let own = self.own.and_then(|own| own.subnet).map(|subnet| match next.get(&subnet) {
            Some(judged) => self.own_or_taken(&judged.lease),
            None => OwnChange::Removed { revision },
        });
        self.held = self.keep_back(&next);
        let held = self.held.iter();
        next.extend(held.filter_map(|subnet| Some((*subnet, self.leases.get(subnet)?.clone()))));
        let before = std::mem::replace(&mut self.leases, next);
        let subnets: BTreeSet<_> = before.keys().chain(self.leases.keys()).copied().collect();
        let peers = subnets
            .into_iter()
            .filter(|subnet| peer_at(&before, subnet) != self.peer_at(*subnet))
            .collect();
        Changes { peers, leases: true, own }
    }

    /// What stays though `next` does not have it, or has it as it once was.
    fn keep_back(&mut self, next: &BTreeMap<Ipv4Network, Judged>) -> BTreeSet<Ipv4Network> {
        let other_history = std::mem::take(&mut self.other_history);
        let subnets: BTreeSet<_> = next.keys().copied().collect();
        let addresses: BTreeSet<_> =
            next.values().map(|listed| listed.lease.attrs.public_ip).collect();
        let stays = |(subnet, known): (&Ipv4Network, &Judged)| match next.get(subnet) {
            Some(listed) => {
                other_history
                    && known.lease.attrs != listed.lease.attrs
                    && known.lease.revision > listed.lease.revision
            }
            None => {
                (other_history || self.held.contains(subnet))
                    && !addresses.contains(&known.lease.attrs.public_ip)
                    && is_free(*subnet, subnets.iter().copied())
            }
        };
        let stay = self.leases.iter().filter(|known| known.1.peer.is_ok() && stays(*known));
        stay.map(|(subnet, _)| *subnet).collect()
    }

    fn own_change(&self, lease: &Lease) -> Option<OwnChange> {
        self.is_own(lease.subnet).then(|| self.own_or_taken(lease))
    }

    /// `lease` stands under our key: is it ours?
    fn own_or_taken(&self, lease: &Lease) -> OwnChange {
        let lease = lease.clone();
        match self.own {
            Some(own) if own.public_ip != lease.attrs.public_ip => OwnChange::Taken { lease },
            _ => OwnChange::Put(lease),
        }
    }

    fn is_own(&self, subnet: Ipv4Network) -> bool {
        self.own.is_some_and(|own| own.subnet == Some(subnet))
    }

    /// The peer that the lease of this subnet stands for, if it does.
    pub fn peer_at(&self, subnet: Ipv4Network) -> Option<Peer> {
        peer_at(&self.leases, &subnet)
    }

    fn judged(&self, lease: Lease) -> (Ipv4Network, Judged) {
        (lease.subnet, Judged { peer: judge(&lease, self.network, &self.backend, self.own), lease })
    }

    fn changed(&self, subnet: Ipv4Network, before: Option<Peer>) -> BTreeSet<Ipv4Network> {
        (before != self.peer_at(subnet)).then_some(subnet).into_iter().collect()
    }

    fn unused(&self) -> Vec<String> {
        if self.backend.facts().reaches() == Reaches::Nobody {
            return Vec::new();
        }
        let own = self.own;
        let ours = |lease: &Lease| {
            own.is_some_and(|own| {
                own.subnet == Some(lease.subnet) && own.public_ip == lease.attrs.public_ip
            })
        };
        self.leases
            .values()
            .filter(|judged| !ours(&judged.lease))
            .filter_map(|Judged { lease, peer }| {
                let cause = peer.as_ref().err()?;
                Some(format!("lease {} is not used: {cause}", SubnetKey::new(lease.subnet)))
            })
            .collect()
    }

    fn shared_addresses(&self) -> Vec<String> {
        let mut holders: BTreeMap<Ipv4Addr, Vec<Ipv4Network>> = BTreeMap::new();
        for peer in self.leases.keys().filter_map(|subnet| self.peer_at(*subnet)) {
            holders.entry(peer.public_ip).or_default().push(peer.subnet);
        }
        holders
            .into_iter()
            .filter(|(_, subnets)| subnets.len() > 1)
            .map(|(address, subnets)| {
                let keys: Vec<_> =
                    subnets.iter().take(NAMED).map(|s| SubnetKey::new(*s).to_string()).collect();
                format!("PublicIP {address} is in {} leases: {}", subnets.len(), keys.join(", "))
            })
            .collect()
    }

    /// Peers that are reached on one link only, where this node is not known to be on it.
    fn link_local(&self) -> Vec<String> {
        if self.own.is_some_and(|own| own.public_ip.is_link_local()) {
            return Vec::new();
        }
        let peers = self.leases.values().filter_map(|judged| judged.peer.as_ref().ok());
        let told = peers.filter(|peer| peer.public_ip.is_link_local()).map(|peer| {
            format!(
                "lease {} has the link-local PublicIP {}, which is reached on its own link only",
                SubnetKey::new(peer.subnet),
                peer.public_ip
            )
        });
        told.collect()
    }

    /// Subnets within others.
    fn overlaps(&self) -> Vec<String> {
        let mut overlaps: Vec<(Ipv4Network, Vec<Ipv4Network>)> = Vec::new();
        // In order of address, then prefix length: what contains comes first.
        for subnet in self.leases.keys().copied() {
            match overlaps.last_mut().filter(|(outer, _)| within(*outer, subnet)) {
                Some((_, inner)) => inner.push(subnet),
                None => overlaps.push((subnet, Vec::new())),
            }
        }
        let told = overlaps.into_iter().filter(|(_, inner)| !inner.is_empty());
        told.map(|(outer, inner)| {
            let keys = inner.iter().take(NAMED).map(|s| SubnetKey::new(*s).to_string());
            let keys = keys.collect::<Vec<_>>().join(", ");
            let more = if inner.len() > NAMED { " and others" } else { "" };
            format!("lease {} overlaps {keys}{more}", SubnetKey::new(outer))
        })
        .collect()
    }
}

/// Whether a lease that was written shows that a held one is of the past.
fn refutes(written: &Lease, held: &Lease) -> bool {
    written.subnet != held.subnet
        && (written.attrs.public_ip == held.attrs.public_ip
            || !is_free(held.subnet, [written.subnet]))
}

fn peer_at(leases: &BTreeMap<Ipv4Network, Judged>, subnet: &Ipv4Network) -> Option<Peer> {
    leases.get(subnet)?.peer.as_ref().ok().copied()
}

#[cfg(test)]
mod tests;
