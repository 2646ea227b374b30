//! What the loop writes down for `/metrics`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use flannel_core::repair::Repair;
use prometheus_client::metrics::histogram::Histogram;

/// Upper bounds in seconds: an idle pass takes a millisecond, one with thousands
/// of new peers seconds.
const BUCKETS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Counts of what the loop did.
#[derive(Debug)]
pub struct Record {
    /// How long passes took.
    pub passes: Histogram,
    /// What was put right though no lease had changed.
    pub repairs: BTreeMap<Repair, u64>,
    /// Of these, what is no event yet: one is made for all of a pass.
    untold: BTreeMap<Repair, u64>,
    /// Hooks where a program of ours runs.
    pub hooks: BTreeMap<&'static str, u64>,
    /// How often the store could not be followed.
    pub store_errors: u64,
    /// The store's last revision.
    pub store_revision: Option<i64>,
    /// When it last told something.
    pub store_event: Option<SystemTime>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            passes: Histogram::new(BUCKETS),
            repairs: BTreeMap::new(),
            untold: BTreeMap::new(),
            hooks: BTreeMap::new(),
            store_errors: 0,
            store_revision: None,
            store_event: None,
        }
    }
}

impl Record {
    /// A pass is over.
    pub fn passed(&self, took: Duration) {
        self.passes.observe(took.as_secs_f64());
    }

    /// Something was put right.
    pub fn repaired(&mut self, what: Repair, times: u64) {
        if times > 0 {
            *self.repairs.entry(what).or_default() += times;
            *self.untold.entry(what).or_default() += times;
        }
    }

    /// What was put right since the last call, for the events.
    pub fn take_repairs(&mut self) -> BTreeMap<Repair, u64> {
        std::mem::take(&mut self.untold)
    }

    /// The store told something.
    pub fn store_told(&mut self, revision: i64) {
        self.store_revision = Some(revision);
        self.store_event = Some(SystemTime::now());
    }

    /// The store could not be followed.
    pub fn store_failed(&mut self) {
        self.store_errors += 1;
    }
}
