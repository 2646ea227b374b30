//! Which subnet a node takes, of what a store lists. Pure but for the dice.

use std::time::Duration;

use flannel_core::config::NetworkConfig;
use flannel_core::lease::free::{fits, is_free, pick};
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
        .ok_or_else(|| SourceError::OutOfSubnets {
            leases: taken.len(),
            min: config.subnet_min,
            max: config.subnet_max,
            key: config_key(),
        })
}

/// Lets others go first after a lost race.
pub(super) async fn pause(round: u32) {
    if round > 0 {
        let most = 20 * u64::from(round.min(10));
        let pause = rand::rng().random_range(5..=most);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}
