//! How large packets to peers may be by an MTU of the routes there, which no program is
//! told of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use flannel_core::limits::Destination;
use flannel_ebpf::abi::{Subnet, subnet_flag};
use ipnetwork::Ipv4Network;

use super::super::BpfError;
use super::{BATCH, Maps};

/// Peers that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All.
    All,
    /// Those of which nobody has asked yet. Until then the kernel sends all to them.
    New,
}

/// Peers to which large packets go another way than small ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounded {
    /// What is larger than a route's MTU is the kernel's to send.
    pub narrow: usize,
    /// All is.
    pub left: usize,
}

/// The bounds of all peers that have one.
#[derive(Default)]
pub(super) struct Bounds {
    /// Some route has an MTU of its own, as far as is known.
    limited: bool,
    largest: BTreeMap<Ipv4Network, u16>,
    /// Peers of which nobody has asked yet.
    new: BTreeSet<Ipv4Network>,
}

impl Bounds {
    /// What an earlier run left.
    pub(super) fn of(known: &BTreeMap<Ipv4Network, Subnet>) -> Self {
        let largest = told(known);
        Self { limited: !largest.is_empty(), largest, new: BTreeSet::new() }
    }

    /// The bound of a peer. Until somebody has asked for a new one, the kernel sends all.
    pub(super) fn largest(&self, subnet: &Ipv4Network) -> Option<u16> {
        if self.new.contains(subnet) { Some(0) } else { self.largest.get(subnet).copied() }
    }

    /// A peer is reached otherwise than before.
    pub(super) fn moved(&mut self, subnet: Ipv4Network) {
        if self.limited {
            self.new.insert(subnet);
        }
    }

    /// A peer has gone.
    pub(super) fn gone(&mut self, subnet: &Ipv4Network) {
        self.largest.remove(subnet);
        self.new.remove(subnet);
    }
}

impl Maps {
    /// What the programs know of peers that have a bound.
    pub(in super::super) fn bounds(&self) -> BTreeMap<Ipv4Network, u16> {
        told(&self.known)
    }

    /// The way to all peers is asked for otherwise than before.
    pub(in super::super) fn ask_again(&mut self) {
        if self.bounds.limited {
            self.bounds.new.extend(self.known.keys());
        }
    }

    /// Gives peers their bound, as `ask` tells it; without it no route has an MTU of its
    /// own. What there is now, if something has changed.
    pub(in super::super) fn bound(
        &mut self,
        which: Which,
        ask: Option<&mut dyn FnMut(Destination) -> Option<u16>>,
    ) -> Result<Option<Bounded>, BpfError> {
        self.bounds.limited = ask.is_some();
        match ask {
            None => self.bounds = Bounds::default(),
            Some(_) if which == Which::New && self.bounds.new.is_empty() => return Ok(None),
            Some(ask) => {
                for (network, subnet) in &self.known {
                    if which == Which::All || self.bounds.new.contains(network) {
                        match ask(destination(*network, subnet)) {
                            Some(largest) => self.bounds.largest.insert(*network, largest),
                            None => self.bounds.largest.remove(network),
                        };
                    }
                }
                self.bounds.new.clear();
            }
        }
        self.write_bounds()
    }

    fn write_bounds(&mut self) -> Result<Option<Bounded>, BpfError> {
        let bounded = |network: &Ipv4Network, subnet: &Subnet| {
            let direct = subnet.flags & subnet_flag::DIRECT != 0;
            let flags = Subnet::flags(direct, self.bounds.largest(network));
            (flags != subnet.flags).then_some((*network, Subnet { flags, ..*subnet }))
        };
        let changed: Vec<(Ipv4Network, Subnet)> =
            self.known.iter().filter_map(|(network, subnet)| bounded(network, subnet)).collect();
        for chunk in changed.chunks(BATCH) {
            self.write_subnets(chunk)?;
            self.known.extend(chunk.iter().copied());
        }
        let (narrow, left): (Vec<u16>, Vec<u16>) =
            self.bounds.largest.values().partition(|largest| **largest != 0);
        let now = Bounded { narrow: narrow.len(), left: left.len() };
        Ok((!changed.is_empty()).then_some(now))
    }
}

/// The bounds that stand in the map.
fn told(known: &BTreeMap<Ipv4Network, Subnet>) -> BTreeMap<Ipv4Network, u16> {
    let bound = |subnet: &Subnet| Some(subnet.largest()).filter(|bound| *bound != u16::MAX);
    known.iter().filter_map(|(network, subnet)| Some((*network, bound(subnet)?))).collect()
}

fn destination(network: Ipv4Network, subnet: &Subnet) -> Destination {
    Destination {
        subnet: network,
        public_ip: Ipv4Addr::from(subnet.public_ip),
        direct: subnet.flags & subnet_flag::DIRECT != 0,
    }
}
