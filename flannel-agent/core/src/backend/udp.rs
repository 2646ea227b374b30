//! `"Type": "udp"`: IPv4 packets as they are in UDP datagrams, carried by a process
//! with a TUN device.

use super::settings::{GoStruct, Target};
use super::{
    Backend, BackendKind, BackendSettings, Facts, Misfit, Published, Reaches, SettingsError, Told,
};
use crate::mac::MacAddr;

/// UDP port when none is given.
pub const DEFAULT_PORT: u16 = 8285;

/// Name of the TUN device, flannel's first `flannel%d`.
pub const DEVICE: &str = "flannel0";

/// Bytes that it adds: 20 IPv4 + 8 UDP.
pub const OVERHEAD: u32 = 28;

/// Settings of the udp backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpConfig {
    /// UDP port of every node (8285).
    pub port: u16,
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self { port: DEFAULT_PORT }
    }
}

impl Facts for UdpConfig {
    fn configured(&self, settings: &BackendSettings<'_>) -> Result<Backend, SettingsError> {
        let mut port = i64::from(self.port);
        let flannels = GoStruct { backend: BackendKind::Udp, name: "" };
        settings.read(flannels, &mut [("Port", Target::Integer(&mut port))])?;
        let port = u16::try_from(port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or(SettingsError::OutOfRange { key: "Port", value: port, range: "1 to 65535" })?;
        Ok(Backend::Udp(Self { port }))
    }

    fn settings(&self) -> Option<String> {
        Some(format!("Port {}", self.port))
    }

    fn device(&self) -> Option<String> {
        Some(DEVICE.to_owned())
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }

    fn overhead(&self) -> u32 {
        OVERHEAD
    }

    fn reaches(&self) -> Reaches {
        Reaches::Process
    }

    fn publishes(&self, _: MacAddr) -> Published {
        Published::default()
    }

    /// It takes leases of every type, as flannel does.
    fn read_peer(&self, _: Told<'_>) -> Result<MacAddr, Misfit> {
        Ok(MacAddr::default())
    }
}
