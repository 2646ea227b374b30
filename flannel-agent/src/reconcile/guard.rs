//! The firewall in a task of its own: its programs may take long, and nothing else
//! waits for them.

use std::sync::Arc;

use flannel_core::backend::Reaches;
use flannel_core::firewall::Rules;
use flannel_core::forwarding::{Inbound, Unforwarded, unforwarded};
use flannel_core::health::{Found, Part, Subject};
use flannel_core::link::Link;
use flannel_core::repair::Repair;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Reconciler;
use crate::firewall::{Description, Firewall, FirewallError};
use crate::kernel::Kernel;
use crate::task;

/// What became of the rules.
#[derive(Debug)]
pub enum Guarded {
    /// They are what they should be, and whether they had to be written; or they cannot
    /// be made so at the moment.
    Done(Description, Rules, Result<bool, FirewallError>),
    /// The look has failed.
    Failed(FirewallError),
    /// No firewall can be used as it was asked for.
    Unusable(FirewallError),
}

/// Keeps rules; one look at a time.
pub(super) struct Guard<F> {
    firewall: Arc<F>,
    running: Option<JoinHandle<Guarded>>,
    /// What was asked for meanwhile.
    next: Option<Rules>,
    /// What was there when a look ended.
    in_place: Option<Rules>,
}

impl<F: Firewall> Guard<F> {
    pub(super) fn new(firewall: F) -> Self {
        Self { firewall: Arc::new(firewall), running: None, next: None, in_place: None }
    }

    #[cfg(test)]
    pub(super) fn firewall(&self) -> &F {
        &self.firewall
    }

    #[cfg(test)]
    pub(super) fn is_busy(&self) -> bool {
        self.running.is_some()
    }

    /// Makes the rules these, as soon as what is done now has ended.
    pub(super) fn ask(&mut self, rules: Rules) {
        if self.running.is_some() {
            self.next = Some(rules);
            return;
        }
        let firewall = Arc::clone(&self.firewall);
        self.running = Some(tokio::spawn(async move {
            let described = match firewall.choose().await {
                Ok(described) => described,
                Err(error) => return Guarded::Unusable(error),
            };
            let ensured = firewall.ensure(&rules).await;
            Guarded::Done(described, rules, ensured)
        }));
    }

    /// These rules are in place. Whether they were before, so that whoever had to write
    /// them has put them back.
    fn are_in_place(&mut self, rules: Rules) -> bool {
        let same = self.in_place.as_ref() == Some(&rules);
        self.in_place = Some(rules);
        same
    }

    /// Waits until a look has ended. Cancel safe.
    pub(super) async fn ended(&mut self) -> Guarded {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let ended = running.await;
        self.running = None;
        if let Some(rules) = self.next.take() {
            self.ask(rules);
        }
        let ended = task::joined(ended).await;
        ended.unwrap_or_else(|panicked| Guarded::Failed(panicked.into()))
    }
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// What the firewall's programs have to do is done beside everything else;
    /// [`Reconciler::guarded`] tells of its end.
    pub(super) fn ask_for_rules(&mut self) {
        self.unfinished.wake.firewall = false;
        let Some(rules) = self.rules() else { return };
        self.guard.ask(rules);
    }

    /// The rules that should be; `None` where none are kept at all.
    pub fn rules(&self) -> Option<Rules> {
        self.keeps_any().then(|| {
            let facts = self.identity.backend.facts();
            Rules {
                network: self.identity.network,
                subnet: self.identity.subnet,
                masquerade: self.settings.rules.masquerade,
                forward: self.settings.rules.forward,
                fully_random: !self.settings.rules.fully_random_disable,
                vxlan_port: facts.port().unwrap_or(0),
            }
        })
    }

    /// alloc gives out the subnet and leaves the rest to others.
    fn keeps_any(&self) -> bool {
        self.identity.backend.facts().reaches() != Reaches::Nobody || self.settings.rules.masquerade
    }

    /// Says whether the kernel forwards what comes in by the devices of the overlay.
    pub(super) async fn check_forwarding(&self) {
        if !self.keeps_any() {
            return;
        }
        let device = self.device();
        let named = |link: &&Link| Some(&link.name) == device.as_ref();
        let overlay = self.links.all.iter().find(named).map(|link| link.ifindex);
        let found = match self.kernel.switched_off().await {
            Ok(off) => {
                let inbound = Inbound::of(self.has_direct(), self.settings.rules.masquerade);
                let found = unforwarded(&self.links.all, self.choice(overlay), inbound, &off);
                let part = |switch: Unforwarded| {
                    let part = switch.device.as_ref().map(|(name, _)| Part::Name(name.clone()));
                    (part.unwrap_or_default(), switch.to_string())
                };
                found.into_iter().filter(Unforwarded::is_needed).map(part).collect()
            }
            Err(error) => Found::not_well(error.to_string()),
        };
        self.shared.report(Subject::Forwarding, found);
    }

    /// Takes in how that look ended; when the next is due if it failed.
    pub fn take_guarded(&mut self, guarded: Guarded) -> Option<Instant> {
        let ensured = match guarded {
            Guarded::Unusable(error) | Guarded::Failed(error) => Err(error),
            Guarded::Done(Description { name, reason }, rules, ensured) => {
                let told = format!("{name}: {reason}");
                let mut state = self.shared.lock();
                if state.firewall.as_ref() != Some(&told) {
                    tracing::info!(firewall = %name, reason, "firewall chosen");
                    state.firewall = Some(told);
                }
                ensured.map(|written| {
                    if self.guard.are_in_place(rules) && written {
                        state.record.repaired(Repair::Firewall, 1);
                        state.tell_repairs();
                    }
                })
            }
        };
        if ensured.is_ok() {
            self.settle_rules();
        }
        self.unfinished.wake.firewall = ensured.is_err();
        self.shared.report(Subject::Firewall, ensured);
        self.unfinished.schedule()
    }
}
