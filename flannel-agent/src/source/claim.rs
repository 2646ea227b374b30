//! What a node asks for, and which leases it may call its own. Pure.

use std::net::Ipv4Addr;

use flannel_core::lease::Lease;
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::lease::key::SubnetKey;
use flannel_core::mac::MacAddr;
use ipnetwork::Ipv4Network;

use super::SourceError;

/// What a node asks for.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What will stand under the key.
    pub attrs: LeaseAttrs,
    /// The subnet that the node had (state file or subnet.env), if any.
    pub previous: Option<Ipv4Network>,
    /// The lease that the node remembers, which may have another PublicIP.
    pub former: Option<Former>,
    /// Leases whose holders were asked, and gave no sign of life.
    pub unanswered: Vec<Lease>,
}

/// A lease of this node, as its state file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Former {
    /// Its subnet.
    pub subnet: Ipv4Network,
    /// Its PublicIP.
    pub public_ip: Ipv4Addr,
    /// The MAC of its VTEP, if the backend has one.
    pub vtep_mac: MacAddr,
}

/// Whose a lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Ours,
    /// Ours, or a living node's with the same PublicIP or a copy of our files.
    Unsure,
    Theirs,
}

impl Claim {
    /// A claim of a node that remembers nothing but, perhaps, its subnet.
    pub fn new(attrs: LeaseAttrs, previous: Option<Ipv4Network>) -> Self {
        Self { attrs, previous, former: None, unanswered: Vec::new() }
    }

    /// `previous` as the store names it.
    pub(super) fn previous_subnet(&self) -> Option<Ipv4Network> {
        self.previous.map(|previous| SubnetKey::new(previous).subnet())
    }

    /// Splits what a store lists into the node's own leases and the others.
    ///
    /// # Errors
    /// [`SourceError::Held`]: none is the node's own for certain, and one may be.
    pub(super) fn split<T>(
        &self,
        listed: Vec<T>,
        lease: impl Fn(&T) -> Lease,
    ) -> Result<(Vec<T>, Vec<T>), SourceError> {
        let whose = |listed: &T| {
            let lease = lease(listed);
            self.whose(lease.subnet, &lease.attrs)
        };
        let (ours, others): (Vec<T>, Vec<T>) =
            listed.into_iter().partition(|listed| whose(listed) == Whose::Ours);
        let unsure = others.iter().filter(|other| whose(other) == Whose::Unsure).map(&lease);
        match unsure.max_by_key(|lease| lease.revision) {
            Some(lease) if ours.is_empty() => Err(SourceError::Held { lease: Box::new(lease) }),
            _ => Ok((ours, others)),
        }
    }

    fn whose(&self, subnet: Ipv4Network, attrs: &LeaseAttrs) -> Whose {
        let asked = |lease: &Lease| lease.subnet == subnet && lease.attrs == *attrs;
        if self.unanswered.iter().any(asked) {
            return Whose::Ours;
        }
        if attrs.public_ip == self.attrs.public_ip {
            let same_vtep = match (attrs.vtep(), self.attrs.vtep()) {
                (Ok(theirs), Ok(ours)) => theirs.vtep_mac == ours.vtep_mac,
                _ => false,
            };
            let ours = same_vtep || self.previous_subnet() == Some(subnet);
            return if ours { Whose::Ours } else { Whose::Unsure };
        }
        let ours_before = |former: &Former| {
            former.subnet == subnet
                && former.public_ip == attrs.public_ip
                && attrs.vtep().map_or(true, |data| data.vtep_mac == former.vtep_mac)
        };
        if self.former.as_ref().is_some_and(ours_before) { Whose::Unsure } else { Whose::Theirs }
    }
}

/// Whether the lease that `stands` for our subnet is another node's. Ours may
/// still have a PublicIP that was ours before: then it is as we wrote it, and in the
/// same revision. That alone says nothing in a store that began anew.
pub(super) fn is_taken(stands: &Lease, ours: &Lease, written: Option<&Written>) -> bool {
    let as_written =
        |(subnet, attrs): &Written| *subnet != stands.subnet || *attrs == stands.attrs.unasked();
    stands.attrs.public_ip != ours.attrs.public_ip
        && !(stands.revision == ours.revision && written.is_none_or(as_written))
}

/// The lease that we wrote last.
pub(super) type Written = (Ipv4Network, LeaseAttrs);

/// `lease` with a question: its attributes, and their text.
///
/// # Errors
/// It has no text.
pub(super) fn question(lease: &Lease, by: &str) -> Result<(LeaseAttrs, String), SourceError> {
    let attrs = LeaseAttrs { asked_by: Some(by.to_owned()), ..lease.attrs.clone() };
    let value = value(lease.subnet, &attrs)?;
    Ok((attrs, value))
}

