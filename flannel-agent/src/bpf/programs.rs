//! The loaded programs by name. Where they can be pinned, an agent that is started
//! again takes them as they are: the verifier has seen them, which takes longer than
//! all else at a start.

mod pins;
mod verify;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::Map;
use aya::pin::PinError;
use aya::programs::{ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use flannel_ebpf::abi::program;

use self::pins::Of;
pub use self::pins::are_pinned;
pub(super) use self::verify::possible_cpus;
use self::verify::{make_maps, verify};
use super::aside::{self, Loading, Told};
use super::interrupted::unless_interrupted;
use super::pin::PinDir;
use super::{BpfError, Needs, ProgramOptions, object, untyped};

/// What could not be loaded is tried again after this time.
const AGAIN: Duration = Duration::from_secs(30);

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
    /// What has become of the programs that are not needed at once.
    later: Option<Later>,
}

/// Programs that are loaded after the first ones.
enum Later {
    Loading(Loading, Size),
    /// They could not be loaded, and why.
    Failed(Instant, BpfError, Size),
}

/// What else decides about an object's maps and programs.
#[derive(Clone, Copy)]
struct Size {
    flow_table: u32,
    /// With the XDP program.
    card: bool,
}

impl Size {
    fn has(self, program: &str) -> bool {
        self.card || program != program::FROM_WIRE
    }
}

impl Programs {
    /// Takes what an earlier run of this very object pinned, or loads it anew. Where another
    /// process can do that, the programs that this node does not need to begin come later:
    /// [`Self::take_later`]. `same`: all maps are those of before.
    ///
    /// # Errors
    /// A map cannot be created, or the verifier refuses a program.
    pub(super) fn open(
        object: &[u8],
        options: &ProgramOptions,
        needs: Needs,
        pins: Option<&PinDir>,
        same: bool,
    ) -> Result<Self, BpfError> {
        let size = Size { flow_table: options.flow_table_size, card: needs.card };
        let Some(pins) = pins else { return load(object, size, None).map(Self::held) };
        let of = Of::object(object, pins);
        let found = of.open(|_| true).filter(|found| same && (found.xdp.is_some() || !needs.card));
        if let Some(pinned) = found {
            tracing::debug!("programs of the run before reused");
            return Ok(Self::Pinned(Box::new(pinned)));
        }
        of.discard()?;
        if let Some(loading) = Loading::begin(options, needs)
            && let Some(pinned) = of.open(|name| needs.has(name))
        {
            let later = Some(Later::Loading(loading, size));
            return Ok(Self::Pinned(Box::new(Pinned { later, ..pinned })));
        }
        Self::load_here(object, size, pins)
    }

