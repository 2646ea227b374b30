//! The loaded programs by name. Where they can be pinned, an agent that is started
//! again takes them as they are: the verifier has seen them, which takes longer than
//! all else at a start.

mod later;
mod pins;
mod verify;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use aya::maps::Map;
use aya::pin::PinError;
use aya::programs::{ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use clap::Args;
use flannel_ebpf::abi::{self, program};

use self::later::{Came, Later};
use self::pins::Of;
pub use self::pins::are_pinned;
use self::verify::{make_maps, verify};
use super::aside::{self, Ahead, Loading, Order};
use super::interrupted::unless_interrupted;
use super::pin::PinDir;
use super::{BpfError, Needs, ProgramOptions, object, untyped};

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
    /// [`Self::take_later`]. `ahead`: such a process that waits for its order. `same`: all maps
    /// are those of before.
    ///
    /// # Errors
    /// A map cannot be created, or the verifier refuses a program.
    pub(super) fn open(
        object: &[u8],
        options: &ProgramOptions,
        (needs, ahead): (Needs, Option<Ahead>),
        pins: Option<&PinDir>,
        same: bool,
    ) -> Result<Self, BpfError> {
        let size = Size { flow_table: options.flow_table_size, card: needs.card };
        let Some(pins) = pins else { return load(object, size, None).map(Self::held) };
        let of = Of::object(object, pins);
        let fits = |found: &Pinned| same && (found.xdp.is_some() || !needs.card);
        if let Some(pinned) = of.open(|_| true).filter(fits) {
            tracing::debug!("programs of the run before reused");
            return Ok(Self::Pinned(Box::new(pinned)));
        }
        let order = Order::new(options, needs);
        if let Some(pinned) = of.open(|name| needs.has(name)).filter(fits) {
            tracing::debug!("programs of the run before reused; it had no others");
            let later = Some(Later::anew(order));
            return Ok(Self::Pinned(Box::new(Pinned { later, ..pinned })));
        }
        of.discard()?;
        if let Some(loading) = Loading::begin(&order, ahead)
            && let Some(pinned) = of.open(|name| needs.has(name))
        {
            let later = Some(Later::after(loading, order));
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
    /// whether there are others than before now. Where they could not be loaded, all are loaded
    /// anew from time to time, for which it does not wait. The maps must be among `pins`.
    ///
    /// # Errors
    /// They cannot be loaded. Those that are there stay, and so do their pins.
    pub(super) fn take_later(
        &mut self,
        pins: Option<&PinDir>,
        within: Duration,
    ) -> Result<bool, BpfError> {
        let Self::Pinned(pinned) = self else { return Ok(false) };
        let Some(later) = &mut pinned.later else { return Ok(false) };
        let came = later.look(within)?;
        let of = match pins {
            _ if came == Came::Nothing => return Ok(false),
            None => return Err(later.fail(BpfError::plain("open programs", "all", "no pins"))),
            Some(pins) if came == Came::Rest => Ok(Of::hash(pinned.hash, pins)),
            Some(pins) => object::bytes().map(|object| Of::object(&object, pins)),
        };
        let opened = of.map(|of| match came {
            Came::Rest => of.add(&mut pinned.tc, |_| true),
            _ => of.open(|_| true).map(|Pinned { hash, tc, xdp, .. }| {
                (pinned.hash, pinned.tc, pinned.xdp) = (hash, tc, xdp);
            }),
        });
        match opened {
            Ok(Some(())) => {
                pinned.later = None;
                Ok(true)
            }
            Ok(None) => {
                let why = "their pins have gone, or are those of other maps";
                Err(later.fail(BpfError::plain("open programs", "all", why)))
            }
            Err(error) => Err(later.fail(error)),
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
/// that it needs to begin, of which it is told by a byte on standard output. Why that fails is
/// told there, too.
///
/// # Errors
/// A map cannot be created, the verifier refuses a program, it cannot be pinned, or nobody
/// waits for it any more.
pub fn load_aside(pin_dir: &Path, flow_table: u32, how: LoadAside) -> Result<(), BpfError> {
    load_and_pin(&PinDir::new(pin_dir), flow_table, how).inspect_err(|error| {
        // The agent has ended, if it does not hear.
        let _ = aside::tell_failure(error);
    })
}

/// How a process of its own loads programs.
#[derive(Args, Clone, Copy, Debug)]
pub struct LoadAside {
    /// Make the maps before it is known what the node needs
    #[arg(long)]
    ahead: bool,
    /// Load all, in the place of those that are pinned
    #[arg(long, conflicts_with = "ahead")]
    anew: bool,
}

fn load_and_pin(pins: &PinDir, flow_table: u32, how: LoadAside) -> Result<(), BpfError> {
    let object = object::bytes()?;
    let make = |pins| make_maps(untyped::loader(), &object, flow_table, pins);
    let early = how.ahead.then(|| make(None)).transpose()?;
    let needs = aside::needs(how.ahead)
        .map_err(|error| BpfError::new("learn of", "the programs to load", &error))?;
    let size = Size { flow_table, card: needs.card };
    let mut ebpf = match early {
        Some(early) if !pins.has_maps() => pin_maps(early, pins)?,
        _ => make(Some(pins))?,
    };
    if ebpf.map("AYA_LOGS").is_some() {
        return Err(BpfError::plain("pin program", "all", "they log"));
    }
    let of = Of::object(&object, pins);
    if how.anew {
        verify(&mut ebpf, |name| size.has(name))?;
        aside::is_still_awaited()?;
        of.discard()?;
        return of.pin(&mut ebpf, |_| true);
    }
    verify(&mut ebpf, |name| needs.has(name))?;
    of.pin(&mut ebpf, |name| needs.has(name))?;
    aside::tell_first().map_err(|error| BpfError::new("tell of", "the first programs", &error))?;
    let later = |name: &str| size.has(name) && !needs.has(name);
    verify(&mut ebpf, later)?;
    aside::is_still_awaited()?;
    of.pin(&mut ebpf, later)
}

/// Pins maps that were made without pins.
fn pin_maps(made: Ebpf, pins: &PinDir) -> Result<Ebpf, BpfError> {
    for name in abi::map::ALL {
        let map = made.map(name).ok_or_else(|| BpfError::plain("find map", name, "not made"))?;
        map.pin(pins.map(name)).map_err(|error| BpfError::new("pin map", name, &error))?;
    }
    Ok(made)
}

/// Loads maps and programs.
fn load(object: &[u8], size: Size, pins: Option<&PinDir>) -> Result<Ebpf, BpfError> {
    let mut ebpf = make_maps(EbpfLoader::new(), object, size.flow_table, pins)?;
    verify(&mut ebpf, |name| size.has(name))?;
    Ok(ebpf)
}
