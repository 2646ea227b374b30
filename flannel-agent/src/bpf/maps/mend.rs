//! Entries that somebody else removed, changed or added: they are found by reading the
//! maps, since nobody tells, and put right at once.
//!
//! What is expected is looked up key by key. Added entries are found by a walk through
//! the whole map.
//!
//! Where the kernel tells how many entries there are, a map of the right number has
//! neither lost one nor got another: of a large one only a few are looked up then, for
//! values that were changed. Elsewhere all are, and a walk follows less often: the kernel
//! goes through all buckets of a hash, also of one that is nearly empty.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::maps::MapType;
use flannel_core::schedule::MAP_STEP;
use flannel_ebpf::abi::{self, Subnet};
use ipnetwork::Ipv4Network;

use super::super::census::Census;
use super::super::walk::{self, Walk};
use super::super::{BpfError, sys};
use super::{BATCH, Maps, RawKey, ignore_missing, network, raw_key};

/// Added entries are looked for at each step of so many, where nobody counts them.
const ADDED_EVERY: u32 = 5;
/// Of a large map whose number is right, one part in so many is looked up.
const CALM_SHARE: usize = 16;

/// How far both maps have been read.
#[derive(Default)]
pub(super) struct Rounds {
    subnets: Round<Ipv4Network, RawKey>,
    addresses: Round<[u8; 4], [u8; 4]>,
    /// Entries that were put right, and of which nobody was told yet.
    mended: u64,
}

/// How far one map has been read. `E` is a key as it is expected, `K` as the map has it.
struct Round<E, K> {
    after: Option<E>,
    walk: Walk<K>,
    count: Count,
    /// Steps in a row that found nothing wrong but the number.
    vain: usize,
    looks: u32,
}

impl<E, K> Default for Round<E, K> {
    fn default() -> Self {
        Self { after: None, walk: Walk::default(), count: Count::Unknown, vain: 0, looks: 0 }
    }
}

/// What tells how many entries a map has.
enum Count {
    /// It was not asked for yet.
    Unknown,
    /// The kernel does not tell.
    Untold,
    By(Census),
}

/// What a step reads of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// So many of the expected entries.
    expected: usize,
    /// Whether it walks on for added ones.
    added: bool,
}

impl<E, K> Round<E, K> {
    /// The next step of a map that should have so many entries. `begin`: what counts them.
    fn step(&mut self, entries: usize, begin: impl FnOnce() -> Option<Census>) -> Step {
        // The number was wrong all the time that reading all takes: it is the measure that
        // is wrong.
        if matches!(self.count, Count::Unknown) || self.vain > 2 * (entries / MAP_STEP + 1) {
            self.count = begin().map_or(Count::Untold, Count::By);
            self.vain = 0;
        }
        match &self.count {
            Count::By(census) if census.is(entries) => {
                self.vain = 0;
                let large = entries > MAP_STEP;
                let expected = if large { MAP_STEP / CALM_SHARE } else { MAP_STEP };
                Step { expected, added: false }
            }
            Count::By(_) => {
                self.vain += 1;
                Step { expected: MAP_STEP, added: true }
            }
            Count::Unknown | Count::Untold => {
                let added = self.looks == 0;
                self.looks = (self.looks + 1) % ADDED_EVERY;
                Step { expected: MAP_STEP, added }
            }
        }
    }

    /// Reads from the beginning.
    fn restart(&mut self) {
        self.after = None;
        self.walk = Walk::default();
    }
}

impl Maps {
    /// What stands in the map of subnets.
    pub(super) fn read_subnets(&self) -> Result<BTreeMap<Ipv4Network, Subnet>, BpfError> {
        let found = walk::all(self.subnets_fd.as_fd(), BATCH).map_err(unread_subnets)?;
        let subnet = |(key, subnet)| Some((network(key)?, subnet));
        Ok(found.into_iter().filter_map(subnet).collect())
    }

    /// Puts entries of both maps right: a step of each. How many were wrong, since the last
    /// call.
    pub(in super::super) fn mend(&mut self) -> Result<u64, BpfError> {
        let (known, map) = (self.known.len(), self.subnets_fd.as_fd());
        let census = || Census::of::<RawKey, Subnet>(map, MapType::LpmTrie, known);
        let subnets = self.rounds.subnets.step(known, census);
        let (known, map) = (self.addresses.len(), self.peers_fd.as_fd());
        let census = || Census::of::<[u8; 4], abi::Peer>(map, MapType::Hash, known);
        let addresses = self.rounds.addresses.step(known, census);
        self.mend_subnets(subnets.expected)?;
        self.mend_addresses(addresses.expected)?;
        if subnets.added {
            self.remove_added_subnets(MAP_STEP)?;
        }
        if addresses.added {
            self.remove_added_addresses(MAP_STEP)?;
        }
        Ok(std::mem::take(&mut self.rounds.mended))
    }

