//! The underlay while the agent runs: what was chosen stays as long as it can.

use flannel_core::health::{Found, Subject};
use flannel_core::link::{Link, RouteTo};
use flannel_core::underlay;
use flannel_core::underlay::successor::{Heir, PATIENCE, Succession};
use flannel_core::underlay::{Away, Underlay, UnderlayError, UnderlayRoutes, Wish};
use tokio::time::Instant;

use super::Reconciler;
use crate::firewall::Firewall;
use crate::kernel::{self, Kernel};

/// Interface index of `lo` (LOOPBACK_IFINDEX), by which the node reaches itself.
const LOOPBACK: u32 = 1;

/// An underlay that cannot be used for a while.
#[derive(Debug, Default)]
pub(super) struct Absence {
    /// What takes the place of its address.
    succession: Succession,
    /// When it began; `None` while the underlay is there.
    since: Option<Instant>,
    /// When it has been waited for long enough.
    due: Option<Instant>,
}

impl Absence {
    /// When the underlay has to be chosen anew, even if nobody tells of a change.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The underlay by now, and what has become of its address.
    fn follow(
        &mut self,
        current: &Underlay,
        links: &[Link],
        wish: &Wish,
        routes: UnderlayRoutes,
        now: Instant,
    ) -> (Result<Underlay, UnderlayError>, Heir) {
        let patient = self.since.is_none_or(|since| now.duration_since(since) < PATIENCE);
        let heir = self.succession.look(current, links, wish, now.into_std());
        let away = match heir {
            Heir::Is(heir) if patient => Away::Replaced(heir),
            _ if patient => Away::Wait,
            _ => Away::Choose,
        };
        let chosen = underlay::follow(current, links, wish, routes, away);
        // Nobody may tell when the time is over.
        let waits = patient && matches!(chosen, Err(UnderlayError::Present { .. }));
        self.since = match chosen {
            Ok(_) => None,
            Err(_) => self.since.or(Some(now)),
        };
        self.due = self.since.filter(|_| waits).map(|since| match heir {
            Heir::At(due) => Instant::from_std(due).min(since + PATIENCE),
            _ => since + PATIENCE,
        });
        (chosen, heir)
    }
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Chooses the underlay anew; whether its address or MTU is another now.
    pub(super) async fn follow_underlay(&mut self) -> bool {
        if self.links.all.is_empty() {
            return false;
        }
        let wish = &self.settings.underlay;
        let routes = match kernel::routes_for(&self.kernel, wish).await {
            Ok(routes) => routes,
            Err(error) => {
                self.shared.report(Subject::Underlay, Found::not_well(error.to_string()));
                return false;
            }
        };
        let now = Instant::now();
        let was_away = self.absence.since.is_some();
        let (chosen, heir) =
            self.absence.follow(&self.identity.underlay, &self.links.all, wish, routes, now);
        // An interface that is down for a moment comes back: what is programmed
        // stays.
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(error) => {
                self.shared.report(Subject::Underlay, Found::not_well(error.to_string()));
                return false;
            }
        };
        if was_away || chosen != self.identity.underlay {
            self.retries.hurry();
        }
        let unrouted = self.unrouted(&chosen).await;
        self.shared.report(Subject::Underlay, unrouted);
        self.shared.report(Subject::HostGw, self.unfit(&chosen));
        let (links, network) = (&self.links.all, self.identity.network);
        let pods = self.settings.underlay.pods.as_ref();
        let overlap = pods.and_then(|pods| underlay::overlap(&chosen, links, network, pods));
        self.shared.report(Subject::Network, overlap);
        if chosen == self.identity.underlay {
            return false;
        }
        tracing::info!(
            interface = chosen.name,
            address = %chosen.address,
            public_ip = %chosen.public_ip,
            mtu = chosen.mtu,
            "underlay changed"
        );
        let before = std::mem::replace(&mut self.identity.underlay, chosen);
        if matches!(heir, Heir::Is(_)) {
            self.absence.succession.moved(before.address);
        }
        true
    }

    /// Why the kernel does not take in what is for the underlay's address, if it does not.
    async fn unrouted(&self, chosen: &Underlay) -> Option<String> {
        let find = |ifindex| self.links.all.iter().find(move |link| link.ifindex == ifindex);
        let link = find(chosen.ifindex).filter(|link| link.has(chosen.address))?;
        // The table of a VRF is asked only for packets of its own.
        if link.master.and_then(find).is_some_and(|master| master.kind == "vrf") {
            return None;
        }
        match self.kernel.route_to(chosen.address).await {
            Ok(Some(RouteTo { ifindex: LOOPBACK, .. })) => None,
            Ok(_) => Some(format!(
                "the local table does not take {address} for the node's own: packets for it are \
                 not taken in; `ip route replace table local local {address} dev {device} proto \
                 kernel scope host src {address}` puts its route back",
                address = chosen.address,
                device = link.name,
            )),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Why a backend that needs an address of our own cannot have this underlay.
    fn unfit(&self, chosen: &Underlay) -> Option<String> {
        if !self.identity.backend.facts().wants_own_address() {
            return None;
        }
        let link = self.links.all.iter().find(|link| link.ifindex == chosen.ifindex)?;
        (!link.has(chosen.public_ip)).then(|| {
            format!("PublicIP {} is no address of {} any more", chosen.public_ip, link.name)
        })
    }
}
