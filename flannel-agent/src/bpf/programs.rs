//! The loaded programs by name. Where they can be pinned, an agent that is started
//! again takes them as they are: the verifier has seen them, which takes longer than
//! all else at a start.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::num::NonZero;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aya::maps::{Map, MapData, MapInfo};
use aya::pin::PinError;
use aya::programs::{Program, ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use aya_obj::programs::XdpAttachType;
use flannel_ebpf::abi::{self, program};

use super::aside::ask_another;
use super::interrupted::unless_interrupted;
use super::pin::PinDir;
use super::pinned::{entries, remove};
use super::{BpfError, ProgramOptions, flow_table, object, sys, untyped};

/// Beginning of the names of programs' pins.
const PREFIX: &str = "prog-";

/// All programs, and the maps until they are taken.
pub(super) enum Programs {
    /// They live as long as their pins.
    Pinned(Box<Pinned>),
    /// They go with this process.
    Held(Box<Ebpf>),
}

/// Programs that were opened by their pins.
pub(super) struct Pinned {
    hash: u64,
    tc: BTreeMap<&'static str, SchedClassifier>,
    xdp: Option<Xdp>,
    maps: BTreeMap<&'static str, Map>,
}

impl Programs {
    /// Takes what an earlier run of this very object pinned, or loads it anew.
    /// `same`: all maps are those of before. `card`: with the XDP program.
    ///
    /// # Errors
    /// A map cannot be created, or the verifier refuses a program.
    pub(super) fn open(
        object: &[u8],
        options: &ProgramOptions,
        card: bool,
        pins: Option<&PinDir>,
        same: bool,
    ) -> Result<Self, BpfError> {
        let size = options.flow_table_size;
        let Some(pins) = pins else {
            return load(EbpfLoader::new(), object, size, card, None).map(Self::held);
        };
        let of = Of { pins, hash: hash(object) };
        let found = of.open().filter(|found| same && (found.xdp.is_some() || !card));
        if let Some(pinned) = found {
            tracing::debug!("programs of the run before reused");
            return Ok(Self::Pinned(Box::new(pinned)));
        }
        of.discard()?;
        if ask_another(options, card)
            && let Some(pinned) = of.open()
        {
            return Ok(Self::Pinned(Box::new(pinned)));
        }
        of.discard()?;
        let mut ebpf = load(EbpfLoader::new(), object, size, card, Some(pins))?;
        // Programs that log have a map of their own for it.
        if ebpf.map("AYA_LOGS").is_some() {
            return Ok(Self::held(ebpf));
        }
        match of.pin(&mut ebpf) {
            Ok(()) => match of.open() {
                Some(pinned) => Ok(Self::Pinned(Box::new(pinned))),
                None => Ok(Self::held(ebpf)),
            },
            Err(error) => {
                tracing::debug!(%error, "programs not pinned; the next start loads them again");
                of.discard()?;
                Ok(Self::held(ebpf))
            }
        }
    }

    fn held(ebpf: Ebpf) -> Self {
        Self::Held(Box::new(ebpf))
    }

    /// Pins those whose pins somebody has removed.
    ///
    /// # Errors
    /// One cannot be pinned.
    pub(super) fn pin_again(&mut self, pins: &PinDir) -> Result<(), BpfError> {
        let Self::Pinned(pinned) = self else { return Ok(()) };
        let of = Of { pins, hash: pinned.hash };
        let failed =
            |name: &'static str| move |error: PinError| BpfError::new("pin program", name, &error);
        for (name, found) in &mut pinned.tc {
            let path = of.path(name);
            if !path.exists() {
                found.pin(path).map_err(failed(name))?;
            }
        }
        let path = of.path(program::FROM_WIRE);
        match &mut pinned.xdp {
            Some(found) if !path.exists() => found.pin(path).map_err(failed(program::FROM_WIRE)),
            _ => Ok(()),
        }
    }

    /// What is still held of the object.
    pub(super) fn object(&mut self) -> Option<&mut Ebpf> {
        match self {
            Self::Pinned(_) => None,
            Self::Held(ebpf) => Some(ebpf),
        }
    }

    /// A TC program, loaded.
    pub(super) fn classifier(
        &mut self,
        name: &'static str,
    ) -> Result<&mut SchedClassifier, BpfError> {
        let found = match self {
            Self::Pinned(pinned) => return pinned.tc.get_mut(name).ok_or_else(|| absent(name)),
            Self::Held(ebpf) => ebpf.program_mut(name).ok_or_else(|| absent(name))?,
        };
        found.try_into().map_err(|error: ProgramError| BpfError::new("open program", name, &error))
    }

    /// The XDP program, loaded.
    pub(super) fn xdp(&mut self) -> Result<&mut Xdp, BpfError> {
        let name = program::FROM_WIRE;
        let failed = |error: ProgramError| BpfError::new("open program", name, &error);
        let found = match self {
            Self::Pinned(pinned) => return pinned.xdp.as_mut().ok_or_else(|| absent(name)),
            Self::Held(ebpf) => ebpf.program_mut(name).ok_or_else(|| absent(name))?,
        };
        let found: &mut Xdp = found.try_into().map_err(failed)?;
        if found.fd().is_err() {
            unless_interrupted(|| found.load())
                .map_err(|error| BpfError::new("load program", name, &error))?;
        }
        Ok(found)
    }

    /// Ids of the TC programs.
    pub(super) fn ids(&mut self) -> Result<BTreeMap<&'static str, u32>, BpfError> {
        let id = |name| {
            let info = self.classifier(name)?.info();
            let info = info.map_err(|error| BpfError::new("inspect program", name, &error))?;
            Ok((name, info.id()))
        };
        program::ALL.into_iter().map(id).collect()
    }

    /// A map; each can be taken once.
    pub(super) fn take_map(&mut self, name: &str) -> Option<Map> {
        match self {
            Self::Pinned(pinned) => pinned.maps.remove(name),
            Self::Held(ebpf) => ebpf.take_map(name),
        }
    }

    /// A map that has not been taken yet.
    pub(super) fn map(&self, name: &str) -> Option<&Map> {
        match self {
            Self::Pinned(pinned) => pinned.maps.get(name),
            Self::Held(ebpf) => ebpf.map(name),
        }
    }
}

