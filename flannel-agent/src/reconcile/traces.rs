//! What is to be undone on the node: the state file has it before the change, and until
//! it is undone.

use flannel_core::checksum::TunnelChecksum;
use flannel_core::state::Traces;

use super::Reconciler;
use super::conntrack::Conntrack;
use crate::firewall::Firewall;
use crate::kernel::Kernel;

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// The same, where earlier runs left this.
    #[must_use]
    pub fn with_traces(self, mut traces: Traces) -> Self {
        let conntrack = Conntrack::new(std::mem::take(&mut traces.sysctls));
        Self { traces, conntrack, ..self }
    }

    /// What the state file has to remember.
    pub fn traces(&self) -> Traces {
        Traces { sysctls: self.conntrack.before().clone(), ..self.traces.clone() }
    }

    /// The state file has [`Reconciler::traces`], or cannot be written, and all goes on
    /// without.
    pub fn remembered(&mut self) {
        // The settings that have waited for it are changed by the next look.
        self.hooks_left |= self.conntrack.waits();
        self.conntrack.remembered();
    }

    /// Forgets what the pass has undone.
    pub(super) fn settle_traces(&mut self) {
        let Some(observed) = self.seen.observed.as_ref().filter(|_| !self.seen.stale) else {
            return;
        };
        let by = observed.device.as_ref().and_then(|device| device.checksum);
        if self.settings.tunnel_checksum == TunnelChecksum::Device
            && by != Some(TunnelChecksum::Kernel)
        {
            self.traces.tunnel_checksum = TunnelChecksum::Device;
        }
        // Removals that have failed are tried again.
        self.traces.unmarked_routes &= self.retries.next_due().is_some();
    }

    /// Forgets whose rules are no longer there.
    pub(super) fn settle_rules(&mut self) {
        self.traces.former_places.clear();
    }
}
