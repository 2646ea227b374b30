//! Whether packets of peers come by the hooks at all.

use std::time::Duration;

use tokio::time::Instant;

use crate::bpf::Datapath;
use crate::kernel::Inspect;

/// Packets through the device from which on it is no accident that no hook saw
/// one: an answer or two may have come before the hooks were there.
const ENOUGH: u64 = 10;

/// The kernel describes the whole device for the sake of one counter: it is asked this
/// often. So are the hooks while nothing is missed.
const EVERY: Duration = Duration::from_secs(5);

/// Compares what `flannel.<VNI>` receives with what the hooks see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Arrivals {
    /// Device, its counter and the hooks' at the first look.
    began: Option<(u32, u64, u64)>,
    /// A hook has seen one.
    came: bool,
    asked: Option<Instant>,
    missed: u64,
}

impl Arrivals {
    /// Looks until a packet has come by a hook.
    pub(super) fn look(
        &mut self,
        overlay: Option<u32>,
        inspector: &mut dyn Inspect,
        datapath: &dyn Datapath,
    ) {
        let rests = self.asked.is_some_and(|asked| asked.elapsed() < EVERY);
        if self.came || (rests && self.missed == 0) {
            return;
        }
        let (Some(overlay), Ok(seen)) = (overlay, datapath.seen_from_underlay()) else { return };
        let came = self.began.is_some_and(|(device, _, hooks)| device == overlay && seen > hooks);
        if !came && rests {
            return;
        }
        if let Ok(Some(received)) = inspector.received(overlay) {
            self.asked = Some(Instant::now());
            self.take(overlay, received, seen);
        }
    }

    fn take(&mut self, overlay: u32, received: u64, seen: u64) {
        match self.began {
            Some((device, before, hooks)) if device == overlay && received >= before => {
                self.came = seen > hooks;
                self.missed = if self.came { 0 } else { received - before };
            }
            // The first look, or another device.
            _ => self.began = Some((overlay, received, seen)),
        }
    }

    /// Packets that came through the device and by no hook, if there were enough
    /// and never one by a hook.
    pub(super) fn missed(&self) -> Option<u64> {
        Some(self.missed).filter(|missed| *missed >= ENOUGH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_never_come_by_a_hook_are_told() {
        let mut arrivals = Arrivals::default();
        arrivals.take(3, 1000, 5);
        assert_eq!(arrivals.missed(), None, "what came before counts for nobody");
        arrivals.take(3, 1009, 5);
        assert_eq!(arrivals.missed(), None);
        arrivals.take(3, 1010, 5);
        assert_eq!(arrivals.missed(), Some(10));
        arrivals.take(3, 2000, 6);
        assert_eq!(arrivals.missed(), None);
        assert!(arrivals.came);
    }

    #[test]
    fn a_new_device_begins_anew() {
        let mut arrivals = Arrivals::default();
        arrivals.take(3, 0, 0);
        arrivals.take(4, 500, 0);
        assert_eq!(arrivals.missed(), None);
        arrivals.take(4, 600, 0);
        assert_eq!(arrivals.missed(), Some(100));
    }
}
