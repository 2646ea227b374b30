//! What may be told to the programs at any time, whatever else is being done
//! with them: attaching many hooks takes seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{HashMap, MapData};
use flannel_core::envelope::{Keep, PodVeth, Tcx, TcxProgram};
use flannel_core::limits::{Destination, TunnelEnd};
use flannel_ebpf::abi::{self, Config, Veth, flag};

use super::BpfError;
use super::answers::TcxAnswers;
use super::maps::{Bounded, Maps, Which, descriptor, ignore_missing, typed};
use super::programs::Programs;
use super::settings::ConfigMap;
use super::sys::{self, Attached, TcxHook, program_name};
use super::walk;

/// Entries that one call reads.
const BATCH: usize = 1024;
/// So few veths are looked up one by one. To read their map as a whole is to go through all
/// of its 4,096 buckets, however few entries there are.
const FEW: usize = 64;
/// Entries that somebody added are looked for each so many times, as in the maps of peers.
const ADDED_EVERY: u32 = 5;

/// The verbs that need no lock of the data path. The real one is
/// `RealTeller`, the one for tests `fake::FakeDatapath`.
pub trait Teller: Send {
    /// Ends every confirmation: the decision of the kernel may have changed.
    ///
    /// # Errors
    /// The map cannot be written.
    fn raise_generation(&mut self) -> Result<(), BpfError>;

    /// Makes exactly these veths known, as far as they have entries. Ends every
    /// confirmation if one was known otherwise.
    ///
    /// # Errors
    /// The map cannot be written.
    fn set_veths(&mut self, veths: &[PodVeth]) -> Result<(), BpfError>;

    /// Says which ways are the kernel's. Ends every confirmation if they were
    /// others before.
    ///
    /// # Errors
    /// The map cannot be written.
    fn set_keep(&mut self, keep: Keep) -> Result<(), BpfError>;

    /// Says how large packets to peers may be, which `bound` gives of each of them; `None`
    /// where no route has an MTU of its own. Ends every confirmation if something
    /// changed, and gives what there is now.
    ///
    /// # Errors
    /// The map cannot be written.
    fn bound_peers(
        &mut self,
        which: Which,
        bound: Option<&mut dyn FnMut(Destination, TunnelEnd) -> Option<u16>>,
    ) -> Result<Option<Bounded>, BpfError>;

    /// The tcx programs of a device; none where the kernel has no tcx.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn tcx(&self, ifindex: u32) -> Result<Tcx, BpfError>;
}

/// By what the kernel finds the way of tunnel packets, besides the peer's address.
pub(super) fn tunnel_end(config: &Config) -> TunnelEnd {
    TunnelEnd {
        source: config.local_ip.into(),
        port: u16::from_be_bytes(config.port),
        vrf: config.underlay_vrf,
    }
}

/// Whether a program of this name is an agent's.
fn is_agents(name: &str) -> bool {
    abi::program::ALL.contains(&name)
}

/// The maps that are told of devices.
#[derive(Clone)]
pub(super) struct RealTeller {
    settings: ConfigMap,
    maps: Arc<Mutex<Maps>>,
    veths: Arc<Mutex<Veths>>,
    ours: Arc<Ours>,
    answers: TcxAnswers,
}

/// The map of veths.
struct Veths {
    map: HashMap<MapData, u32, Veth>,
    /// The same map, to be read at once.
    descriptor: OwnedFd,
    /// What it was told, if that worked.
    told: Option<BTreeMap<u32, Veth>>,
    looks: u32,
}

impl Veths {
    fn of(map: HashMap<MapData, u32, Veth>, descriptor: OwnedFd) -> Self {
        Self { map, descriptor, told: None, looks: 0 }
    }

    /// What the map has: of what it was told and is to be told now, or of everything.
    fn read(&mut self, wanted: &BTreeMap<u32, Veth>) -> io::Result<BTreeMap<u32, Veth>> {
        let map = self.descriptor.as_fd();
        self.looks = (self.looks + 1) % ADDED_EVERY;
        let few = |told: &BTreeMap<u32, Veth>| told.len() + wanted.len() <= FEW;
        let Some(told) = self.told.take().filter(|told| self.looks != 0 && few(told)) else {
            return Ok(walk::all(map, BATCH)?.into_iter().collect());
        };
        let keys: BTreeSet<u32> = told.into_keys().chain(wanted.keys().copied()).collect();
        let entry = |key| Ok(sys::lookup_element(map, &key)?.map(|veth| (key, veth)));
        keys.into_iter().map(entry).filter_map(Result::transpose).collect()
    }
}