    /// Loads all programs in this process, and pins them.
    fn load_here(object: &[u8], size: Size, pins: &PinDir) -> Result<Self, BpfError> {
        let of = Of::object(object, pins);
        of.discard()?;
        let mut ebpf = load(object, size, Some(pins))?;
        // Programs that log have a map of their own for it.
        if ebpf.map("AYA_LOGS").is_some() {
            return Ok(Self::held(ebpf));
        }
        match of.pin(&mut ebpf, |_| true) {
            Ok(()) => match of.open(|_| true) {
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

    /// Whether this program has been loaded.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Pinned(pinned) => pinned.tc.contains_key(name),
            Self::Held(_) => true,
        }
    }

    /// Takes in the programs that came later, for which it waits `within` this time;
    /// whether there are others than before now. What another process could not load is loaded
    /// here, by which all programs are others. The maps must be among `pins`.
    ///
    /// # Errors
    /// They cannot be loaded. That is tried again from time to time.
    pub(super) fn take_later(
        &mut self,
        pins: Option<&PinDir>,
        within: Duration,
    ) -> Result<bool, BpfError> {
        let Self::Pinned(pinned) = self else { return Ok(false) };
        let size = match &mut pinned.later {
            None => return Ok(false),
            Some(Later::Failed(at, error, _)) if at.elapsed() < AGAIN => return Err(error.clone()),
            Some(Later::Failed(_, _, size)) => *size,
            Some(Later::Loading(loading, size)) => match loading
                .go_on(within > Duration::ZERO)
                .next(within)
            {
                Ok(Told::Nothing | Told::First) => return Ok(false),
                Ok(Told::Ended(true))
                    if let Some(pins) = pins
                        && Of::hash(pinned.hash, pins).add(&mut pinned.tc, |_| true).is_some() =>
                {
                    pinned.later = None;
                    return Ok(true);
                }
                told => {
                    tracing::info!(
                        ?told,
                        "program loader failed; the agent loads the programs itself"
                    );
                    *size
                }
            },
        };
        let pins = pins.ok_or_else(|| BpfError::plain("load programs", "all", "pins unavailable"));
        let loaded = pins.and_then(|pins| Self::load_here(&object::bytes()?, size, pins));
        match loaded {
            Ok(loaded) => {
                *self = loaded;
                Ok(true)
            }
            Err(error) => {
                // What is tried again and again is told once.
                if !matches!(pinned.later, Some(Later::Failed(..))) {
                    error.log_verifier();
                }
                pinned.later = Some(Later::Failed(Instant::now(), error.clone(), size));
                Err(error)
            }
        }
    }

    /// Pins those whose pins somebody has removed.
    ///
    /// # Errors
    /// One cannot be pinned.
    pub(super) fn pin_again(&mut self, pins: &PinDir) -> Result<(), BpfError> {
        let Self::Pinned(pinned) = self else { return Ok(()) };
        let of = Of::hash(pinned.hash, pins);
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

    /// Ids of the TC programs that have been loaded.
    pub(super) fn ids(&mut self) -> Result<BTreeMap<&'static str, u32>, BpfError> {
        let loaded: Vec<_> = program::ALL.into_iter().filter(|name| self.has(name)).collect();
        let id = |name| {
            let info = self.classifier(name)?.info();
            let info = info.map_err(|error| BpfError::new("inspect program", name, &error))?;
            Ok((name, info.id()))
        };
        loaded.into_iter().map(id).collect()
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

/// Loads the programs and pins them, for the agent that holds the pin directory: first those
/// that it needs to begin, of which it is told by a byte on standard output.
///
/// # Errors
/// A map cannot be created, the verifier refuses a program, it cannot be pinned, or nobody
/// waits for it any more.
pub fn load_aside(pin_dir: &Path, flow_table: u32, needs: Needs) -> Result<(), BpfError> {
    let object = object::bytes()?;
    let pins = PinDir::new(pin_dir);
    let size = Size { flow_table, card: needs.card };
    let mut ebpf = make_maps(untyped::loader(), &object, flow_table, Some(&pins))?;
    if ebpf.map("AYA_LOGS").is_some() {
        return Err(BpfError::plain("pin program", "all", "they log"));
    }
    let of = Of::object(&object, &pins);
    verify(&mut ebpf, |name| needs.has(name))?;
    of.pin(&mut ebpf, |name| needs.has(name))?;
    aside::tell_first().map_err(|error| BpfError::new("tell of", "the first programs", &error))?;
    let later = |name: &str| size.has(name) && !needs.has(name);
    verify(&mut ebpf, later)?;
    if !aside::is_awaited() {
        return Err(BpfError::plain("pin program", "all", "the agent has ended"));
    }
    of.pin(&mut ebpf, later)
}

/// Loads maps and programs.
fn load(object: &[u8], size: Size, pins: Option<&PinDir>) -> Result<Ebpf, BpfError> {
    let mut ebpf = make_maps(EbpfLoader::new(), object, size.flow_table, pins)?;
    verify(&mut ebpf, |name| size.has(name))?;
    Ok(ebpf)
}
