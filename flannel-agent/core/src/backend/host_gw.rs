//! `"Type": "host-gw"`: a route to each peer through the underlay, and no device.

use super::{
    Backend, BackendKind, BackendSettings, Facts, Misfit, Published, Reaches, SettingsError, Told,
};
use crate::mac::MacAddr;

/// It has no settings.
#[derive(Clone, Copy, Debug)]
pub struct HostGw;

impl Facts for HostGw {
    fn configured(&self, _: &BackendSettings<'_>) -> Result<Backend, SettingsError> {
        Ok(Backend::HostGw)
    }

    fn reaches(&self) -> Reaches {
        Reaches::Direct
    }

    fn has_programs(&self) -> bool {
        true
    }

    /// Peers' routes have it as their gateway.
    fn wants_own_address(&self) -> bool {
        true
    }

    fn publishes(&self, _: MacAddr) -> Published {
        Published { backend_type: BackendKind::HostGw.name().to_owned(), data: None }
    }

    fn read_peer(&self, told: Told<'_>) -> Result<MacAddr, Misfit> {
        told.is_of(BackendKind::HostGw)?;
        Ok(MacAddr::default())
    }
}
