//! `"Type": "alloc"`: a lease and subnet.env, and nothing else.

use super::{Backend, BackendSettings, Facts, Misfit, Published, Reaches, SettingsError, Told};
use crate::mac::MacAddr;

/// It has no settings.
#[derive(Clone, Copy, Debug)]
pub struct Alloc;

impl Facts for Alloc {
    fn configured(&self, _: &BackendSettings<'_>) -> Result<Backend, SettingsError> {
        Ok(Backend::Alloc)
    }

    fn reaches(&self) -> Reaches {
        Reaches::Nobody
    }

    fn publishes(&self, _: MacAddr) -> Published {
        Published::default()
    }

    fn read_peer(&self, _: Told<'_>) -> Result<MacAddr, Misfit> {
        Err(Misfit::NoPeers)
    }
}
