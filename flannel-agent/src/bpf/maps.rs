//! The maps of loaded programs, as the agent reads and writes them.

mod bounds;
mod mend;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray};
use flannel_core::mac::MacAddr;
use flannel_core::peer::Peer;
use flannel_ebpf::abi::{self, Exemption, MAX_EXEMPTIONS, MAX_PEERS, Outcome, Subnet};
use ipnetwork::Ipv4Network;

pub use self::bounds::{Bounded, Which};
use super::meter::RealMeter;
use super::peer_stats::PeerStatsMap;
use super::pin::PinDir;
use super::programs::Programs;
use super::{BpfError, Stranger, pinned, sys};

/// Elements that one batch call carries.
const BATCH: usize = 1024;

/// The maps, typed.
pub(super) struct Maps {
    subnets: LpmTrie<MapData, abi::SubnetKey, Subnet>,
    peers: HashMap<MapData, [u8; 4], abi::Peer>,
    exemptions: Array<MapData, Exemption>,
    stats: PerCpuArray<MapData, u64>,
    peer_stats: Arc<PeerStatsMap>,
    strangers: HashMap<MapData, [u8; 4], abi::Stranger>,
    subnets_fd: OwnedFd,
    peers_fd: OwnedFd,
    /// What was written into `subnets`.
    known: BTreeMap<Ipv4Network, Subnet>,
    /// What was written into `peers`: ids by address.
    addresses: BTreeMap<[u8; 4], u32>,
    rounds: mend::Rounds,
    bounds: bounds::Bounds,
    /// Subnets that are reached without a tunnel.
    direct: BTreeSet<Ipv4Network>,
    /// Ids that no peer has.
    free_ids: BTreeSet<u32>,
    next_id: u32,
}

impl Maps {
    /// Takes the maps out of `ebpf` and reads what an earlier run left in them.
    pub(super) fn take(programs: &mut Programs) -> Result<Self, BpfError> {
        let subnets_fd = descriptor(programs, abi::map::SUBNETS4)?;
        let peers_fd = descriptor(programs, abi::map::PEERS4)?;
        let peer_stats = PeerStatsMap::new(descriptor(programs, abi::map::PEER_STATS)?)?;
        let mut maps = Self {
            subnets_fd,
            peers_fd,
            subnets: typed(programs, abi::map::SUBNETS4)?,
            peers: typed(programs, abi::map::PEERS4)?,
            exemptions: typed(programs, abi::map::EXEMPTIONS)?,
            stats: typed(programs, abi::map::STATS)?,
            peer_stats: Arc::new(peer_stats),
            strangers: typed(programs, abi::map::STRANGERS4)?,
            known: BTreeMap::new(),
            addresses: BTreeMap::new(),
            rounds: mend::Rounds::default(),
            bounds: bounds::Bounds::default(),
            direct: BTreeSet::new(),
            free_ids: BTreeSet::new(),
            next_id: 0,
        };
        maps.known = maps.read_subnets()?;
        maps.addresses =
            maps.known.values().map(|subnet| (subnet.public_ip, subnet.peer_id)).collect();
        maps.bounds = bounds::Bounds::of(&maps.known);
        let used: BTreeSet<u32> = maps.known.values().map(|subnet| subnet.peer_id).collect();
        maps.next_id = used.last().map_or(0, |last| last + 1);
        maps.free_ids = (0..maps.next_id).filter(|id| !used.contains(id)).collect();
        Ok(maps)
    }

    /// Writes exemptions, of which the first `used` counted before; whether they are
    /// others than those.
    pub(super) fn set_exemptions(
        &mut self,
        used: u32,
        exemptions: &[Exemption],
    ) -> Result<bool, BpfError> {
        let failed = |call, error| BpfError::new(call, abi::map::EXEMPTIONS, &error);
        let known: Result<Vec<Exemption>, _> =
            (0..used.min(MAX_EXEMPTIONS)).map(|index| self.exemptions.get(&index, 0)).collect();
        if known.map_err(|error| failed("read map", error))? == exemptions {
            return Ok(false);
        }
        for (index, exemption) in (0..MAX_EXEMPTIONS).zip(exemptions) {
            self.exemptions.set(index, exemption, 0).map_err(|error| failed("write map", error))?;
        }
        Ok(true)
    }

