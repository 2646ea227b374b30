//! Watches the programs of the packet path: others run before and behind each of them, as
//! long as a [`Monitor`] lives. Nothing is pinned: what it attached goes with its process,
//! however that ends.

mod layout;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{ProgramInfo, ProgramType, loaded_programs};
use aya::sys::is_program_supported;
use aya_obj::Object;
use aya_obj::generated::bpf_insn;
use flannel_core::trace::ByHook;
use flannel_ebpf::abi::{self, Config, OUTCOMES, Outcome};
use flannel_ebpf::monitor::{self, Desk, Event, Filter, HOOKS, Net, Settings, watcher};
use zerocopy::FromBytes as _;

use super::pin::PinDir;
use super::sys::watcher::{End, Watcher, attach, first_function, load};
use super::{BpfError, unless_interrupted};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../flannel-ebpf/prebuilt/flannel-monitor.bpf.o"
));

/// What it takes, said with each refusal.
const HINT: &str = "it takes Linux 5.19 with BTF and BPF trampolines, CAP_SYS_ADMIN, and \
                    no lockdown for confidentiality";

/// Takes no packet: no address has bits outside its mask.
const NOTHING: Filter = {
    let none = Net { address: [255; 4], mask: [0; 4] };
    Filter { pod: none, peer: [none; 2], port: [0; 2], proto: 0, reserved: 0 }
};

/// Values of the settings and of a CPU's notes, as bytes.
type SettingsBytes = [u8; size_of::<Settings>()];
type DeskBytes = [u8; size_of::<Desk>()];

/// The watchers, and what they tell.
pub struct Monitor {
    entered: Vec<bpf_insn>,
    left: Vec<bpf_insn>,
    license: CString,
    /// Id of the packet path's settings: by this its programs are known.
    config: u32,
    events: RingBuf<MapData>,
    desks: PerCpuArray<MapData, DeskBytes>,
    counts: PerCpuArray<MapData, u64>,
    /// Links by the watched program's id. They end with this.
    links: BTreeMap<u32, [OwnedFd; 2]>,
    /// What the watchers read.
    settings: Array<MapData, SettingsBytes>,
    /// What they are to look at, once all of them are there.
    wanted: Option<Settings>,
    _stats: MapData,
}

/// The settings of the packet path that is pinned below a `--pin-dir`.
///
/// # Errors
/// Nothing is pinned there, or it may not be read.
pub fn config(pin_dir: &Path) -> Result<Config, BpfError> {
    let map: Array<_, Config> = opened(pinned(pin_dir, abi::map::CFG)?, abi::map::CFG)?;
    map.get(&0, 0).map_err(|error| BpfError::new("read map", abi::map::CFG, &error))
}

/// Whether programs can watch others here, by trying.
///
/// # Errors
/// They cannot: with the reason.
pub fn possible() -> Result<(), BpfError> {
    let (step, object) = ("try", "a program that watches another (fentry)");
    match is_program_supported(ProgramType::Tracing) {
        Ok(true) => Ok(()),
        Ok(false) => Err(BpfError::plain(step, object, "the kernel has none").with_hint(HINT)),
        Err(error) => Err(BpfError::new(step, object, &error).with_hint(HINT)),
    }
}

impl Monitor {
    /// For the packet path that is pinned below this `--pin-dir`. Its programs are not
    /// watched before [`Monitor::attach`]. The layout is looked up.
    ///
    /// # Errors
    /// Nothing is pinned there, or the kernel lacks something.
    pub fn open(pin_dir: &Path, settings: Settings) -> Result<Self, BpfError> {
        let config = pinned(pin_dir, abi::map::CFG)?;
        Self::of(&config, pinned(pin_dir, abi::map::STATS)?, settings)
    }