fn absent(name: &str) -> BpfError {
    BpfError::plain("find program in object", name, "it is not there")
}

/// The pins of one object's programs.
struct Of<'a> {
    pins: &'a PinDir,
    hash: u64,
}

impl Of<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.pins.map(&format!("{PREFIX}{:016x}-{name}", self.hash))
    }

    /// All programs and maps by their pins; `None` if one is missing, or belongs to
    /// other maps.
    fn open(&self) -> Option<Pinned> {
        let settings = MapInfo::from_pin(self.pins.map(abi::map::CFG)).ok()?.id();
        let mut tc = BTreeMap::new();
        for name in program::ALL {
            let found = SchedClassifier::from_pin(self.path(name)).ok()?;
            // All of them read the settings.
            if !sys::program_maps(found.fd().ok()?.as_fd()).ok()?.contains(&settings) {
                return None;
            }
            tc.insert(name, found);
        }
        let xdp = Xdp::from_pin(self.path(program::FROM_WIRE), XdpAttachType::Interface).ok();
        let map = |name| {
            let data = MapData::from_pin(self.pins.map(name)).ok()?;
            Some((name, Map::from_map_data(data).ok()?))
        };
        let maps = abi::map::ALL.into_iter().map(map).collect::<Option<_>>()?;
        Some(Pinned { hash: self.hash, tc, xdp, maps })
    }

    /// Pins them all. Those of one load belong together: they share maps that have no
    /// pins.
    fn pin(&self, ebpf: &mut Ebpf) -> Result<(), BpfError> {
        for (name, found) in ebpf.programs_mut() {
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
    fn discard(&self) -> Result<(), BpfError> {
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

/// Loads the programs and pins them, for the agent that holds the pin directory.
///
/// # Errors
/// A map cannot be created, the verifier refuses a program, or it cannot be pinned.
pub fn load_aside(pin_dir: &Path, flow_table: u32, card: bool) -> Result<(), BpfError> {
    let object = object::bytes()?;
    let pins = PinDir::new(pin_dir);
    let mut ebpf = load(untyped::loader(), &object, flow_table, card, Some(&pins))?;
    if ebpf.map("AYA_LOGS").is_some() {
        return Err(BpfError::plain("pin program", "all", "they log"));
    }
    Of { pins: &pins, hash: hash(&object) }.pin(&mut ebpf)
}

/// CPUs that may ever be there.
pub(super) fn possible_cpus() -> Result<u32, BpfError> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, error)| BpfError::new("count CPUs", path.to_owned(), &error))?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX))
}

