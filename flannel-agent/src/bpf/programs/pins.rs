//! The pins of the programs: an agent that is started again takes what they name.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{Map, MapData, MapInfo};
use aya::programs::{Program, SchedClassifier, Xdp};
use aya_obj::programs::XdpAttachType;
use flannel_ebpf::abi::{self, program};

use super::Pinned;
use crate::bpf::pin::PinDir;
use crate::bpf::pinned::{entries, remove};
use crate::bpf::{BpfError, sys};

/// Beginning of the names of programs' pins.
const PREFIX: &str = "prog-";

/// The pins of one object's programs.
pub(super) struct Of<'a> {
    pins: &'a PinDir,
    hash: u64,
}

impl<'a> Of<'a> {
    pub(super) fn object(object: &[u8], pins: &'a PinDir) -> Self {
        let mut hasher = DefaultHasher::new();
        object.hash(&mut hasher);
        Self { pins, hash: hasher.finish() }
    }

    pub(super) fn hash(hash: u64, pins: &'a PinDir) -> Self {
        Self { pins, hash }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.pins.map(&format!("{PREFIX}{:016x}-{name}", self.hash))
    }

    /// Wanted programs and all maps by their pins; `None` if one is missing, or belongs to
    /// other maps.
    pub(super) fn open(&self, wanted: impl Fn(&str) -> bool) -> Option<Pinned> {
        let mut tc = BTreeMap::new();
        self.add(&mut tc, wanted)?;
        let xdp = Xdp::from_pin(self.path(program::FROM_WIRE), XdpAttachType::Interface).ok();
        let map = |name| {
            let data = MapData::from_pin(self.pins.map(name)).ok()?;
            Some((name, Map::from_map_data(data).ok()?))
        };
        let maps = abi::map::ALL.into_iter().map(map).collect::<Option<_>>()?;
        Some(Pinned { hash: self.hash, tc, xdp, maps, later: None })
    }

    /// Opens the TC programs among the wanted that are not open yet; `None` as above.
    pub(super) fn add(
        &self,
        tc: &mut BTreeMap<&'static str, SchedClassifier>,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<()> {
        let settings = MapInfo::from_pin(self.pins.map(abi::map::CFG)).ok()?.id();
        let missing = |name: &&str| wanted(name) && !tc.contains_key(name);
        let missing: Vec<_> = program::ALL.into_iter().filter(missing).collect();
        for name in missing {
            let found = SchedClassifier::from_pin(self.path(name)).ok()?;
            // All of them read the settings.
            if !sys::program_maps(found.fd().ok()?.as_fd()).ok()?.contains(&settings) {
                return None;
            }
            tc.insert(name, found);
        }
        Some(())
    }

    /// Pins those that have been loaded and are wanted. Those of one load belong together:
    /// they share maps that have no pins.
    pub(super) fn pin(
        &self,
        ebpf: &mut Ebpf,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), BpfError> {
        for (name, found) in ebpf.programs_mut().filter(|(name, _)| wanted(name)) {
            let path = self.path(name);
            let failed = |error: &(dyn std::error::Error + 'static)| {
                BpfError::new("pin program", name, error)
            };
            match found {
                Program::SchedClassifier(found) => {
                    found.pin(&path).map_err(|error| failed(&error))?;
                }
                Program::Xdp(found) if found.fd().is_ok() => {
                    found.pin(&path).map_err(|error| failed(&error))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the pins of all objects' programs.
    pub(super) fn discard(&self) -> Result<(), BpfError> {
        pinned(self.pins).iter().try_for_each(|path| remove(path))
    }
}

/// The pins of all objects' programs.
fn pinned(pins: &PinDir) -> Vec<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|n| n.starts_with(PREFIX))
    };
    entries(pins.version()).into_iter().filter(is_program).collect()
}

/// Whether an earlier run has left programs: they may be there at once.
pub fn are_pinned(pin_dir: &Path) -> bool {
    !pinned(&PinDir::new(pin_dir)).is_empty()
}