/// What is this agent's on a hook.
#[derive(Default)]
struct Ours {
    /// Ids of our programs.
    programs: Mutex<BTreeSet<u32>>,
    /// Ids of the links that an earlier run has pinned. Until each gets our program, it
    /// holds that of a run before, which is nobody else's.
    links: BTreeSet<u32>,
}

impl Ours {
    fn programs(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, found: Attached) -> bool {
        self.programs().contains(&found.program) || self.links.contains(&found.link)
    }
}

impl RealTeller {
    pub(super) fn take(
        programs: &mut Programs,
        settings: ConfigMap,
        maps: Arc<Mutex<Maps>>,
        (links, answers): (BTreeSet<u32>, TcxAnswers),
    ) -> Result<Self, BpfError> {
        let whole = descriptor(programs, abi::map::VETHS)?;
        let veths = Veths::of(typed(programs, abi::map::VETHS)?, whole);
        let ours = Arc::new(Ours { links, ..Ours::default() });
        Ok(Self { settings, maps, veths: Arc::new(Mutex::new(veths)), ours, answers })
    }

    /// These programs are ours, too.
    pub(super) fn know(&self, ids: impl IntoIterator<Item = u32>) {
        self.ours.programs().extend(ids);
    }

    fn veths(&self) -> MutexGuard<'_, Veths> {
        self.veths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn programs(&self, ifindex: u32, hook: TcxHook) -> Result<Vec<TcxProgram>, BpfError> {
        let program = |found: Attached| {
            let ours = self.ours.has(found);
            let another_agents =
                !ours && program_name(found.program).is_ok_and(|name| is_agents(&name));
            TcxProgram { id: found.program, ours, another_agents }
        };
        match self.answers.ask(ifindex, hook) {
            Ok(ids) => Ok(ids.into_iter().map(program).collect()),
            // No tcx here, or the device has gone.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
                Ok(Vec::new())
            }
            Err(error) => {
                Err(BpfError::new("query tcx hooks of", format!("interface {ifindex}"), &error))
            }
        }
    }
}

impl Teller for RealTeller {
    fn raise_generation(&mut self) -> Result<(), BpfError> {
        self.settings.raise_generation()
    }

    fn set_veths(&mut self, veths: &[PodVeth]) -> Result<(), BpfError> {
        let failed = |step| move |error| BpfError::new(step, abi::map::VETHS, &error);
        let wanted: BTreeMap<u32, Veth> =
            veths.iter().filter_map(|veth| Some((veth.ifindex, veth.value()?))).collect();
        let mut veths = self.veths();
        let known = veths
            .read(&wanted)
            .map_err(|error| BpfError::new("read map", abi::map::VETHS, &error))?;
        // Those that have gone make room first.
        for ifindex in known.keys().filter(|ifindex| !wanted.contains_key(ifindex)) {
            ignore_missing(veths.map.remove(ifindex)).map_err(failed("remove from map"))?;
        }
        let mut changed = false;
        for (ifindex, value) in &wanted {
            let before = known.get(ifindex);
            if before != Some(value) {
                veths.map.insert(ifindex, value, 0).map_err(failed("write map"))?;
                changed |= before.is_some();
            }
        }
        veths.told = Some(wanted);
        drop(veths);
        if changed { self.raise_generation() } else { Ok(()) }
    }

    fn set_keep(&mut self, keep: Keep) -> Result<(), BpfError> {
        self.settings.replace(|old| {
            let flags = old.flags & !Keep::MASK | keep.bits();
            // The card's program must strip nothing that the kernel has to see.
            let cleared = if keep.inward { flag::XDP } else { 0 };
            Config { flags: flags & !cleared, ..old }
        })
    }

    fn bound_peers(
        &mut self,
        which: Which,
        bound: Option<&mut dyn FnMut(Destination, TunnelEnd) -> Option<u16>>,
    ) -> Result<Option<Bounded>, BpfError> {
        let end = tunnel_end(&self.settings.get()?);
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match bound {
            Some(bound) => maps.bound(which, Some(&mut |to| bound(to, end)))?,
            None => maps.bound(which, None)?,
        };
        drop(maps);
        if now.is_some() {
            self.raise_generation()?;
        }
        Ok(now)
    }

    fn tcx(&self, ifindex: u32) -> Result<Tcx, BpfError> {
        Ok(Tcx {
            ingress: self.programs(ifindex, TcxHook::Ingress)?,
            egress: self.programs(ifindex, TcxHook::Egress)?,
        })
    }
}
