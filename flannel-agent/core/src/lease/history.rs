//! Whether what a store lists goes on from what it told before. Pure.
//!
//! A store that lost its data, or that was restored from a backup, looks like
//! one from which nodes have been removed. Its revision, or that no lease is as
//! it was, gives it away.

use std::collections::BTreeMap;

use ipnetwork::Ipv4Network;

use super::Lease;
use super::update::LeaseUpdate;

/// What a store told: its revision, and that of each lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    revision: i64,
    leases: BTreeMap<Ipv4Network, i64>,
}

/// A list does not go on from what was told before.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Break {
    /// Its revision is an earlier one.
    #[error("its revision went back from {from} to {to}")]
    WentBack {
        /// The last revision that was told.
        from: i64,
        /// The list's.
        to: i64,
    },
    /// A lease would have been told before.
    #[error("lease {subnet} is of revision {to}, while that was not told up to {from}")]
    Contradiction {
        /// The lease's subnet.
        subnet: Ipv4Network,
        /// The last revision that was told.
        from: i64,
        /// The lease's.
        to: i64,
    },
    /// Not one lease is as it was.
    #[error("not one of {known} leases is as it was (revision {from}, now {to})")]
    Strange {
        /// Leases that were known.
        known: usize,
        /// The last revision that was told.
        from: i64,
        /// The list's.
        to: i64,
    },
}

impl History {
    /// Takes in what the store tells.
    pub fn note(&mut self, update: &LeaseUpdate) {
        match update {
            LeaseUpdate::Snapshot { leases, .. } => {
                self.leases = leases.iter().map(|lease| (lease.subnet, lease.revision)).collect();
                self.revision = update.revision().unwrap_or(0);
            }
            LeaseUpdate::Put { lease } => {
                self.leases.insert(lease.subnet, lease.revision);
            }
            LeaseUpdate::Removed { subnet, .. } => {
                self.leases.remove(subnet);
            }
            LeaseUpdate::Disconnected { .. }
            | LeaseUpdate::OtherHistory { .. }
            | LeaseUpdate::Unreadable { .. } => {}
        }
        self.revision = self.revision.max(update.revision().unwrap_or(0));
    }

    /// Takes in that we wrote a lease ourselves, of which the store may tell later.
    pub fn wrote(&mut self, subnet: Ipv4Network, revision: i64) {
        self.leases.insert(subnet, revision);
    }

    /// Why a list cannot be of the same history, if it cannot. `followed`: nothing
    /// came between what was told and the list but too many changes, so that all
    /// leases may well have been written.
    pub fn broken_by(&self, leases: &[Lease], revision: i64, followed: bool) -> Option<Break> {
        let (from, to) = (self.revision, revision);
        if to < from {
            return Some(Break::WentBack { from, to });
        }
        let known = |lease: &&Lease| self.leases.get(&lease.subnet).copied();
        let earlier = |lease: &&Lease| {
            lease.revision <= from && known(lease).is_some_and(|known| known != lease.revision)
        };
        if let Some(lease) = leases.iter().find(earlier) {
            return Some(Break::Contradiction { subnet: lease.subnet, from, to: lease.revision });
        }
        if followed {
            return None;
        }
        let same = |lease: &Lease| self.leases.get(&lease.subnet) == Some(&lease.revision);
        let known = self.leases.len();
        (known > 0 && !leases.iter().any(same)).then_some(Break::Strange { known, from, to })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::backend::Published;
    use crate::lease::attrs::LeaseAttrs;

    fn lease(third: u8, revision: i64) -> Lease {
        let subnet = Ipv4Network::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap();
        let attrs = LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, third), Published::default());
        Lease { subnet, attrs, expires: None, revision }
    }

    fn history() -> History {
        let mut history = History::default();
        assert_eq!(history.broken_by(&[lease(1, 7)], 9, false), None, "the first list");
        let leases = vec![lease(1, 7), lease(2, 8)];
        history.note(&LeaseUpdate::Snapshot { leases, revision: 9 });
        history.note(&LeaseUpdate::Put { lease: lease(3, 12) });
        history.note(&LeaseUpdate::Removed { subnet: lease(2, 0).subnet, revision: 13 });
        history
    }

    #[test]
    fn one_lease_as_it_was_is_enough() {
        let history = history();
        assert_eq!(history.broken_by(&[lease(1, 7)], 13, false), None);
        assert_eq!(history.broken_by(&[lease(4, 99), lease(3, 12)], 100, false), None);
    }

    #[test]
    fn an_earlier_revision_or_no_known_lease_is_another_history() {
        let history = history();
        let all = [lease(1, 7), lease(3, 12)];
        for followed in [true, false] {
            let broken = history.broken_by(&all, 12, followed);
            assert_eq!(broken, Some(Break::WentBack { from: 13, to: 12 }));
            let broken = history.broken_by(&[lease(1, 7), lease(3, 5)], 20, followed);
            let subnet = lease(3, 0).subnet;
            assert_eq!(broken, Some(Break::Contradiction { subnet, from: 13, to: 5 }));
        }
        let strange = Some(Break::Strange { known: 2, from: 13, to: 20 });
        // The same nodes have written again, and a lease that had gone is there.
        for listed in [&[][..], &[lease(1, 14), lease(3, 15)], &[lease(2, 8)]] {
            assert_eq!(history.broken_by(listed, 20, false), strange);
            assert_eq!(history.broken_by(listed, 20, true), None, "too many changes");
        }
    }

    #[test]
    fn what_we_wrote_ourselves_is_no_other_history() {
        let mut history = history();
        history.wrote(lease(1, 0).subnet, 15);
        // The other one was written before ours, and nobody told yet.
        let listed = [lease(1, 15), lease(3, 14)];
        assert_eq!(history.broken_by(&listed, 16, false), None);
        assert_eq!(history.broken_by(&[lease(1, 15)], 15, false), None);
        assert!(history.broken_by(&[lease(1, 3)], 15, false).is_some());
    }

    #[test]
    fn a_new_list_is_what_the_next_one_goes_on_from() {
        let mut history = history();
        history.note(&LeaseUpdate::Snapshot { leases: vec![lease(5, 2)], revision: 3 });
        assert_eq!(history.broken_by(&[lease(5, 2)], 3, false), None);
        assert!(
            history.broken_by(&[lease(1, 7), lease(3, 12)], 13, false).is_some(),
            "the old one"
        );
        history.note(&LeaseUpdate::Snapshot { leases: Vec::new(), revision: 4 });
        assert_eq!(history.broken_by(&[lease(1, 7)], 13, false), None, "nothing was known");
    }
}
