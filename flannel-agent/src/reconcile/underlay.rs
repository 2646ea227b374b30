//! The underlay while the agent runs: what was chosen stays as long as it can.

use flannel_core::health::{Found, Subject};
use flannel_core::underlay;
use flannel_core::underlay::successor::{Heir, PATIENCE};
use flannel_core::underlay::{Away, UnderlayError};
use tokio::time::Instant;

use super::Reconciler;
use crate::firewall::Firewall;
use crate::kernel::{self, Kernel};

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Chooses the underlay anew; whether its address or MTU is another now.
    pub(super) async fn follow_underlay(&mut self) -> bool {
        if self.links.is_empty() {
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
        let current = &self.identity.underlay;
        let patient = self.underlay_away.is_none_or(|since| since.elapsed() < PATIENCE);
        let heir = self.succession.look(current, &self.links, wish, Instant::now().into_std());
        let away = match heir {
            Heir::Is(heir) if patient => Away::Replaced(heir),
            _ if patient => Away::Wait,
            _ => Away::Choose,
        };
        let chosen = underlay::follow(current, &self.links, wish, routes, away);
        // Nobody may tell when the time is over.
        let waits = patient && matches!(chosen, Err(UnderlayError::Present { .. }));
        self.underlay_away = match chosen {
            Ok(_) => None,
            Err(_) => self.underlay_away.or_else(|| Some(Instant::now())),
        };
        self.underlay_due = self.underlay_away.filter(|_| waits).map(|since| match heir {
            Heir::At(due) => Instant::from_std(due).min(since + PATIENCE),
            _ => since + PATIENCE,
        });
        let mut state = self.shared.lock();
        // An interface that is down for a moment comes back: what is programmed
        // stays.
        state.report(Subject::Underlay, chosen.as_ref());
        match chosen {
            Ok(chosen) => {
                let wanted = self.identity.backend.facts().wants_own_address();
                let links = if wanted { self.links.as_slice() } else { &[] };
                let unfit = links.iter().find(|link| link.ifindex == chosen.ifindex);
                let unfit = unfit.filter(|link| !link.has(chosen.public_ip)).map(|link| {
                    format!("PublicIP {} is no address of {} any more", chosen.public_ip, link.name)
                });
                state.report(Subject::HostGw, unfit);
                if chosen == self.identity.underlay {
                    return false;
                }
                tracing::info!(
                    interface = chosen.name,
                    address = %chosen.address,
                    public_ip = %chosen.public_ip,
                    mtu = chosen.mtu,
                    "the underlay changed"
                );
                let before = std::mem::replace(&mut self.identity.underlay, chosen);
                if matches!(heir, Heir::Is(_)) {
                    self.succession.moved(before.address);
                }
                true
            }
            Err(_) => false,
        }
    }
}
