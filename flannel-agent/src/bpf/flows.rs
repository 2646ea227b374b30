//! The flow table as it is pinned, for readers beside the agent, or without one.

use std::collections::HashSet;
use std::path::Path;

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use flannel_core::flows::View;
use flannel_ebpf::abi::{self, Attendance, Config, Flow, FlowKey, Subnet, Veth};
use ipnetwork::Ipv4Network;

use super::BpfError;
use super::clock::monotonic_ns;
use super::pin::PinDir;

/// The pinned maps that tell of flows.
pub struct PinnedFlows {
    flows: HashMap<MapData, FlowKey, Flow>,
    config: Array<MapData, Config>,
    attendance: Array<MapData, Attendance>,
    veths: HashMap<MapData, u32, Veth>,
    subnets: LpmTrie<MapData, abi::SubnetKey, Subnet>,
    /// Entries that the table has room for.
    room: usize,
}

impl PinnedFlows {
    /// Opens the maps below this `--pin-dir`.
    ///
    /// # Errors
    /// A map is not pinned there, is of another version, or may not be opened.
    pub fn open(pin_dir: &Path) -> Result<Self, BpfError> {
        let pins = PinDir::new(pin_dir);
        let flows = data(&pins, abi::map::FLOWS4)?;
        let room = flows.info().map_err(|error| failed(abi::map::FLOWS4, &error))?.max_entries();
        Ok(Self {
            flows: typed(abi::map::FLOWS4, Map::LruHashMap(flows))?,
            config: typed(abi::map::CFG, Map::Array(data(&pins, abi::map::CFG)?))?,
            attendance: typed(abi::map::ATTENDED, Map::Array(data(&pins, abi::map::ATTENDED)?))?,
            veths: typed(abi::map::VETHS, Map::HashMap(data(&pins, abi::map::VETHS)?))?,
            subnets: typed(abi::map::SUBNETS4, Map::LpmTrie(data(&pins, abi::map::SUBNETS4)?))?,
            room: usize::try_from(room).unwrap_or(usize::MAX),
        })
    }

    /// What entries are judged by.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn view(&self) -> Result<View, BpfError> {
        let veths = self.veths.iter().collect::<Result<_, _>>();
        let mut peers = std::collections::HashMap::new();
        for entry in self.subnets.iter() {
            let (key, subnet) = entry.map_err(|error| failed(abi::map::SUBNETS4, &error))?;
            let prefix = u8::try_from(key.prefix_len()).unwrap_or(u8::MAX);
            if let Ok(network) = Ipv4Network::new(key.data().into(), prefix) {
                peers.insert(subnet.peer_id, network);
            }
        }
        Ok(View {
            now: monotonic_ns()?,
            config: self.config.get(&0, 0).map_err(|error| failed(abi::map::CFG, &error))?,
            attendance: self
                .attendance
                .get(&0, 0)
                .map_err(|error| failed(abi::map::ATTENDED, &error))?,
            veths: veths.map_err(|error| failed(abi::map::VETHS, &error))?,
            peers,
        })
    }

    /// All entries. The programs go on meanwhile: some may be missing.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn entries(&self) -> Result<Vec<(FlowKey, Flow)>, BpfError> {
        let mut seen = HashSet::new();
        let mut entries = Vec::new();
        // The kernel begins anew where an entry goes that was read last.
        for entry in self.flows.iter().take(self.room.saturating_mul(2)) {
            let (key, flow) = entry.map_err(|error| failed(abi::map::FLOWS4, &error))?;
            if seen.insert(key) {
                entries.push((key, flow));
            }
        }
        Ok(entries)
    }
}

fn data(pins: &PinDir, name: &'static str) -> Result<MapData, BpfError> {
    let path = pins.map(name);
    MapData::from_pin(&path).map_err(|error| {
        BpfError::new("open pinned map", path.display().to_string(), &error).with_hint(
            "the kernel path carries all, the programs run without pins, or --pin-dir is another",
        )
    })
}

fn typed<T: TryFrom<Map, Error = MapError>>(name: &'static str, map: Map) -> Result<T, BpfError> {
    T::try_from(map).map_err(|error| failed(name, &error))
}

fn failed(name: &'static str, error: &MapError) -> BpfError {
    BpfError::new("read map", name, error)
}
