//! The programs' maps, as the programs read them.

use aya::maps::{Array, Map, MapData};
use flannel_ebpf::abi::{ABI_VERSION, Config, Exemption, map};

use crate::node::Node;

impl Node {
    /// The pinned map of this name.
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn map(&self, name: &str) -> MapData {
        let path = self.pin_dir().join(format!("v{ABI_VERSION}")).join(name);
        MapData::from_pin(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The programs' settings.
    ///
    /// # Panics
    /// There are none.
    #[track_caller]
    pub fn config(&self) -> Config {
        let map: Array<_, Config> = Map::Array(self.map(map::CFG)).try_into().expect("an array");
        map.get(&0, 0).expect("the settings")
    }

    /// What the programs leave to the kernel because of rules.
    ///
    /// # Panics
    /// There are no programs.
    #[track_caller]
    pub fn exemptions(&self) -> Vec<Exemption> {
        let all = Map::Array(self.map(map::EXEMPTIONS));
        let all: Array<_, Exemption> = all.try_into().expect("an array");
        let count = self.config().exemptions;
        (0..count).map(|index| all.get(&index, 0).expect("an exemption")).collect()
    }
}
