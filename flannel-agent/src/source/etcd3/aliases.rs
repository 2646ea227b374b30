//! Several keys of one subnet: `10.5.1.0-24&fd00::-64` stays beside `10.5.1.0-24` until
//! it ends, after its node has given up IPv6. The key that was written last counts. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use flannel_core::lease::Lease;
use flannel_core::lease::key::SubnetKey;
use ipnetwork::Ipv4Network;

/// Names of leases in another form than ours, by their subnets.
#[derive(Default)]
pub(super) struct Aliases(BTreeMap<Ipv4Network, Vec<String>>);

impl Aliases {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes in that there is a lease `of` a subnet by this name.
    pub(super) fn note(&mut self, of: SubnetKey, name: &str) {
        if of.to_string() != name {
            let names = self.0.entry(of.subnet()).or_default();
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }

    /// Takes in that the lease by this name has gone; whether there may be another one
    /// of the subnet.
    pub(super) fn forget(&mut self, subnet: Ipv4Network, name: &str) -> bool {
        let Some(names) = self.0.get_mut(&subnet) else { return false };
        names.retain(|known| known != name);
        if names.is_empty() {
            self.0.remove(&subnet);
        }
        true
    }
}

/// Leaves one lease of each subnet: the one that was written last.
pub(super) fn newest(leases: &mut Vec<Lease>) {
    leases.sort_by_key(|lease| (lease.subnet, Reverse(lease.revision)));
    leases.dedup_by_key(|lease| lease.subnet);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_may_have_others_while_one_by_another_name_is_known() {
        let of: SubnetKey = "10.5.1.0-24".parse().unwrap();
        let mut aliases = Aliases::default();
        aliases.note(of, "10.5.1.0-24");
        assert!(aliases.is_empty() && !aliases.forget(of.subnet(), "10.5.1.0-24"));
        for _ in 0..2 {
            aliases.note(of, "10.5.1.0-24&fd00::-64");
        }
        assert!(aliases.forget(of.subnet(), "10.5.1.0-24"));
        assert!(aliases.forget(of.subnet(), "10.5.1.0-24&fd00::-64"));
        assert!(aliases.is_empty());
    }
}
