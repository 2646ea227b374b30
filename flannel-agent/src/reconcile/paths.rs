//! The kernel's ways to the peers' PublicIPs, for backends that reach peers
//! without encapsulation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::Reconciler;
use crate::desired::Peer;
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::path::Path;

/// Other tasks get their turn after so many questions.
const AT_ONCE: usize = 256;

/// What is known of the ways.
#[derive(Debug, Default)]
pub(super) struct Paths(BTreeMap<Ipv4Addr, Path>);

impl Paths {
    /// By PublicIP.
    pub(super) fn known(&self) -> &BTreeMap<Ipv4Addr, Path> {
        &self.0
    }
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Asks for the ways that are not known, or for `all`. Where the kernel
    /// does not answer, what was known stays.
    pub(super) async fn look_at_paths(&mut self, peers: &[Peer], all: bool) {
        let wanted: BTreeSet<Ipv4Addr> = peers.iter().map(|peer| peer.public_ip).collect();
        self.paths.0.retain(|address, _| wanted.contains(address));
        let underlay = self.identity.underlay.ifindex;
        let mut failed = None;
        let asked = wanted.iter().filter(|address| all || !self.paths.0.contains_key(address));
        let asked: Vec<Ipv4Addr> = asked.copied().collect();
        for (count, address) in asked.into_iter().enumerate() {
            match self.kernel.route_to(Some(address)).await {
                Ok(route) => {
                    let path = Path::of(route, underlay);
                    let before = self.paths.0.insert(address, path);
                    if before.is_some_and(|before| before != path) {
                        tracing::info!(public_ip = %address, "the way to a peer changed: {path}");
                    }
                }
                Err(error) => failed = Some(error.to_string()),
            }
            if count % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
        self.unfinished.wake.paths = failed.is_some();
        self.shared.lock().health.report("paths", failed);
    }
}
