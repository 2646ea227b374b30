//! The blackhole route of our own subnet: what nothing more specific leads to
//! is dropped here, instead of leaving by the default route and coming back.
//!
//! flanneld gives it metric 0. The bridge of the pods has a connected route of
//! the same prefix and metric: if that is there first, the kernel refuses the
//! blackhole, and if it comes second, the kernel never uses it and the pods get
//! nothing. Ours has the highest metric, so every other route goes before it,
//! and the metric tells that it is ours.

use ipnetwork::Ipv4Network;

/// Metric of ours.
pub const METRIC: u32 = u32::MAX;

/// A blackhole route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blackhole {
    /// What is dropped.
    pub destination: Ipv4Network,
    /// Priority (RTA_PRIORITY).
    pub metric: u32,
}

impl Blackhole {
    /// Ours for this subnet.
    pub fn ours(subnet: Ipv4Network) -> Self {
        Self { destination: subnet, metric: METRIC }
    }

    /// Whether we made it.
    pub fn is_ours(&self) -> bool {
        self.metric == METRIC
    }
}

/// The routes to remove, then the one to add. With a `wanted` subnet,
/// flanneld's route for it goes, too.
pub fn diff(
    wanted: Option<Ipv4Network>,
    present: &[Blackhole],
) -> (Vec<Blackhole>, Option<Blackhole>) {
    let ours = wanted.map(Blackhole::ours);
    let flannelds = wanted.map(|destination| Blackhole { destination, metric: 0 });
    let stale = |route: &&Blackhole| {
        let route = **route;
        Some(route) == flannelds || (route.is_ours() && Some(route) != ours)
    };
    let removed = present.iter().filter(stale).copied().collect();
    (removed, ours.filter(|ours| !present.contains(ours)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, metric: u32) -> Blackhole {
        Blackhole { destination: destination.parse().unwrap(), metric }
    }

    #[test]
    fn ours_and_flannelds_are_told_from_others() {
        let subnet = "10.5.1.0/24".parse().unwrap();
        let ours = Blackhole::ours(subnet);
        let others = [route("10.5.1.0/24", 7), route("10.5.0.0/16", 0), route("192.168.0.0/16", 0)];
        assert_eq!(diff(Some(subnet), &others), (vec![], Some(ours)));
        assert_eq!(diff(Some(subnet), &[ours]), (vec![], None));
        assert_eq!(diff(None, &others), (vec![], None));
        assert_eq!(diff(None, &[ours, others[0]]), (vec![ours], None));
        let flannelds = route("10.5.1.0/24", 0);
        assert_eq!(diff(Some(subnet), &[flannelds, ours]), (vec![flannelds], None));
        assert_eq!(diff(None, &[flannelds]), (vec![], None));
        let before = route("10.5.9.0/24", METRIC);
        assert_eq!(diff(Some(subnet), &[before]), (vec![before], Some(ours)));
    }
}
