//! What becomes of our own lease.

use std::time::Duration;

use flannel_core::health::{Found, Subject};
use flannel_core::lease::table::OwnChange;
use flannel_core::status::What;
use flannel_core::text;
use tokio::time::Instant;

use super::{Loop, StartError};
use crate::cli::OnLostLease;
use crate::daemon::keeper::{News, Renewal};
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::source::LeaseSource;

/// Questions of the same node are told again after this.
const REMIND: Duration = Duration::from_secs(60);

impl<S: LeaseSource, K: Kernel, F: Firewall> Loop<'_, S, K, F> {
    /// Somebody wrote or removed our lease, or the store lost it.
    pub(super) fn take_own(&mut self, own: OwnChange, store_lost_it: bool) {
        let ours = self.keeper.lease().clone();
        let what = match self.keeper.told(own, store_lost_it) {
            News::Known => return,
            News::Asked { by } => return self.tell_of_question(&by),
            News::Rewritten => {
                "it was written by somebody else; is our PublicIP given twice?".to_owned()
            }
            News::Gone { since } => {
                self.note_lost("it was deleted, or ran out");
                if since && !store_lost_it {
                    self.end_if_wished("it was deleted, or ran out");
                }
                "it has gone".to_owned()
            }
            News::Claimed { by } => format!("{by} claims it"),
        };
        self.shared.report(Subject::OwnLease, Found::not_well(what));
        if self.keeper.is_contested() && !self.contested {
            self.contested = true;
            let why = format!(
                "something else writes or removes this node's lease again and again: most likely \
                 another node has the PublicIP {} too (a cloned machine, or the same --public-ip); \
                 give each node its own and delete {}'s key",
                ours.attrs.public_ip, ours.subnet
            );
            self.shared.report(Subject::ContestedLease, Found::not_well(why));
        }
    }

    /// The lease is written anew at once, which takes the question out of it.
    fn tell_of_question(&mut self, by: &str) {
        let by = text::shown(by, text::VALUE);
        let now = Instant::now();
        let told = |(whom, when): &(String, Instant)| *whom == by && now < *when + REMIND;
        if !self.asked.as_ref().is_some_and(told) {
            let ours = self.keeper.lease();
            tracing::warn!(
                by,
                subnet = %ours.subnet,
                public_ip = %ours.attrs.public_ip,
                "another node was started with our PublicIP, or with a copy of our state \
                 directory; it is told that this lease is in use"
            );
            self.asked = Some((by, now));
        }
    }

    /// The quarrel may have ended without a word.
    pub(super) fn watch_contest(&mut self) {
        if self.contested && !self.keeper.is_contested() {
            self.contested = false;
            self.shared.report(Subject::ContestedLease, Found::well());
        }
    }

    pub(super) fn take_kept(&mut self, kept: &Renewal) {
        match kept {
            Renewal::Renewed => {
                let lease = self.keeper.lease();
                let moved = self.public_ip != lease.attrs.public_ip;
                self.public_ip = lease.attrs.public_ip;
                self.table.set_own(Some(lease.subnet), lease.attrs.public_ip);
                tracing::debug!(subnet = %lease.subnet, "lease renewed");
                let mut state = self.shared.lock();
                let (subnet, public_ip) = (lease.subnet, lease.attrs.public_ip);
                let what = match state.lease_lost {
                    true => What::LeaseClaimed { subnet },
                    false => What::LeaseRenewed { subnet, public_ip },
                };
                state.note(what);
                state.lease = Some(lease.clone());
                state.report(Subject::Renewal, Found::well());
                state.report(Subject::OwnLease, Found::well());
                state.report(Subject::LostLease, Found::well());
                state.lease_lost = false;
                drop(state);
                self.write_files();
                if moved {
                    self.peers_may_have_changed();
                }
            }
            Renewal::Failed(why) => self.shared.report(Subject::Renewal, Found::not_well(why)),
            Renewal::Lost(error) => self.say_lost(&error.to_string()),
        }
    }

    /// `--on-lost-lease=exit`.
    fn end_if_wished(&mut self, why: &str) {
        if self.options.lease.on_lost == OnLostLease::Exit {
            let subnet = self.keeper.lease().subnet;
            self.ended = Some(StartError::LeaseLost { subnet, why: why.to_owned() });
        }
    }

    fn note_lost(&self, why: &str) {
        let mut state = self.shared.lock();
        if !std::mem::replace(&mut state.lease_lost, true) {
            let subnet = self.keeper.lease().subnet;
            state.note(What::LeaseLost { subnet, why: why.to_owned() });
        }
    }

    fn say_lost(&mut self, why: &str) {
        self.end_if_wished(why);
        self.note_lost(why);
        let mut state = self.shared.lock();
        // What was said of a lease that we had is over.
        for subject in [Subject::OwnLease, Subject::Renewal] {
            state.report(subject, Found::well());
        }
        state.report(
            Subject::LostLease,
            Found::not_well(format!(
                "{why}; it is claimed again when the subnet is free. Restart the agent for \
                 another subnet (pods here keep the old addresses until they are recreated)"
            )),
        );
    }
}
