//! Leases: what a node publishes of itself, and what peers read of it. Pure.

pub mod attrs;
pub mod free;
pub mod history;
pub mod judge;
pub mod key;
pub mod table;
pub mod update;
pub mod v2;

use std::time::{Duration, Instant};

use ipnetwork::Ipv4Network;

use self::attrs::LeaseAttrs;

/// When what had so many seconds left at a time ends: at once, if there are none; `None`
/// where that outlasts all clocks.
pub fn end(asked: Instant, seconds_left: i64) -> Option<Instant> {
    asked.checked_add(Duration::from_secs(u64::try_from(seconds_left).unwrap_or(0)))
}

/// A node's claim on a subnet.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// The subnet, host bits zero.
    pub subnet: Ipv4Network,
    /// What the node says of itself.
    pub attrs: LeaseAttrs,
    /// End of the claim as far as known; `None` for a reservation, and for
    /// peers whose expiry was not asked for. By the clock that nobody sets: the store
    /// counts seconds, too.
    pub expires: Option<Instant>,
    /// The store's revision of the last change of this key (etcd v3
    /// `mod_revision`, v2 `modifiedIndex`): what compare-and-swap compares.
    pub revision: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_may_outlast_all_clocks() {
        let now = Instant::now();
        assert_eq!(end(now, 60), Some(now + Duration::from_secs(60)));
        assert_eq!(end(now, -1), Some(now));
        assert_eq!(end(now, i64::MAX), None);
    }
}
