//! Peers whose packets come from another address than the PublicIP of their lease
//! (behind NAT, or from a secondary address): the source check takes them for
//! forged, and their node cannot know.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Reconciler;
use crate::bpf::{Stranger, VerifySource};
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::status::lock;

/// The complaint ends when nothing has come for so long.
const QUIET: Duration = Duration::from_secs(60);
/// Beginning of the subjects of these complaints.
const GROUP: &str = "source of peer ";

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Complains about each peer whose packets come from a foreign address.
    pub(super) fn check_strangers(&self) {
        let strangers = lock(&self.datapath).as_ref().map(|datapath| datapath.strangers(QUIET));
        let Some(Ok(strangers)) = strangers else { return };
        let dropped = self.settings.verify_source == VerifySource::Drop;
        let state = self.shared.lock();
        let present: BTreeMap<String, String> = strangers
            .iter()
            .filter_map(|stranger| {
                let lease = state.peers.get(&stranger.subnet)?.public_ip;
                // The lease may name it meanwhile.
                let foreign = (lease != stranger.address)
                    .then(|| describe(stranger, &lease.to_string(), dropped))?;
                Some((format!("{GROUP}{}", stranger.subnet), foreign))
            })
            .collect();
        drop(state);
        self.shared.lock().health.replace_group(GROUP, &present);
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
