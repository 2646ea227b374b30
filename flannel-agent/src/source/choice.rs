//! Which subnet a node takes, of what a store lists. Pure but for the dice.

use std::time::Duration;

use flannel_core::config::NetworkConfig;
use flannel_core::lease::free::{fits, is_free, pick};
use flannel_core::lease::key::SubnetKey;
use ipnetwork::Ipv4Network;
use rand::Rng as _;

use super::{Claim, SourceError};

/// Tries of an acquisition. Each lost one means that another node acquired,
/// so that even large fleets starting at once are done before.
pub(super) const ACQUIRE_ROUNDS: u32 = 500;

/// Tries of a renewal: nobody else should write our key.
pub(super) const RENEW_ROUNDS: u32 = 5;

/// What to acquire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The node's own lease of this index.
    Own(usize),
    /// A subnet that nobody holds.
    Free(Ipv4Network),
}

/// Chooses among the node's `own` leases that fit the config (subnet and
/// revision), the previous subnet if it is free, and any free one.
///
/// # Errors
/// [`SourceError::OutOfSubnets`]; `config_key` is for its text.
pub(super) fn choose(
    config: &NetworkConfig,
    claim: &Claim,
    own: &[(Ipv4Network, i64)],
    taken: &[Ipv4Network],
    config_key: impl FnOnce() -> String,
) -> Result<Choice, SourceError> {
    let previous = claim.previous_subnet();
    let own = own
        .iter()
        .position(|(subnet, _)| Some(*subnet) == previous)
        .or_else(|| (0..own.len()).max_by_key(|at| own[*at].1));
    if let Some(at) = own {
        return Ok(Choice::Own(at));
    }
    previous
        .filter(|subnet| fits(config, *subnet) && is_free(*subnet, taken.iter().copied()))
        .or_else(|| pick(config, taken.iter().copied(), |free| rand::rng().random_range(0..free)))
        .map(Choice::Free)
        .ok_or_else(|| out_of_subnets(config, taken, config_key()))
}

/// Nothing is free beside `taken`; `key` is the config's.
pub(super) fn out_of_subnets(
    config: &NetworkConfig,
    taken: &[Ipv4Network],
    key: String,
) -> SourceError {
    let mut widest: Vec<_> =
        taken.iter().copied().filter(|subnet| subnet.prefix() < config.subnet_len).collect();
    widest.sort_unstable_by_key(|subnet| (subnet.prefix(), subnet.network()));
    widest.dedup();
    let (leases, min, max) = (taken.len(), config.subnet_min, config.subnet_max);
    SourceError::OutOfSubnets { leases, widest, min, max, key }
}

/// Most subnets that a message names.
const NAMED: usize = 4;

/// What is odd where no subnet is free, for the message.
pub(super) fn why_none(reversed: bool, widest: &[Ipv4Network]) -> String {
    if reversed {
        return "; SubnetMin is above SubnetMax".to_owned();
    }
    if widest.is_empty() {
        return String::new();
    }
    let named: Vec<_> =
        widest.iter().take(NAMED).map(|subnet| SubnetKey::new(*subnet).to_string()).collect();
    format!("; {} of them are larger than SubnetLen says ({})", widest.len(), named.join(", "))
}

/// Lets others go first after a lost race.
pub(super) async fn pause(round: u32) {
    if round > 0 {
        let most = 20 * u64::from(round.min(10));
        let pause = rand::rng().random_range(5..=most);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a node is told that gets no subnet of these.
    fn told(range: &str, taken: &[&str]) -> String {
        let text = format!(r#"{{"Network":"10.5.0.0/16",{range}"Backend":{{"Type":"vxlan"}}}}"#);
        let config = NetworkConfig::parse(&text).unwrap();
        let taken: Vec<_> = taken.iter().map(|subnet| subnet.parse().unwrap()).collect();
        assert_eq!(pick(&config, taken.iter().copied(), |_| 0), None);
        out_of_subnets(&config, &taken, "/p/config".to_owned()).to_string()
    }

    #[test]
    fn a_lease_that_takes_all_is_named() {
        let text = told("", &["10.5.7.0/24", "10.5.0.0/16", "10.5.128.0/17"]);
        let odd = "; 2 of them are larger than SubnetLen says (10.5.0.0-16, 10.5.128.0-17); widen";
        assert!(text.starts_with("out of subnets: with 3 leases ") && text.contains(odd), "{text}");
    }

    #[test]
    fn a_range_without_subnets_is_told_from_a_full_one() {
        let text = told(r#""SubnetMin":"10.5.9.0","SubnetMax":"10.5.2.0","#, &[]);
        assert!(text.contains("SubnetMin is above SubnetMax; widen"), "{text}");
        let text = told(r#""SubnetMin":"10.5.9.0","SubnetMax":"10.5.9.0","#, &["10.5.9.0/24"]);
        assert!(text.contains("(SubnetMin, SubnetMax); widen"), "{text}");
    }
}
