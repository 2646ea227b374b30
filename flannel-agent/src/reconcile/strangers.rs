//! Peers whose packets come from another address than the PublicIP of their lease
//! (behind NAT, or from a secondary address): the source check takes them for
//! forged, and their node cannot know.

use std::time::Duration;

use flannel_core::health::{Found, Part, Subject};

use super::Reconciler;
use crate::bpf::{Stranger, VerifySource};
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::status::lock;

/// The complaint ends when nothing has come for so long.
const QUIET: Duration = Duration::from_secs(60);

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Complains about each peer whose packets come from a foreign address.
    pub(super) fn check_strangers(&self) {
        let strangers = lock(&self.datapath).as_ref().map(|datapath| datapath.strangers(QUIET));
        let strangers = match strangers {
            None => return,
            Some(Ok(strangers)) => strangers,
            Some(Err(error)) => {
                return self.shared.report(Subject::PeerSource, Found::not_well(error.to_string()));
            }
        };
        let dropped = self.settings.programs.verify_source == VerifySource::Drop;
        let mut state = self.shared.lock();
        let foreign: Found = strangers
            .iter()
            .filter_map(|stranger| {
                let lease = state.peers.get(&stranger.subnet)?.public_ip;
                // The lease may name it meanwhile.
                let foreign = (lease != stranger.address)
                    .then(|| describe(stranger, &lease.to_string(), dropped))?;
                Some((Part::Subnet(stranger.subnet), foreign))
            })
            .collect();
        state.report(Subject::PeerSource, foreign);
    }
}

/// Without a count: a text that changes with each packet would be logged each time.
fn describe(stranger: &Stranger, lease: &str, dropped: bool) -> String {
    let done = if dropped { "they are dropped as forged" } else { "they fail the source check" };
    format!(
        "packets of {} come from {}, its lease names {lease}: {done}; set --public-ip there to the \
         address that peers see",
        stranger.source, stranger.address
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_both_addresses_and_what_is_done() {
        let stranger = Stranger {
            subnet: "10.5.2.0/24".parse().unwrap(),
            address: "192.0.2.7".parse().unwrap(),
            source: "10.5.2.9".parse().unwrap(),
            packets: 3,
        };
        let text = describe(&stranger, "192.0.2.99", true);
        assert!(text.contains("come from 192.0.2.7, its lease names 192.0.2.99"), "{text}");
        assert!(text.contains("dropped"), "{text}");
        assert!(!describe(&stranger, "192.0.2.99", false).contains("dropped"));
    }
}
