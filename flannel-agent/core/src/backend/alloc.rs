//! `"Type": "alloc"`: a lease and subnet.env, and nothing else.

use super::{BackendKind, Facts, Misfit, Published, Reaches, Told};
use crate::mac::MacAddr;

/// It has no settings.
#[derive(Clone, Copy, Debug)]
pub struct Alloc;

impl Facts for Alloc {
    fn kind(&self) -> BackendKind {
        BackendKind::Alloc
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
