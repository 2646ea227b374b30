//! The blackhole route of our subnet.

use flannel_core::blackhole;
use flannel_core::health::Subject;
use flannel_core::subnet::within;

use super::Reconciler;
use crate::firewall::Firewall;
use crate::kernel::{Kernel, KernelError};

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Makes the blackhole route of our subnet what `--ip-blackhole-route` says;
    /// whether something had to be changed.
    pub(super) async fn seal(&mut self) -> bool {
        let wanted = Some(self.identity.subnet).filter(|_| self.settings.blackhole);
        let sealed = async {
            let mut present = self.kernel.blackholes().await?;
            // Those of another agent's network are not ours to remove.
            present.retain(|route| within(self.identity.network, route.destination));
            let (removed, added) = blackhole::diff(wanted, &present);
            let changes = !removed.is_empty() || added.is_some();
            for route in removed {
                self.kernel.remove_blackhole(route).await?;
                tracing::info!(destination = %route.destination, "blackhole route removed");
            }
            if let Some(route) = added {
                self.kernel.add_blackhole(route).await?;
                tracing::info!(destination = %route.destination, "blackhole route added");
            }
            Ok::<_, KernelError>(changes)
        };
        let sealed = sealed.await;
        self.sealed = sealed.is_ok();
        self.unfinished.wake.look |= sealed.is_err();
        self.shared.report(Subject::BlackholeRoute, sealed.as_ref().map(drop));
        sealed.unwrap_or(true)
    }
}