    /// Peers as they were written into both maps.
    pub(super) fn peers(&self) -> BTreeMap<Ipv4Network, Peer> {
        let peers = self.known.iter();
        peers.map(|(network, subnet)| (*network, peer(*network, subnet))).collect()
    }

    pub(super) fn put_peers(&mut self, peers: &[Peer]) -> Result<(), BpfError> {
        let mut subnets = Vec::with_capacity(peers.len());
        let mut new_ids = Vec::new();
        for peer in peers {
            let peer_id = match self.known.get(&peer.subnet) {
                Some(subnet) => subnet.peer_id,
                None => {
                    let id = self.allocate_id();
                    new_ids.push(id);
                    id
                }
            };
            let before = self.known.get(&peer.subnet).map(|subnet| subnet.public_ip);
            if before != Some(peer.public_ip.octets()) {
                self.bounds.moved(peer.subnet);
            }
            subnets.push((
                peer.subnet,
                Subnet {
                    vtep_mac: peer.vtep_mac.0,
                    flags: self.flags(&peer.subnet),
                    public_ip: peer.public_ip.octets(),
                    peer_id,
                },
            ));
        }
        if let Err(error) = self.peer_stats.clear(&new_ids) {
            self.free_ids.extend(new_ids);
            return Err(error);
        }
        // Known before written: what fails half-way can still be removed.
        let replaced: Vec<[u8; 4]> = subnets
            .iter()
            .filter_map(|(network, subnet)| self.known.insert(*network, *subnet))
            .map(|old| old.public_ip)
            .collect();
        // A full table has no room for a peer's old and new address at once.
        if self.known.len() + replaced.len() > MAX_PEERS as usize {
            self.drop_unused_addresses(&replaced)?;
        }
        for chunk in subnets.chunks(BATCH) {
            self.write_addresses(chunk)?;
            self.write_subnets(chunk)?;
        }
        self.drop_unused_addresses(&replaced)
    }

    fn flags(&self, subnet: &Ipv4Network) -> u16 {
        Subnet::flags(self.direct.contains(subnet), self.bounds.largest(subnet))
    }

    pub(super) fn set_direct(&mut self, subnets: &BTreeSet<Ipv4Network>) -> Result<(), BpfError> {
        if self.direct != *subnets {
            self.direct.symmetric_difference(subnets).for_each(|moved| self.bounds.moved(*moved));
            self.direct.clone_from(subnets);
        }
        let changed: Vec<(Ipv4Network, Subnet)> = self
            .known
            .iter()
            .map(|(network, subnet)| (*network, Subnet { flags: self.flags(network), ..*subnet }))
            .filter(|(network, subnet)| self.known[network] != *subnet)
            .collect();
        for chunk in changed.chunks(BATCH) {
            self.write_subnets(chunk)?;
            self.known.extend(chunk.iter().copied());
        }
        Ok(())
    }

    fn write_addresses(&mut self, chunk: &[(Ipv4Network, Subnet)]) -> Result<(), BpfError> {
        let keys: Vec<[u8; 4]> = chunk.iter().map(|(_, subnet)| subnet.public_ip).collect();
        let ids = || chunk.iter().map(|(_, subnet)| (subnet.public_ip, subnet.peer_id));
        let values: Vec<abi::Peer> = ids().map(|(_, peer_id)| abi::Peer { peer_id }).collect();
        // As what is known of subnets: before it is written.
        self.addresses.extend(ids());
        if sys::update_batch(self.peers_fd.as_fd(), &keys, &values).is_ok() {
            return Ok(());
        }
        for (key, value) in keys.iter().zip(&values) {
            self.peers
                .insert(key, value, 0)
                .map_err(|error| BpfError::new("write map", abi::map::PEERS4, &error))?;
        }
        Ok(())
    }

    fn write_subnets(&mut self, chunk: &[(Ipv4Network, Subnet)]) -> Result<(), BpfError> {
        let keys: Vec<RawKey> = chunk.iter().map(|(network, _)| raw_key(network)).collect();
        let values: Vec<Subnet> = chunk.iter().map(|(_, subnet)| *subnet).collect();
        if sys::update_batch(self.subnets_fd.as_fd(), &keys, &values).is_ok() {
            return Ok(());
        }
        for (network, subnet) in chunk {
            let key = lpm_key(network);
            if self.subnets.insert(&key, subnet, 0).is_ok() {
                continue;
            }
            // A full trie refuses to replace, too, on some kernels.
            ignore_missing(self.subnets.remove(&key))
                .and_then(|()| self.subnets.insert(&key, subnet, 0))
                .map_err(|error| BpfError::new("write map", abi::map::SUBNETS4, &error))?;
        }
        Ok(())
    }

