//! What the pinned maps say, read beside the daemon or without it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use flannel_core::check::facts::{Known, Unknown};
use flannel_core::mac::MacAddr;
use flannel_core::trace::facts as trace;
use flannel_ebpf::abi::{self, Flow, FlowKey, Outcome, Subnet, direction, state};

use super::attendance::monotonic_ns;
use super::pin::PinDir;

/// Which flows are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// IP protocol.
    pub protocol: u8,
    /// Port of the server's side, whichever that is.
    pub port: Option<u16>,
}

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

/// Entries of the flow table.
pub fn flows(pin_dir: &Path, wanted: Wanted) -> Known<Vec<trace::Flow>> {
    let flows: HashMap<_, FlowKey, Flow> = open(pin_dir, abi::map::FLOWS4, HashMap::try_from)?;
    let now = monotonic_ns().map_err(Unknown::because)?;
    let mut found = Vec::new();
    // Entries come and go meanwhile; those that fail have gone.
    for key in flows.keys().filter_map(Result::ok).filter(|key| is_wanted(key, wanted)) {
        let Ok(flow) = flows.get(&key, 0) else { continue };
        found.push(trace::Flow {
            sport: u16::from_be_bytes(key.tuple.sport),
            dport: u16::from_be_bytes(key.tuple.dport),
            confirmed: flow.state == state::CONFIRMED && flow.time_ns > now,
            kept: flow.state == state::KEPT,
        });
    }
    Ok(found)
}

fn is_wanted(key: &FlowKey, wanted: Wanted) -> bool {
    let tuple = &key.tuple;
    let port = |port: [u8; 2]| wanted.port == Some(u16::from_be_bytes(port));
    tuple.saddr == wanted.source.octets()
        && tuple.daddr == wanted.destination.octets()
        && key.proto == wanted.protocol
        && matches!(key.direction, direction::OUT | direction::IN)
        && (wanted.port.is_none() || port(tuple.sport) || port(tuple.dport))
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

#[cfg(test)]
mod tests {
    use flannel_ebpf::abi::Tuple4;

    use super::*;

    #[test]
    fn flows_are_known_by_addresses_and_either_port() {
        let wanted = Wanted {
            source: [10, 5, 1, 2].into(),
            destination: [10, 5, 2, 2].into(),
            protocol: 6,
            port: Some(80),
        };
        let tuple = Tuple4 {
            saddr: [10, 5, 1, 2],
            daddr: [10, 5, 2, 2],
            sport: 40_000u16.to_be_bytes(),
            dport: 80u16.to_be_bytes(),
        };
        let key = FlowKey { tuple, proto: 6, direction: 1, reserved: [0; 2] };
        assert!(is_wanted(&key, wanted));
        assert!(!is_wanted(&FlowKey { tuple: tuple.reversed(), ..key }, wanted));
        assert!(!is_wanted(&FlowKey { proto: 17, ..key }, wanted));
        assert!(!is_wanted(&key, Wanted { port: Some(81), ..wanted }));
        assert!(is_wanted(&key, Wanted { port: None, ..wanted }));
        let pair = FlowKey { direction: direction::PAIR_OUT, ..key };
        assert!(!is_wanted(&pair, wanted), "no connection of its own");
    }
}