/// A name for these bytes.
fn hash(object: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    hasher.finish()
}

/// Loads programs and maps. With `pins` maps of an earlier run are used, and new ones
/// pinned.
fn load<'a>(
    mut loader: EbpfLoader<'a>,
    object: &[u8],
    flow_table: u32,
    card: bool,
    pins: Option<&PinDir>,
) -> Result<Ebpf, BpfError> {
    // The programs read no structures of the kernel: its types would only take 20 MB
    // while they are loaded.
    loader.btf(None);
    loader.map_max_entries(abi::map::FLOWS4, flow_table::entries(flow_table)?);
    let cpus = possible_cpus()?;
    loader.map_max_entries(abi::map::TICKETS, abi::TicketNumbers::of(cpus).region(cpus));
    if let Some(pins) = pins {
        for name in abi::map::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader
        .load(object)
        .map_err(|error| BpfError::new("load maps of", "flannel-ebpf.bpf.o", &error))?;
    verify(&mut ebpf, card)?;
    Ok(ebpf)
}

/// Lets the verifier see the programs, one for each CPU at a time: each takes it long.
fn verify(ebpf: &mut Ebpf, with_xdp: bool) -> Result<(), BpfError> {
    let mut waiting: Vec<_> =
        ebpf.programs_mut().filter(|(name, _)| with_xdp || *name != program::FROM_WIRE).collect();
    waiting.sort_by_key(|(name, _)| Reverse(turn(name)));
    let waiting = Mutex::new(waiting);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let verify_all =
        || std::iter::from_fn(next).try_for_each(|(name, found)| load_one(name, found));
    let at_once = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..at_once).map(|_| scope.spawn(verify_all)).collect();
        let ended = started.into_iter().map(|thread| match thread.join() {
            Ok(verified) => verified,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.fold(Ok(()), Result::and)
    })
}

/// When the verifier sees a program: those that take it longest come first, or the last
/// one would keep the others' CPUs waiting. The order is that of
/// `flannel-ebpf/prebuilt/COMPLEXITY`.
fn turn(name: &str) -> usize {
    const SLOW: [&str; 4] =
        [program::FROM_UNDERLAY, program::TO_OVERLAY, program::FROM_POD, program::TO_POD];
    SLOW.iter().position(|slow| *slow == name).unwrap_or(SLOW.len())
}

/// One that refuses the XDP program takes nothing else away.
fn load_one(name: &str, found: &mut Program) -> Result<(), BpfError> {
    let loaded = match found {
        Program::SchedClassifier(found) => unless_interrupted(|| found.load()),
        Program::Xdp(found) => unless_interrupted(|| found.load()),
        _ => Ok(()),
    };
    let loaded = loaded.map_err(|error| BpfError::new("load program", name, &error));
    match loaded {
        Err(error) if name == program::FROM_WIRE => {
            tracing::info!(%error, "XDP unavailable");
            Ok(())
        }
        loaded => loaded,
    }
}

#[cfg(test)]
mod tests {
    use super::turn;

    /// Instructions that the newest of the table's kernels goes through.
    fn verified() -> Vec<(&'static str, u32)> {
        let table = include_str!("../../../flannel-ebpf/prebuilt/COMPLEXITY");
        let rows = table.lines().filter(|line| !line.starts_with(['#', ' ']));
        rows.filter_map(|row| {
            let mut words = row.split_whitespace();
            Some((words.next()?, words.next_back()?.parse().ok()?))
        })
        .collect()
    }

    #[test]
    fn what_takes_the_verifier_longest_comes_first() {
        let programs = verified();
        assert!(programs.len() > 5, "{programs:?}");
        for (name, cost) in &programs {
            let later = programs.iter().filter(|(other, _)| turn(other) > turn(name));
            for (other, less) in later {
                assert!(less < cost, "{other} takes longer than {name}");
            }
        }
    }
}
