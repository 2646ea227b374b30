//! What the pinned maps say, read beside the daemon or without it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, Map, MapData, MapError, PerCpuArray};
use flannel_core::check::facts::{Known, Unknown};
use flannel_core::mac::MacAddr;
use flannel_ebpf::abi::{self, Outcome, Subnet};
use ipnetwork::Ipv4Network;

use super::pin::PinDir;

fn open<T>(pin_dir: &Path, name: &str, kind: impl FnOnce(Map) -> Result<T, MapError>) -> Known<T> {
    let path = PinDir::new(pin_dir).map(name);
    let failed = |error: MapError| Unknown::because(format!("{}: {error}", path.display()));
    let data = MapData::from_pin(&path).map_err(failed)?;
    Map::from_map_data(data).and_then(kind).map_err(failed)
}

/// PublicIP and VTEP MAC of the peer that has this address.
pub fn peer_of(pin_dir: &Path, address: Ipv4Addr) -> Known<Option<(Ipv4Addr, MacAddr)>> {
    let subnets: LpmTrie<_, abi::SubnetKey, Subnet> =
        open(pin_dir, abi::map::SUBNETS4, LpmTrie::try_from)?;
    match subnets.get(&Key::new(32, address.octets()), 0) {
        Ok(found) => Ok(Some((found.public_ip.into(), MacAddr(found.vtep_mac)))),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(Unknown::because(error)),
    }
}

/// Subnet of the first peer whose PublicIP lies in this network.
pub fn subnet_behind(pin_dir: &Path, underlay: Ipv4Network) -> Known<Option<Ipv4Network>> {
    let subnets: LpmTrie<_, abi::SubnetKey, Subnet> =
        open(pin_dir, abi::map::SUBNETS4, LpmTrie::try_from)?;
    for entry in subnets.iter() {
        let (key, subnet) = entry.map_err(Unknown::because)?;
        if underlay.contains(subnet.public_ip.into()) {
            let prefix = u8::try_from(key.prefix_len()).unwrap_or(u8::MAX);
            let network = Ipv4Network::new(key.data().into(), prefix);
            return network.map(Some).map_err(Unknown::because);
        }
    }
    Ok(None)
}

/// All counters of the programs.
pub fn outcomes(pin_dir: &Path) -> Known<BTreeMap<&'static str, u64>> {
    let stats: PerCpuArray<_, u64> = open(pin_dir, abi::map::STATS, PerCpuArray::try_from)?;
    let sum = |outcome: &Outcome| {
        let values = stats.get(&(*outcome as u32), 0).map_err(Unknown::because)?;
        Ok((outcome.name(), values.iter().sum()))
    };
    Outcome::ALL.iter().map(sum).collect()
}