    pub(super) fn remove_peers(&mut self, networks: &[Ipv4Network]) -> Result<(), BpfError> {
        let mut addresses = Vec::new();
        for network in networks {
            ignore_missing(self.subnets.remove(&lpm_key(network)))
                .map_err(|error| BpfError::new("remove from map", abi::map::SUBNETS4, &error))?;
            self.bounds.gone(network);
            if let Some(subnet) = self.known.remove(network) {
                addresses.push(subnet.public_ip);
                self.free_ids.insert(subnet.peer_id);
            }
        }
        self.drop_unused_addresses(&addresses)
    }

    fn drop_unused_addresses(&mut self, candidates: &[[u8; 4]]) -> Result<(), BpfError> {
        if candidates.is_empty() {
            return Ok(());
        }
        let used: BTreeMap<[u8; 4], u32> =
            self.known.values().map(|subnet| (subnet.public_ip, subnet.peer_id)).collect();
        for address in candidates {
            let Some(&peer_id) = used.get(address) else {
                self.addresses.remove(address);
                ignore_missing(self.peers.remove(address))
                    .map_err(|error| BpfError::new("remove from map", abi::map::PEERS4, &error))?;
                continue;
            };
            // The id may have been the one that goes.
            if self.addresses.insert(*address, peer_id) != Some(peer_id) {
                self.peers
                    .insert(address, abi::Peer { peer_id }, 0)
                    .map_err(|error| BpfError::new("write map", abi::map::PEERS4, &error))?;
            }
        }
        Ok(())
    }

    fn allocate_id(&mut self) -> u32 {
        self.free_ids.pop_first().unwrap_or_else(|| {
            self.next_id += 1;
            self.next_id - 1
        })
    }

    pub(super) fn outcomes(&self) -> Result<BTreeMap<&'static str, u64>, BpfError> {
        Outcome::ALL.iter().map(|&outcome| Ok((outcome.name(), self.outcome(outcome)?))).collect()
    }

    /// One counter, summed over CPUs.
    pub(super) fn outcome(&self, outcome: Outcome) -> Result<u64, BpfError> {
        let values = self
            .stats
            .get(&(outcome as u32), 0)
            .map_err(|error| BpfError::new("read map", abi::map::STATS, &error))?;
        Ok(values.iter().sum())
    }

    /// What reads the peers' counters as they are known now.
    pub(super) fn meter(&self) -> RealMeter {
        let peers = self.known.iter().map(|(network, subnet)| (*network, subnet.peer_id));
        RealMeter { stats: Arc::clone(&self.peer_stats), peers: peers.collect() }
    }
}

impl Maps {
    /// Who has sent for peers under another address than theirs since `since`,
    /// a monotonic time in ns.
    pub(super) fn strangers(&self, since: u64) -> Result<Vec<Stranger>, BpfError> {
        let mut strangers = Vec::new();
        for entry in self.strangers.iter() {
            let (outer, stranger) =
                entry.map_err(|error| BpfError::new("read map", abi::map::STRANGERS4, &error))?;
            // Who had this id then may be another than who has it now.
            let source = Ipv4Addr::from(stranger.inner_source);
            let held = holder(&self.known, source).filter(|(_, id)| *id == stranger.peer_id);
            if stranger.time_ns >= since
                && let Some((subnet, _)) = held
            {
                strangers.push(Stranger {
                    subnet,
                    address: Ipv4Addr::from(outer),
                    source,
                    packets: stranger.packets,
                });
            }
        }
        Ok(strangers)
    }
}

/// The kernel's `struct bpf_lpm_trie_key`: the length in host order, then the address.
type RawKey = [[u8; 4]; 2];

fn raw_key(network: &Ipv4Network) -> RawKey {
    [u32::from(network.prefix()).to_ne_bytes(), network.network().octets()]
}

