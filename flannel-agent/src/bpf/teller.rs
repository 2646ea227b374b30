//! What may be told to the programs at any time, whatever else is being done
//! with them: attaching many hooks takes seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{HashMap, MapData};
use flannel_core::envelope::{Keep, PodVeth, Tcx, TcxProgram};
use flannel_core::limits::{Destination, TunnelEnd};
use flannel_ebpf::abi::{self, Config, Veth, flag};

use super::BpfError;
use super::maps::{Bounded, Maps, Which, descriptor, ignore_missing, typed};
use super::programs::Programs;
use super::settings::ConfigMap;
use super::sys::{Attached, TcxHook, program_name, tcx_programs};
use super::walk;

/// Entries that one call reads.
const BATCH: usize = 1024;

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
    veths: Arc<Mutex<HashMap<MapData, u32, Veth>>>,
    /// The same map, to be read at once: each change of a device asks for all entries.
    veths_fd: Arc<OwnedFd>,
    ours: Arc<Ours>,
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
        links: BTreeSet<u32>,
    ) -> Result<Self, BpfError> {
        let veths_fd = Arc::new(descriptor(programs, abi::map::VETHS)?);
        let veths = Arc::new(Mutex::new(typed(programs, abi::map::VETHS)?));
        let ours = Arc::new(Ours { links, ..Ours::default() });
        Ok(Self { settings, maps, veths, veths_fd, ours })
    }

    /// These programs are ours, too.
    pub(super) fn know(&self, ids: impl IntoIterator<Item = u32>) {
        self.ours.programs().extend(ids);
    }

    fn veths(&self) -> MutexGuard<'_, HashMap<MapData, u32, Veth>> {
        self.veths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn programs(&self, ifindex: u32, hook: TcxHook) -> Result<Vec<TcxProgram>, BpfError> {
        let program = |found: Attached| {
            let ours = self.ours.has(found);
            let another_agents =
                !ours && program_name(found.program).is_ok_and(|name| is_agents(&name));
            TcxProgram { id: found.program, ours, another_agents }
        };
        match tcx_programs(ifindex, hook) {
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
        let mut map = self.veths();
        let known: BTreeMap<u32, Veth> = walk::all(self.veths_fd.as_fd(), BATCH)
            .map_err(|error| BpfError::new("read map", abi::map::VETHS, &error))?
            .into_iter()
            .collect();
        let wanted: BTreeMap<u32, Veth> =
            veths.iter().filter_map(|veth| Some((veth.ifindex, veth.value()?))).collect();
        // Those that have gone make room first.
        for ifindex in known.keys().filter(|ifindex| !wanted.contains_key(ifindex)) {
            ignore_missing(map.remove(ifindex)).map_err(failed("remove from map"))?;
        }
        let mut changed = false;
        for (ifindex, value) in wanted {
            let before = known.get(&ifindex);
            if before != Some(&value) {
                map.insert(ifindex, value, 0).map_err(failed("write map"))?;
                changed |= before.is_some();
            }
        }
        drop(map);
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
