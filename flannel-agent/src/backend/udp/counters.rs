//! What became of the packets that were not simply handed on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use flannel_core::status::UdpOutcome as Outcome;

/// Counters of all workers.
#[derive(Debug, Default)]
pub(super) struct ProxyCounters([AtomicU64; Outcome::ALL.len()]);

impl ProxyCounters {
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
            .map(|(outcome, counter)| (outcome.name(), counter.load(Ordering::Relaxed)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_own_counter() {
        let counters = ProxyCounters::default();
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            counters.add(*outcome, 1 + index as u64);
            assert_eq!(counters.by_name()[outcome.name()], 1 + index as u64);
        }
    }
}
