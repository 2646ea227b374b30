//! The programs' settings: the one element of their map.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, MapData};
use flannel_ebpf::abi::{self, Config};

use super::BpfError;
use super::maps::typed;
use super::programs::Programs;

/// The map of settings. Whoever changes it keeps the others out between reading and
/// writing. All of them are of this process.
#[derive(Clone)]
pub(super) struct ConfigMap(Arc<Mutex<Settings>>);

struct Settings {
    map: Array<MapData, Config>,
    /// What stands in the map, if nobody else has written there.
    known: Option<Config>,
}

impl ConfigMap {
    pub(super) fn take(programs: &mut Programs) -> Result<Self, BpfError> {
        let map = typed(programs, abi::map::CFG)?;
        Ok(Self(Arc::new(Mutex::new(Settings { map, known: None }))))
    }

    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> Result<Config, BpfError> {
        self.lock().get()
    }

    /// Writes what `change` makes of the settings, with a new generation, if that
    /// is anything else.
    pub(super) fn replace(&self, change: impl FnOnce(Config) -> Config) -> Result<(), BpfError> {
        let mut settings = self.lock();
        let old = settings.get()?;
        let new = Config { generation: old.generation, ..change(old) };
        if new == old { Ok(()) } else { settings.exchange(new) }
    }

    /// Writes what `change` makes of the flags; confirmations stay.
    pub(super) fn mark(&self, change: impl FnOnce(u32) -> u32) -> Result<(), BpfError> {
        let mut settings = self.lock();
        let old = settings.get()?;
        let flags = change(old.flags);
        if flags == old.flags { Ok(()) } else { settings.write(Config { flags, ..old }) }
    }

    pub(super) fn raise_generation(&self) -> Result<(), BpfError> {
        let mut settings = self.lock();
        let old = settings.get()?;
        settings.write(Config { generation: old.generation.wrapping_add(1), ..old })
    }

    /// Writes the settings again if somebody else has written; whether that was so.
    pub(super) fn mend(&self) -> Result<bool, BpfError> {
        let mut settings = self.lock();
        let Some(known) = settings.known else { return Ok(false) };
        let found = settings.read()?;
        if found == known {
            return Ok(false);
        }
        // What was confirmed meanwhile is of no generation that comes now.
        let generation = known.generation.max(found.generation);
        settings.exchange(Config { generation, ..known }).map(|()| true)
    }
}

impl Settings {
    fn get(&mut self) -> Result<Config, BpfError> {
        if self.known.is_none() {
            self.known = Some(self.read()?);
        }
        self.known.map_or_else(|| self.read(), Ok)
    }

    fn read(&self) -> Result<Config, BpfError> {
        self.map.get(&0, 0).map_err(|error| BpfError::new("read map", abi::map::CFG, &error))
    }

    fn write(&mut self, config: Config) -> Result<(), BpfError> {
        let written = self.map.set(0, config, 0);
        self.known = written.is_ok().then_some(config);
        written.map_err(|error| BpfError::new("write map", abi::map::CFG, &error))
    }

    /// A program may read while the kernel copies: what it confirms from a half-written
    /// element belongs to the first of two generations, and is void with the second.
    fn exchange(&mut self, mut config: Config) -> Result<(), BpfError> {
        for _ in 0..2 {
            config.generation = config.generation.wrapping_add(1);
            self.write(config)?;
        }
        Ok(())
    }
}