    /// For the packet path with these two maps: settings and counters.
    ///
    /// # Errors
    /// The kernel lacks something.
    pub fn of(config: &MapData, stats: MapData, settings: Settings) -> Result<Self, BpfError> {
        let id = config.info().map(|info| info.id());
        let config = id.map_err(|error| BpfError::new("inspect map", abi::map::CFG, &error))?;
        possible()?;
        let settings = Settings { layout: layout::read()?, ..settings };
        let mut object = Object::parse(OBJECT)
            .map_err(|error| BpfError::new("parse object", "flannel-monitor.bpf.o", &error))?;
        let mut own = own_maps(&object)?;
        relocate(&mut object, &own, &stats)?;
        let mut take = |name| {
            own.remove(name)
                .ok_or_else(|| BpfError::plain("find map in object", name, "it is not there"))
        };
        let mut monitor = Self {
            entered: instructions(&object, watcher::ENTERED)?,
            left: instructions(&object, watcher::LEFT)?,
            license: object.license,
            config,
            events: opened(take(monitor::map::EVENTS)?, monitor::map::EVENTS)?,
            desks: opened(take(monitor::map::DESK)?, monitor::map::DESK)?,
            counts: opened(take(monitor::map::COUNTS)?, monitor::map::COUNTS)?,
            links: BTreeMap::new(),
            settings: opened(take(monitor::map::SETTINGS)?, monitor::map::SETTINGS)?,
            wanted: Some(settings),
            _stats: stats,
        };
        monitor.look_for(Settings { filter: NOTHING, ..settings })?;
        Ok(monitor)
    }

    /// Says what the watchers are to look at.
    fn look_for(&mut self, settings: Settings) -> Result<(), BpfError> {
        let bytes: SettingsBytes = zerocopy::transmute!(settings);
        let written = self.settings.set(0, bytes, 0);
        written.map_err(|error| BpfError::new("write map", monitor::map::SETTINGS, &error))
    }

    /// Looks at no packet any more. What was told already is there to be read.
    ///
    /// # Errors
    /// The settings cannot be written.
    pub fn stop(&mut self) -> Result<(), BpfError> {
        self.look_for(Settings { filter: NOTHING, ..Settings::default() })
    }

    /// Watches those programs that are not watched yet: a new agent brings new ones.
    /// Returns how many are watched. The first time, packets are looked at only when all
    /// are: until then some hooks would tell of them and others not.
    ///
    /// # Errors
    /// One cannot be watched.
    pub fn attach(&mut self) -> Result<usize, BpfError> {
        for found in loaded_programs() {
            // One may go while it is looked at.
            let Ok(found) = found else { continue };
            let name = found.name_as_str();
            let Some(hook) = HOOKS.iter().position(|hook| name == Some(hook)) else { continue };
            let maps = found.map_ids().ok().flatten().unwrap_or_default();
            if !self.links.contains_key(&found.id()) && maps.contains(&self.config) {
                let links = self.watch(&found, hook)?;
                self.links.insert(found.id(), links);
            }
        }
        if let Some(wanted) = self.wanted.take() {
            self.look_for(wanted)?;
        }
        Ok(self.links.len())
    }

    /// The end first: it tells only what both ends saw.
    fn watch(&self, target: &ProgramInfo, hook: usize) -> Result<[OwnedFd; 2], BpfError> {
        let what = || format!("the program {}", HOOKS[hook]);
        let refused =
            |error: &(dyn std::error::Error + 'static)| BpfError::new("watch", what(), error);
        let fd = target.fd().map_err(|error| refused(&error))?;
        let fd = fd.as_fd();
        let function = first_function(fd).map_err(|error| {
            refused(&error)
                .with_hint("it was loaded without BTF, which the kernel lacks or refused")
        })?;
        let start = |name, instructions, end| {
            let watcher = Watcher { name, instructions, license: &self.license, end };
            let mut loaded = None;
            unless_interrupted(|| load(watcher, fd, function).map(|fd| loaded = Some(fd)))
                .map_err(|error| refused(&error).with_hint(HINT))?;
            let loaded = loaded.ok_or_else(|| BpfError::plain("watch", what(), "not loaded"))?;
            attach(&loaded, end, hook as u64).map_err(|error| refused(&error).with_hint(HINT))
        };
        let left = start(watcher::LEFT, &self.left, End::Exit)?;
        let entered = start(watcher::ENTERED, &self.entered, End::Entry)?;
        Ok([entered, left])
    }

    /// What was told since the last call, `most` packets at most: they may come faster than
    /// somebody reads.
    pub fn events(&mut self, most: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < most
            && let Some(item) = self.events.next()
        {
            events.extend(Event::read_from_bytes(&item));
        }
        events
    }

    /// Packets that were wanted but not told, because there were too many.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn missed(&self) -> Result<u64, BpfError> {
        let desks = self.desks.get(&0, 0);
        let desks = desks.map_err(|error| BpfError::new("read map", monitor::map::DESK, &error))?;
        let missed = |bytes: &DeskBytes| {
            let desk: Desk = zerocopy::transmute!(*bytes);
            desk.missed
        };
        Ok(desks.iter().map(missed).sum())
    }

