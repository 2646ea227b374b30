//! The programs' settings: the one element of their map.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::{Array, MapData};
use flannel_ebpf::abi::{self, ABI_VERSION, Config, flag};
use flannel_ebpf::wire;

use super::maps::typed;
use super::programs::Programs;
use super::{BpfError, DatapathConfig, FastPath, VerifySource};

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

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What the map says of these settings.
pub(super) fn contents(config: &DatapathConfig) -> Config {
    let mut flags = 0;
    let mut set = |wanted: bool, bit: u32| {
        if wanted {
            flags |= bit;
        }
    };
    set(config.fast_path != FastPath::Off, flag::FAST_PATH);
    set(config.fast_path == FastPath::Eager, flag::EAGER);
    set(config.tcp, flag::TCP);
    set(config.verify_source == VerifySource::Drop, flag::VERIFY_DROP);
    set(config.verify_source == VerifySource::Count, flag::VERIFY_COUNT);
    set(config.direct_mtu.is_some(), flag::DIRECT);
    set(config.gbp, flag::GBP);
    Config {
        abi_version: ABI_VERSION,
        generation: 0,
        window_ns: nanoseconds(config.window),
        udp_window_ns: nanoseconds(config.udp_window),
        flags,
        vni: config.vni,
        underlay_ifindex: config.underlay,
        overlay_ifindex: config.overlay,
        local_ip: config.local.octets(),
        network: config.network.network().octets(),
        netmask: config.network.mask().octets(),
        subnet: config.subnet.network().octets(),
        subnet_mask: config.subnet.mask().octets(),
        port: config.port.to_be_bytes(),
        mtu: config.mtu,
        vtep_mac: config.vtep_mac.0,
        sport_min: config.source_ports.0,
        sport_max: config.source_ports.1,
        direct_mtu: config.direct_mtu.unwrap_or(0),
        exemptions: 0,
        underlay_vrf: config.underlay_vrf.unwrap_or(0),
        tickets: abi::TicketNumbers::default(),
        reserved: 0,
        ttl_above_64: config.ttl.wrapping_sub(wire::OUTER_TTL),
    }
}
