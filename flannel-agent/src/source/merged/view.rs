//! What both APIs list, seen as one. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use flannel_core::lease::Lease;
use flannel_core::lease::update::{LeaseUpdate, UnreadableKeys};
use ipnetwork::Ipv4Network;

/// Where an update comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    V3,
    V2,
}

/// Our subnet and PublicIP.
pub(super) type Own = Option<(Ipv4Network, Ipv4Addr)>;

#[derive(Default)]
pub(super) struct View {
    v3: Side,
    v2: Side,
    /// Of v3's last snapshot.
    revision: i64,
}

#[derive(Default)]
struct Side {
    leases: BTreeMap<Ipv4Network, Lease>,
    listed: bool,
    broken: Option<String>,
    /// Keys that cannot be read.
    unreadable: UnreadableKeys,
    /// Its next list is of another history.
    other_history: Option<String>,
}

impl View {
    /// Takes in what one API told; returns what to tell of both.
    pub(super) fn take(&mut self, api: Api, update: LeaseUpdate, own: Own) -> Vec<LeaseUpdate> {
        let mut told = match update {
            LeaseUpdate::Snapshot { leases, revision } => {
                if api == Api::V3 {
                    self.revision = revision;
                }
                let side = self.side(api);
                side.leases = leases.into_iter().map(|lease| (lease.subnet, lease)).collect();
                (side.listed, side.broken) = (true, None);
                // What one of them has alone would look like all there is.
                if !(self.v3.listed && self.v2.listed) {
                    return Vec::new();
                }
                let other = self.side(api).other_history.take();
                let snapshot =
                    LeaseUpdate::Snapshot { leases: self.leases(own), revision: self.revision };
                other
                    .map(|reason| LeaseUpdate::OtherHistory { reason })
                    .into_iter()
                    .chain([snapshot])
                    .collect()
            }
            LeaseUpdate::Put { lease } => {
                let subnet = lease.subnet;
                self.change(api, subnet, Some(lease), own)
            }
            LeaseUpdate::Removed { subnet, .. } => self.change(api, subnet, None, own),
            LeaseUpdate::OtherHistory { reason } => {
                self.side(api).other_history = Some(reason);
                return Vec::new();
            }
            LeaseUpdate::Unreadable { keys } => {
                self.side(api).unreadable = keys;
                return vec![LeaseUpdate::Unreadable { keys: self.unreadable() }];
            }
            LeaseUpdate::Disconnected { reason } => {
                self.side(api).broken = Some(reason);
                Vec::new()
            }
        };
        // Any other update would tell that all is well.
        told.extend(self.broken().map(|reason| LeaseUpdate::Disconnected { reason }));
        told
    }

    /// All leases.
    pub(super) fn leases(&self, own: Own) -> Vec<Lease> {
        let subnets: BTreeSet<_> =
            self.v3.leases.keys().chain(self.v2.leases.keys()).copied().collect();
        subnets.into_iter().filter_map(|subnet| self.lease(subnet, own)).collect()
    }

    /// The keys of both that cannot be read. Those of v2 begin with a slash.
    fn unreadable(&self) -> UnreadableKeys {
        let of_v2 =
            |(key, cause): (&String, &String)| (key.clone(), format!("by the v2 API: {cause}"));
        let mut keys: UnreadableKeys = self.v2.unreadable.iter().map(of_v2).collect();
        keys.extend(self.v3.unreadable.clone());
        keys
    }

    fn side(&mut self, api: Api) -> &mut Side {
        match api {
            Api::V3 => &mut self.v3,
            Api::V2 => &mut self.v2,
        }
    }

    fn broken(&self) -> Option<String> {
        self.v3
            .broken
            .clone()
            .or_else(|| self.v2.broken.as_ref().map(|reason| format!("by the v2 API: {reason}")))
    }

    fn change(
        &mut self,
        api: Api,
        subnet: Ipv4Network,
        lease: Option<Lease>,
        own: Own,
    ) -> Vec<LeaseUpdate> {
        let before = self.lease(subnet, own);
        let leases = &mut self.side(api).leases;
        match lease {
            Some(lease) => leases.insert(subnet, lease),
            None => leases.remove(&subnet),
        };
        if !(self.v3.listed && self.v2.listed) {
            return Vec::new();
        }
        match self.lease(subnet, own) {
            Some(lease) if Some(&lease) != before.as_ref() => vec![LeaseUpdate::Put { lease }],
            None if before.is_some() => {
                let revision = before.map_or(0, |before| before.revision);
                vec![LeaseUpdate::Removed { subnet, revision }]
            }
            _ => Vec::new(),
        }
    }