/// The text that stands under a subnet's key.
///
/// # Errors
/// There is none.
pub(super) fn value(subnet: Ipv4Network, attrs: &LeaseAttrs) -> Result<String, SourceError> {
    serde_json::to_string(attrs).map_err(|error| SourceError::Options {
        option: format!("lease {}", SubnetKey::new(subnet)),
        cause: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use flannel_core::backend::Backend;

    use super::*;

    const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn attrs(address: u8, mac: MacAddr) -> LeaseAttrs {
        LeaseAttrs::vxlan(Ipv4Addr::new(192, 0, 2, address), 1, mac)
    }

    fn lease(third: u8, attrs: LeaseAttrs) -> Lease {
        let subnet = Ipv4Network::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap();
        Lease { subnet, attrs, expires: None, revision: i64::from(third) }
    }

    /// Subnets (third byte) of the own leases; or of the one that may be.
    fn own(claim: &Claim, listed: &[Lease]) -> Result<Vec<u8>, u8> {
        let third = |lease: &Lease| lease.subnet.ip().octets()[2];
        match claim.split(listed.to_vec(), Clone::clone) {
            Ok((ours, others)) => {
                assert_eq!(ours.len() + others.len(), listed.len());
                Ok(ours.iter().map(third).collect())
            }
            Err(SourceError::Held { lease }) => Err(third(&lease)),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_lease_of_our_public_ip_is_ours_if_we_remember_its_mac_or_subnet() {
        let claim = Claim::new(attrs(1, OURS), None);
        assert_eq!(own(&claim, &[lease(3, attrs(2, OTHER))]), Ok(vec![]));
        assert_eq!(own(&claim, &[lease(3, attrs(1, OURS))]), Ok(vec![3]));
        assert_eq!(own(&claim, &[lease(3, attrs(1, OTHER))]), Err(3));
        let claim = Claim::new(attrs(1, OURS), Some("10.5.3.1/24".parse().unwrap()));
        assert_eq!(own(&claim, &[lease(3, attrs(1, OTHER))]), Ok(vec![3]));
        // A further one is left alone.
        let both = [lease(3, attrs(1, OTHER)), lease(4, attrs(1, OTHER))];
        assert_eq!(own(&claim, &both), Ok(vec![3]));
        let host_gw = |address| {
            let published = Backend::HostGw.facts().publishes(MacAddr::default());
            LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, address), published)
        };
        assert_eq!(own(&Claim::new(host_gw(1), None), &[lease(3, host_gw(1))]), Err(3));
    }

    #[test]
    fn a_revision_alone_does_not_make_a_lease_ours() {
        let ours = lease(3, attrs(1, OURS));
        let stands = |address, mac, revision| Lease { revision, ..lease(3, attrs(address, mac)) };
        let written = Some((ours.subnet, attrs(7, OURS)));
        let is_taken = |stands: Lease| is_taken(&stands, &ours, written.as_ref());
        assert!(!is_taken(stands(1, OTHER, 9)), "our PublicIP");
        assert!(!is_taken(stands(7, OURS, 3)), "as we wrote it, before our PublicIP changed");
        assert!(is_taken(stands(7, OURS, 9)), "somebody wrote it since");
        assert!(is_taken(stands(2, OTHER, 3)), "another store, which has the same revision");
        assert!(is_taken(stands(2, OTHER, 9)));
    }

    #[test]
    fn what_was_ours_at_another_address_is_ours_if_nobody_answers_there() {
        let former = Former {
            subnet: lease(3, attrs(7, OURS)).subnet,
            public_ip: Ipv4Addr::new(192, 0, 2, 7),
            vtep_mac: OURS,
        };
        let mut claim = Claim { former: Some(former), ..Claim::new(attrs(1, OURS), None) };
        assert_eq!(own(&claim, &[lease(3, attrs(7, OURS))]), Err(3));
        for other in [lease(3, attrs(7, OTHER)), lease(3, attrs(8, OURS)), lease(4, attrs(7, OURS))]
        {
            assert_eq!(own(&claim, &[other]), Ok(vec![]), "somebody else's by now");
        }
        let question = |by: &str| LeaseAttrs { asked_by: Some(by.to_owned()), ..attrs(7, OURS) };
        claim.unanswered.push(lease(3, question("us")));
        assert_eq!(own(&claim, &[lease(3, question("us"))]), Ok(vec![3]));
        assert_eq!(own(&claim, &[lease(3, question("others"))]), Err(3));
        assert_eq!(own(&claim, &[lease(3, attrs(7, OURS))]), Err(3), "it was answered");
    }
}
