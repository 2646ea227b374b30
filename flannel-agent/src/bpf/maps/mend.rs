//! Entries that somebody else removed, changed or added: they are found by reading the
//! maps, since nobody tells, and put right at once.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;

use flannel_ebpf::abi::{self, Subnet};
use ipnetwork::Ipv4Network;

use super::super::BpfError;
use super::super::walk::{Part, Walk};
use super::{BATCH, Maps, RawKey, ignore_missing, network, raw_key};

/// Entries of each map that one look reads.
const SOME: usize = 256;

/// How far both maps have been read.
#[derive(Default)]
pub(super) struct Rounds {
    subnets: Walk<RawKey>,
    addresses: Walk<[u8; 4]>,
    /// Entries that were put right, and of which nobody was told yet.
    mended: u64,
}

impl Rounds {
    pub(super) fn wrote_subnets(&mut self, keys: &[RawKey]) {
        self.subnets.wrote(keys);
    }

    pub(super) fn wrote_addresses(&mut self, keys: &[[u8; 4]]) {
        self.addresses.wrote(keys);
    }
}

impl Maps {
    /// What stands in the map of subnets.
    pub(super) fn read_subnets(&self) -> Result<BTreeMap<Ipv4Network, Subnet>, BpfError> {
        let (mut walk, mut subnets) = (Walk::default(), BTreeMap::new());
        loop {
            let part = self.part_of_subnets(&mut walk, BATCH)?;
            let found = part.entries.into_iter();
            subnets.extend(found.filter_map(|(key, subnet)| Some((network(key)?, subnet))));
            if part.round.is_some() {
                return Ok(subnets);
            }
        }
    }

    fn part_of_subnets(
        &self,
        walk: &mut Walk<RawKey>,
        most: usize,
    ) -> Result<Part<RawKey, Subnet>, BpfError> {
        let part = walk.next(self.subnets_fd.as_fd(), most);
        part.map_err(|error| BpfError::new("read map", abi::map::SUBNETS4, &error))
    }

    /// Puts the next entries of both maps right. How many were not, since the last
    /// call.
    pub(in super::super) fn mend(&mut self) -> Result<u64, BpfError> {
        self.mend_subnets(SOME)?;
        self.mend_addresses(SOME)?;
        Ok(std::mem::take(&mut self.rounds.mended))
    }

    /// Puts all entries of both maps right.
    pub(in super::super) fn mend_all(&mut self) -> Result<(), BpfError> {
        let mended = self.rounds.mended;
        self.rounds = Rounds { mended, ..Rounds::default() };
        while !self.mend_subnets(BATCH)? {}
        while !self.mend_addresses(BATCH)? {}
        Ok(())
    }

    /// Whether a round is over.
    fn mend_subnets(&mut self, most: usize) -> Result<bool, BpfError> {
        let mut walk = std::mem::take(&mut self.rounds.subnets);
        let part = self.part_of_subnets(&mut walk, most);
        self.rounds.subnets = walk;
        let Part { entries, round } = part?;
        let mut wrong = BTreeSet::new();
        for (key, found) in entries {
            match network(key).and_then(|network| self.known.get_key_value(&network)) {
                Some((_, subnet)) if *subnet == found => {}
                Some((network, _)) => drop(wrong.insert(*network)),
                None => {
                    self.rounds.mended += 1;
                    let key = aya::maps::lpm_trie::Key::new(u32::from_ne_bytes(key[0]), key[1]);
                    ignore_missing(self.subnets.remove(&key)).map_err(|error| {
                        BpfError::new("remove from map", abi::map::SUBNETS4, &error)
                    })?;
                }
            }
        }
        if let Some(met) = &round {
            let is_missed = |network: &&Ipv4Network| met.binary_search(&raw_key(network)).is_err();
            wrong.extend(self.known.keys().filter(is_missed));
        }
        self.rounds.mended += wrong.len() as u64;
        let wrong: Vec<_> = wrong.iter().map(|network| (*network, self.known[network])).collect();
        for chunk in wrong.chunks(BATCH) {
            self.write_subnets(chunk)?;
        }
        Ok(round.is_some())
    }

    /// Whether a round is over.
    fn mend_addresses(&mut self, most: usize) -> Result<bool, BpfError> {
        let part = self.rounds.addresses.next::<abi::Peer>(self.peers_fd.as_fd(), most);
        let Part { entries, round } =
            part.map_err(|error| BpfError::new("read map", abi::map::PEERS4, &error))?;
        let mut wrong = BTreeMap::new();
        for (address, found) in entries {
            match self.addresses.get(&address) {
                Some(peer_id) if *peer_id == found.peer_id => {}
                Some(peer_id) => drop(wrong.insert(address, *peer_id)),
                None => {
                    self.rounds.mended += 1;
                    ignore_missing(self.peers.remove(&address)).map_err(|error| {
                        BpfError::new("remove from map", abi::map::PEERS4, &error)
                    })?;
                }
            }
        }
        if let Some(met) = round.as_ref() {
            let is_missed = |address: &[u8; 4]| met.binary_search(address).is_err();
            let missed = self.addresses.iter().filter(|(address, _)| is_missed(address));
            wrong.extend(missed.map(|(address, peer_id)| (*address, *peer_id)));
        }
        self.rounds.mended += wrong.len() as u64;
        for (address, peer_id) in wrong {
            self.rounds.wrote_addresses(&[address]);
            self.peers
                .insert(address, abi::Peer { peer_id }, 0)
                .map_err(|error| BpfError::new("write map", abi::map::PEERS4, &error))?;
        }
        Ok(round.is_some())
    }
}