    /// The lease of `subnet`. Ours has to be in both, and has v3's revision.
    fn lease(&self, subnet: Ipv4Network, own: Own) -> Option<Lease> {
        let (v3, v2) = (self.v3.leases.get(&subnet), self.v2.leases.get(&subnet));
        match own.filter(|(own, _)| *own == subnet) {
            None => v2.or(v3).cloned(),
            Some((_, public_ip)) => {
                let (v3, v2) = (v3?, v2?);
                let news = v3.attrs.public_ip != public_ip || v3.attrs.asked_by.is_some();
                let tell = if news { v3 } else { v2 };
                let expires = v3.expires;
                Some(Lease { revision: v3.revision, expires, ..tell.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_core::lease::attrs::LeaseAttrs;
    use flannel_core::mac::MacAddr;

    fn lease(third: u8, node: u8, revision: i64) -> Lease {
        Lease {
            subnet: Ipv4Network::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap(),
            attrs: LeaseAttrs::vxlan(Ipv4Addr::new(192, 0, 2, node), 1, MacAddr([2; 6])),
            expires: None,
            revision,
        }
    }

    fn snapshot(leases: &[Lease]) -> LeaseUpdate {
        LeaseUpdate::Snapshot { leases: leases.to_vec(), revision: 50 }
    }

    fn put(lease: Lease) -> LeaseUpdate {
        LeaseUpdate::Put { lease }
    }

    fn removed(lease: &Lease) -> LeaseUpdate {
        LeaseUpdate::Removed { subnet: lease.subnet, revision: 60 }
    }

    fn view(v3: &[Lease], v2: &[Lease], own: Own) -> View {
        let mut view = View::default();
        assert_eq!(view.take(Api::V2, snapshot(v2), own), [], "one of them is not all");
        assert_eq!(view.take(Api::V3, snapshot(v3), own).len(), 1);
        view
    }

    #[test]
    fn peers_of_both_are_seen_and_v2_is_right() {
        let mut view = view(&[lease(1, 1, 5), lease(2, 2, 6)], &[lease(2, 9, 1)], None);
        assert_eq!(view.leases(None), [lease(1, 1, 5), lease(2, 9, 1)]);
        // A copy in v3 that changes or goes is nothing to tell of.
        assert_eq!(view.take(Api::V3, put(lease(2, 3, 7)), None), []);
        assert_eq!(view.take(Api::V3, removed(&lease(2, 3, 7)), None), []);
        assert_eq!(view.take(Api::V2, put(lease(2, 8, 2)), None), [put(lease(2, 8, 2))]);
        view.take(Api::V3, put(lease(2, 4, 8)), None);
        // Gone from v2, v3's is what there is.
        assert_eq!(view.take(Api::V2, removed(&lease(2, 8, 2)), None), [put(lease(2, 4, 8))]);
        let told = view.take(Api::V3, removed(&lease(2, 4, 8)), None);
        assert!(matches!(told[..], [LeaseUpdate::Removed { .. }]), "{told:?}");
    }

    #[test]
    fn ours_has_to_be_in_both() {
        let own = Some((lease(1, 1, 0).subnet, Ipv4Addr::new(192, 0, 2, 1)));
        let mut view = view(&[lease(1, 1, 5)], &[lease(1, 1, 90)], own);
        assert_eq!(view.leases(own), [lease(1, 1, 5)], "with v3's revision");
        for api in [Api::V2, Api::V3] {
            let told = view.take(api, removed(&lease(1, 1, 5)), own);
            assert!(matches!(told[..], [LeaseUpdate::Removed { .. }]), "{told:?}");
            assert_eq!(view.take(api, put(lease(1, 1, 6)), own).len(), 1);
        }
        // Stolen in either, it is told.
        for api in [Api::V2, Api::V3] {
            let told = view.take(api, put(lease(1, 7, 8)), own);
            assert!(
                matches!(&told[..], [LeaseUpdate::Put { lease }] if lease.attrs.public_ip
                    == Ipv4Addr::new(192, 0, 2, 7)),
                "{told:?}"
            );
            view.take(api, put(lease(1, 1, 9)), own);
        }
    }

    #[test]
    fn keys_that_cannot_be_read_by_either_are_told_together() {
        let mut view = view(&[], &[], None);
        let keys = |key: &str| [(key.to_owned(), "no JSON".to_owned())].into();
        view.take(Api::V3, LeaseUpdate::Unreadable { keys: keys("x") }, None);
        let told = view.take(Api::V2, LeaseUpdate::Unreadable { keys: keys("/x") }, None);
        let reason = |key: &str, reason: &str| (key.to_owned(), reason.to_owned());
        let both = [reason("x", "no JSON"), reason("/x", "by the v2 API: no JSON")].into();
        assert_eq!(told, [LeaseUpdate::Unreadable { keys: both }]);
    }

    #[test]
    fn a_break_of_one_is_told_until_it_is_over() {
        let mut view = view(&[], &[lease(2, 2, 1)], None);
        let broken = LeaseUpdate::Disconnected { reason: "gone".to_owned() };
        let told = view.take(Api::V2, broken, None);
        assert!(
            matches!(&told[..], [LeaseUpdate::Disconnected { reason }]
            if reason == "by the v2 API: gone"),
            "{told:?}"
        );
        let told = view.take(Api::V3, put(lease(3, 3, 2)), None);
        assert!(matches!(&told[..], [LeaseUpdate::Put { .. }, LeaseUpdate::Disconnected { .. }]));
        // Of one that lost its data, both are told together.
        let other = LeaseUpdate::OtherHistory { reason: "it went back".to_owned() };
        assert_eq!(view.take(Api::V3, other, None), []);
        let told = view.take(Api::V3, snapshot(&[]), None);
        assert!(
            matches!(
                &told[..],
                [
                    LeaseUpdate::OtherHistory { .. },
                    LeaseUpdate::Snapshot { .. },
                    LeaseUpdate::Disconnected { .. }
                ]
            ),
            "{told:?}"
        );
        let told = view.take(Api::V2, snapshot(&[]), None);
        assert!(matches!(&told[..], [LeaseUpdate::Snapshot { leases, .. }] if leases.is_empty()));
    }
}
