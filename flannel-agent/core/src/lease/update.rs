//! [`LeaseUpdate`]: what a store tells of its leases.

use std::collections::BTreeMap;

use ipnetwork::Ipv4Network;

use crate::lease::Lease;

/// Keys among the leases that cannot be read as leases, and why.
pub type UnreadableKeys = BTreeMap<String, String>;

/// A change of the leases, in the order of the store.
#[derive(Clone, Debug, PartialEq)]
pub enum LeaseUpdate {
    /// All leases as of `revision`: replaces everything known.
    Snapshot {
        /// Every lease that could be read, our own too.
        leases: Vec<Lease>,
        /// Revision of the store.
        revision: i64,
    },
    /// A lease was written.
    Put {
        /// The lease as it is now.
        lease: Lease,
    },
    /// A lease was deleted or ran out.
    Removed {
        /// Its subnet.
        subnet: Ipv4Network,
        /// Revision of the store.
        revision: i64,
    },
    /// These are all keys that cannot be read as leases now.
    Unreadable {
        /// The whole keys, and why.
        keys: UnreadableKeys,
    },
    /// The next snapshot does not go on from what was told before: the store lost
    /// its data, or has older ones.
    OtherHistory {
        /// What gives it away.
        reason: String,
    },
    /// The store cannot be followed at the moment. Nothing changes for the
    /// data plane; status shows the reason. A `Snapshot` follows once it can.
    Disconnected {
        /// What failed, with the endpoint.
        reason: String,
    },
}

impl LeaseUpdate {
    /// The store's revision that this is of.
    pub fn revision(&self) -> Option<i64> {
        match self {
            Self::Snapshot { revision, .. } | Self::Removed { revision, .. } => Some(*revision),
            Self::Put { lease } => Some(lease.revision),
            Self::Disconnected { .. } | Self::OtherHistory { .. } | Self::Unreadable { .. } => None,
        }
    }
}
