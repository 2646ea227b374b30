//! For backends that reach peers without encapsulation: the next hops to
//! the peers' PublicIPs, and the routes that are there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use flannel_core::desired::Desired;
use flannel_core::health::Subject;
use flannel_core::observed::{DirectRoute, Observed};
use flannel_core::peer::Peer;
use flannel_core::reach::NextHop;
use flannel_core::subnet::within;

use super::Reconciler;
use crate::firewall::Firewall;
use crate::kernel::{Kernel, KernelError, PROTOCOL, UNMARKED};

/// Other tasks get their turn after so many questions.
const AT_ONCE: usize = 256;

/// The next hops that are known.
#[derive(Debug, Default)]
pub(super) struct NextHops(BTreeMap<Ipv4Addr, NextHop>);

impl NextHops {
    /// By PublicIP.
    pub(super) fn known(&self) -> &BTreeMap<Ipv4Addr, NextHop> {
        &self.0
    }
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Whether peers are reached without a tunnel, by the last pass.
    pub(super) fn has_direct(&self) -> bool {
        self.wanted.desired.as_ref().is_some_and(|desired| !desired.direct.is_empty())
    }

    /// Asks for the next hops that are not known, or for `all`. Where the kernel
    /// does not answer, what was known stays.
    pub(super) async fn look_at_next_hops(&mut self, peers: &[Peer], all: bool) {
        let wanted: BTreeSet<Ipv4Addr> = peers.iter().map(|peer| peer.public_ip).collect();
        self.next_hops.0.retain(|address, _| wanted.contains(address));
        let underlay = self.identity.underlay.ifindex;
        let (mut failed, mut changed, mut first) = (None, 0_usize, None);
        let asked = wanted.iter().filter(|address| all || !self.next_hops.0.contains_key(address));
        let asked: Vec<Ipv4Addr> = asked.copied().collect();
        for (count, address) in asked.into_iter().enumerate() {
            match self.kernel.route_to(address).await {
                Ok(route) => {
                    let hop = NextHop::of(route, underlay);
                    let before = self.next_hops.0.insert(address, hop);
                    if before.is_some_and(|before| before != hop) {
                        changed += 1;
                        first.get_or_insert((address, hop));
                    }
                }
                Err(error) => failed = Some(error.to_string()),
            }
            if count % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
        if let Some((address, hop)) = first {
            tracing::info!(changed, first = %address, now = %hop, "next hops of peers changed");
        }
        self.unfinished.wake.next_hops = failed.is_some();
        self.shared.report(Subject::NextHops, failed);
    }

    /// What is there, apart from the maps. Which routes come first is looked for with
    /// `order`: that reads all of the table, and what others have there may be much.
    pub(super) async fn look_at_kernel(
        &mut self,
        desired: &Desired,
        order: bool,
    ) -> Result<Observed, KernelError> {
        let observed = match self.tunnel() {
            Some(device) => self.kernel.observe(&device).await?,
            None => Observed::default(),
        };
        let mut direct = self.kernel.direct_routes(PROTOCOL).await?;
        if self.traces.unmarked_routes && self.identity.backend.facts().reaches().directly() {
            let unmarked = self.kernel.direct_routes(UNMARKED).await?;
            let left = unmarked.into_iter().filter(|route| self.is_left_over(desired, route));
            direct.extend(left);
        }
        let overlay = observed.device.as_ref().map(|device| device.ifindex);
        let behind = match (order, &self.seen.observed) {
            (false, Some(before)) => before.behind.clone(),
            _ => self.kernel.behind(desired.network, overlay).await?,
        };
        Ok(Observed { direct, behind, ..observed })
    }

    /// Whether flannel made this unmarked route for a peer that has gone. One
    /// to a present peer is replaced by ours in any case.
    fn is_left_over(&self, desired: &Desired, route: &DirectRoute) -> bool {
        let subnet = self.identity.subnet;
        let left = route.ifindex == desired.underlay
            && route.destination.prefix() == subnet.prefix()
            && route.destination != subnet
            && within(desired.network, route.destination)
            && !desired.peers.contains_key(&route.destination);
        if left {
            tracing::info!(
                subnet = %route.destination,
                gateway = %route.gateway,
                "direct route without a lease found; it is removed"
            );
        }
        left
    }
}