/// The network of a key, without the bits behind its prefix.
fn network(key: RawKey) -> Option<Ipv4Network> {
    let prefix = u8::try_from(u32::from_ne_bytes(key[0])).ok()?;
    let network = Ipv4Network::new(Ipv4Addr::from(key[1]), prefix).ok()?;
    Ipv4Network::new(network.network(), prefix).ok()
}

/// The most specific subnet with this address, and its peer's id.
fn holder(known: &BTreeMap<Ipv4Network, Subnet>, address: Ipv4Addr) -> Option<(Ipv4Network, u32)> {
    let holding = known.iter().filter(|(network, _)| network.contains(address));
    let (network, subnet) = holding.max_by_key(|(network, _)| network.prefix())?;
    Some((*network, subnet.peer_id))
}

fn lpm_key(network: &Ipv4Network) -> Key<abi::SubnetKey> {
    Key::new(u32::from(network.prefix()), network.network().octets())
}

fn peer(network: Ipv4Network, subnet: &Subnet) -> Peer {
    Peer {
        subnet: network,
        vtep_mac: MacAddr(subnet.vtep_mac),
        public_ip: Ipv4Addr::from(subnet.public_ip),
    }
}

pub(super) fn typed<T>(programs: &mut Programs, name: &'static str) -> Result<T, BpfError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = programs
        .take_map(name)
        .ok_or_else(|| BpfError::plain("find map in object", name, "it is not there"))?;
    T::try_from(map).map_err(|error| BpfError::new("open map", name, &error))
}

/// The maps that are pinned, to be pinned again when somebody has removed a pin.
pub(super) struct Pinnable(Vec<(&'static str, MapData)>);

impl Pinnable {
    /// Of maps that are still in `programs`.
    pub(super) fn of(programs: &Programs) -> Result<Self, BpfError> {
        let open = |name| {
            let data = MapData::from_fd(descriptor(programs, name)?);
            Ok((name, data.map_err(|error| BpfError::new("open map", name, &error))?))
        };
        abi::map::ALL.into_iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Pins those that are not. A pin of another map under the name goes.
    pub(super) fn pin(&self, pins: &PinDir) -> Result<(), BpfError> {
        for (name, map) in self.0.iter().filter(|(name, map)| !is_pinned(map, &pins.map(name))) {
            let path = pins.map(name);
            pinned::remove(&path)?;
            map.pin(path).map_err(|error| BpfError::new("pin map", *name, &error))?;
        }
        Ok(())
    }

    /// Whether everything is there that should be: no other map has the pin of one of these.
    pub(super) fn is_whole(&self, pins: &PinDir) -> bool {
        self.0.iter().all(|(name, map)| is_pinned(map, &pins.map(name))) && pins.links().exists()
    }
}

fn is_pinned(map: &MapData, path: &Path) -> bool {
    let id = |map: &MapData| map.info().ok().map(|info| info.id());
    let there = MapData::from_pin(path).ok().and_then(|there| id(&there));
    there.is_some() && there == id(map)
}

/// The descriptor of a map.
pub(super) fn descriptor(programs: &Programs, name: &'static str) -> Result<OwnedFd, BpfError> {
    match programs.map(name) {
        Some(
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::LpmTrie(data)
            | Map::PerCpuArray(data),
        ) => data
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| BpfError::new("open map", name, &error)),
        _ => Err(BpfError::plain("find map in object", name, "it is not there")),
    }
}

pub(super) fn ignore_missing(
    result: Result<(), aya::maps::MapError>,
) -> Result<(), aya::maps::MapError> {
    use aya::maps::MapError;
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_held_by_the_most_specific_subnet() {
        let subnet =
            |peer_id| Subnet { vtep_mac: [2; 6], flags: 0, public_ip: [192, 0, 2, 12], peer_id };
        let known = [("10.5.0.0/23", 1), ("10.5.1.0/24", 2), ("10.5.2.0/24", 3)];
        let known = known.map(|(network, id)| (network.parse().unwrap(), subnet(id))).into();
        let holder = |address: [u8; 4]| holder(&known, address.into()).map(|(_, id)| id);
        assert_eq!(holder([10, 5, 0, 9]), Some(1));
        assert_eq!(holder([10, 5, 1, 9]), Some(2), "not of the network around it");
        assert_eq!(holder([10, 5, 3, 9]), None);
    }
}
