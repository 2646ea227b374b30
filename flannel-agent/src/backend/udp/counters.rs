//! What became of the packets that were not simply handed on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// A fate of packets that `status` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Sent to a peer.
    Encapsulated,
    /// Received from a peer and handed to the kernel.
    Decapsulated,
    /// Dropped: no peer has the destination's subnet.
    NoPeer,
    /// Dropped: its last hop was here.
    TtlExpired,
    /// Dropped: no whole IPv4 packet.
    Malformed,
    /// Received from an address that is no peer's.
    ForeignSender,
    /// Its overlay source is not in the sender's subnet.
    ForgedSource,
    /// Dropped: the kernel did not take the datagram.
    SendFailed,
    /// Dropped: the TUN device did not take the packet.
    DeliveryFailed,
    /// ICMP errors sent.
    IcmpSent,
}

impl Outcome {
    /// All, with their names.
    pub(super) const ALL: [(Self, &'static str); 10] = [
        (Self::Encapsulated, "udp_encap"),
        (Self::Decapsulated, "udp_decap"),
        (Self::NoPeer, "drop_no_peer"),
        (Self::TtlExpired, "drop_ttl_expired"),
        (Self::Malformed, "drop_malformed"),
        (Self::ForeignSender, "forged_outer_source"),
        (Self::ForgedSource, "forged_inner_source"),
        (Self::SendFailed, "drop_send_failed"),
        (Self::DeliveryFailed, "drop_delivery_failed"),
        (Self::IcmpSent, "icmp_sent"),
    ];
}

/// Counters of all workers.
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; Outcome::ALL.len()]);

impl Counters {
    /// Adds `count` packets.
    pub(super) fn add(&self, outcome: Outcome, count: u64) {
        if let Some(counter) = self.0.get(outcome as usize) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// All by name.
    pub(super) fn by_name(&self) -> BTreeMap<&'static str, u64> {
        Outcome::ALL
            .iter()
            .zip(&self.0)
            .map(|((_, name), counter)| (*name, counter.load(Ordering::Relaxed)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_own_counter() {
        let counters = Counters::default();
        for (index, (outcome, name)) in Outcome::ALL.into_iter().enumerate() {
            counters.add(outcome, 1 + index as u64);
            assert_eq!(counters.by_name()[name], 1 + index as u64);
        }
    }
}