    /// Packets by hook and outcome, without what was never counted.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counts(&self) -> Result<ByHook, BpfError> {
        let mut counts = ByHook::new();
        for (hook, name) in (0..).zip(HOOKS) {
            for (outcome, known) in (0..OUTCOMES).zip(Outcome::ALL) {
                let index = monitor::count_index(hook, outcome);
                let values = self.counts.get(&index, 0);
                let values = values
                    .map_err(|error| BpfError::new("read map", monitor::map::COUNTS, &error))?;
                let sum: u64 = values.iter().sum();
                if sum != 0 {
                    let here = counts.entry(name.to_owned()).or_default();
                    here.insert(known.name().to_owned(), sum);
                }
            }
        }
        Ok(counts)
    }
}

fn pinned(pin_dir: &Path, name: &'static str) -> Result<MapData, BpfError> {
    let path = PinDir::new(pin_dir).map(name);
    MapData::from_pin(&path).map_err(|error| {
        BpfError::new("open pinned map", path.display().to_string(), &error).with_hint(
            "the kernel path carries all, the programs run without pins, or --pin-dir is another",
        )
    })
}

fn opened<T: TryFrom<Map, Error = MapError>>(
    data: MapData,
    name: &'static str,
) -> Result<T, BpfError> {
    let map = Map::from_map_data(data).and_then(T::try_from);
    map.map_err(|error| BpfError::new("open map", name, &error))
}

/// Makes the maps that are not the packet path's.
fn own_maps(object: &Object) -> Result<HashMap<&'static str, MapData>, BpfError> {
    let create = |name: &'static str| {
        let map = object.maps.get(name).cloned();
        let mut map =
            map.ok_or_else(|| BpfError::plain("find map in object", name, "it is not there"))?;
        // The object's BTF, to which these point, is not loaded.
        if let aya_obj::Map::Btf(map) = &mut map {
            (map.def.btf_key_type_id, map.def.btf_value_type_id) = (0, 0);
        }
        let made = MapData::create(map, name, None);
        Ok((name, made.map_err(|error| BpfError::new("create map", name, &error))?))
    };
    monitor::map::OWN.into_iter().map(create).collect()
}

/// Puts the maps' descriptors into the instructions, and the functions behind the
/// programs that call them.
fn relocate(
    object: &mut Object,
    own: &HashMap<&'static str, MapData>,
    stats: &MapData,
) -> Result<(), BpfError> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        BpfError::new("relocate", "flannel-monitor.bpf.o", error)
    };
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let maps = object.maps.clone();
    let all = own.iter().map(|(name, data)| (*name, data)).chain([(abi::map::STATS, stats)]);
    let descriptors =
        all.filter_map(|(name, data)| Some((name, data.fd().as_fd().as_raw_fd(), maps.get(name)?)));
    object.relocate_maps(descriptors, &text).map_err(|error| failed(&error))?;
    object.relocate_calls(&text).map_err(|error| failed(&error))
}

fn instructions(object: &Object, name: &str) -> Result<Vec<bpf_insn>, BpfError> {
    let function =
        object.programs.get(name).and_then(|program| object.functions.get(&program.function_key()));
    function
        .map(|function| function.instructions.clone())
        .ok_or_else(|| BpfError::plain("find program in object", name, "it is not there"))
}

#[cfg(test)]
mod tests {
    use flannel_ebpf::monitor::Packet;

    use super::NOTHING;

    #[test]
    fn before_the_start_and_after_the_end_no_packet_is_taken() {
        for address in [[0; 4], [10, 5, 1, 2], [255; 4]] {
            let packet = Packet {
                source: address,
                destination: address,
                outer_source: address,
                outer_destination: address,
                tunnel: 1,
                ..Packet::default()
            };
            assert!(!NOTHING.takes(&packet), "{address:?}");
        }
    }
}
