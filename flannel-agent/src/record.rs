//! What the loop writes down for `/metrics`. It never reads it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use flannel_core::op::Op;
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
    /// Hooks where a program of ours runs.
    pub hooks: BTreeMap<&'static str, u64>,
    /// How often the store could not be followed.
    pub store_errors: u64,
    /// The store's last revision.
    pub store_revision: Option<i64>,
    /// When it last told something.
    pub store_event: Option<SystemTime>,
}

/// Something that somebody else had changed or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repair {
    /// The overlay's device.
    Device,
    /// Its addresses.
    Address,
    /// Routes of peers on it.
    Route,
    /// Neighbour entries.
    Neighbour,
    /// FDB entries.
    Fdb,
    /// Routes of peers without a tunnel.
    DirectRoute,
    /// Entries of the programs' maps.
    Map,
    /// Programs at their hooks.
    Hook,
}

impl Repair {
    /// All.
    pub const ALL: [Self; 8] = [
        Self::Device,
        Self::Address,
        Self::Route,
        Self::Neighbour,
        Self::Fdb,
        Self::DirectRoute,
        Self::Map,
        Self::Hook,
    ];

    /// Value of the label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Address => "address",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Fdb => "fdb",
            Self::DirectRoute => "direct_route",
            Self::Map => "map",
            Self::Hook => "hook",
        }
    }

    /// What an operation puts right.
    pub fn of(op: &Op) -> Self {
        match op {
            Op::DeleteDevice { .. }
            | Op::CreateDevice(_)
            | Op::SetMac(_)
            | Op::SetMtu(_)
            | Op::SetUp => Self::Device,
            Op::AddAddress(_) | Op::RemoveAddress(_) => Self::Address,
            Op::PutRoute(_) | Op::PutLinkRoute(_) | Op::RemoveRoute(_) => Self::Route,
            Op::PutNeighbour(..) | Op::RemoveNeighbour(..) => Self::Neighbour,
            Op::PutFdb(..) | Op::RemoveFdb(..) => Self::Fdb,
            Op::PutDirect(_) | Op::RemoveDirect(_) => Self::DirectRoute,
            Op::PutMaps(_) | Op::RemoveMaps(_) => Self::Map,
        }
    }
}

impl Default for Record {
    fn default() -> Self {
        Self {
            passes: Histogram::new(BUCKETS),
            repairs: BTreeMap::new(),
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
        }
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