    /// Puts all entries of both maps right.
    pub(in super::super) fn mend_all(&mut self) -> Result<(), BpfError> {
        self.rounds.subnets.restart();
        self.rounds.addresses.restart();
        self.mend_subnets(usize::MAX)?;
        self.mend_addresses(usize::MAX)?;
        while !self.remove_added_subnets(BATCH)? {}
        while !self.remove_added_addresses(BATCH)? {}
        Ok(())
    }

    fn mend_subnets(&mut self, most: usize) -> Result<(), BpfError> {
        let map = self.subnets_fd.as_fd();
        let read = |network: &Ipv4Network| sys::lookup_element(map, &raw_key(network));
        let wrong = wrong(&self.known, &mut self.rounds.subnets.after, most, read);
        let wrong = wrong.map_err(unread_subnets)?;
        self.rounds.mended += wrong.len() as u64;
        wrong.chunks(BATCH).try_for_each(|chunk| self.write_subnets(chunk))
    }

    fn mend_addresses(&mut self, most: usize) -> Result<(), BpfError> {
        let map = self.peers_fd.as_fd();
        let read = |address: &[u8; 4]| {
            let peer: Option<abi::Peer> = sys::lookup_element(map, address)?;
            Ok(peer.map(|peer| peer.peer_id))
        };
        let wrong = wrong(&self.addresses, &mut self.rounds.addresses.after, most, read);
        let wrong = wrong.map_err(unread_addresses)?;
        self.rounds.mended += wrong.len() as u64;
        for (address, peer_id) in wrong {
            self.peers
                .insert(address, abi::Peer { peer_id }, 0)
                .map_err(|error| BpfError::new("write map", abi::map::PEERS4, &error))?;
        }
        Ok(())
    }

    /// Whether the walk is at the map's end.
    fn remove_added_subnets(&mut self, most: usize) -> Result<bool, BpfError> {
        let is_ours = |key| network(key).is_some_and(|network| self.known.contains_key(&network));
        let walk = &mut self.rounds.subnets.walk;
        let added = added::<_, Subnet>(self.subnets_fd.as_fd(), walk, most, is_ours);
        let (added, is_last) = added.map_err(unread_subnets)?;
        self.rounds.mended += added.len() as u64;
        for key in added {
            let key = aya::maps::lpm_trie::Key::new(u32::from_ne_bytes(key[0]), key[1]);
            ignore_missing(self.subnets.remove(&key))
                .map_err(|error| BpfError::new("remove from map", abi::map::SUBNETS4, &error))?;
        }
        Ok(is_last)
    }

    /// Whether the walk is at the map's end.
    fn remove_added_addresses(&mut self, most: usize) -> Result<bool, BpfError> {
        let is_ours = |address| self.addresses.contains_key(&address);
        let walk = &mut self.rounds.addresses.walk;
        let added = added::<_, abi::Peer>(self.peers_fd.as_fd(), walk, most, is_ours);
        let (added, is_last) = added.map_err(unread_addresses)?;
        self.rounds.mended += added.len() as u64;
        for address in added {
            ignore_missing(self.peers.remove(&address))
                .map_err(|error| BpfError::new("remove from map", abi::map::PEERS4, &error))?;
        }
        Ok(is_last)
    }
}

fn unread_subnets(error: io::Error) -> BpfError {
    BpfError::new("read map", abi::map::SUBNETS4, &error)
}

fn unread_addresses(error: io::Error) -> BpfError {
    BpfError::new("read map", abi::map::PEERS4, &error)
}

/// Of the next `most` entries behind `after`, those that the map does not have so.
fn wrong<K: Copy + Ord, V: Copy + PartialEq>(
    expected: &BTreeMap<K, V>,
    after: &mut Option<K>,
    most: usize,
    read: impl Fn(&K) -> io::Result<Option<V>>,
) -> io::Result<Vec<(K, V)>> {
    let from = after.take().map_or(Bound::Unbounded, Bound::Excluded);
    let mut rest = expected.range((from, Bound::Unbounded)).peekable();
    let mut wrong = Vec::new();
    for (key, value) in rest.by_ref().take(most) {
        if read(key)? != Some(*value) {
            wrong.push((*key, *value));
        }
        *after = Some(*key);
    }
    if rest.peek().is_none() {
        *after = None;
    }
    Ok(wrong)
}

/// Of the next `most` entries of the walk, the keys of those that are not ours; whether
/// these were the last.
fn added<K, V>(
    map: BorrowedFd<'_>,
    walk: &mut Walk<K>,
    most: usize,
    is_ours: impl Fn(K) -> bool,
) -> io::Result<(Vec<K>, bool)>
where
    K: Copy + zerocopy::FromBytes + zerocopy::IntoBytes,
    V: Copy + zerocopy::FromBytes + zerocopy::IntoBytes,
{
    let part = walk.next::<V>(map, most)?;
    let keys = part.entries.into_iter().map(|(key, _)| key);
    Ok((keys.filter(|key| !is_ours(*key)).collect(), part.is_last))
}
