//! Acquiring a subnet: one try after the other, until no other node was faster.

use flannel_core::config::NetworkConfig;
use flannel_core::lease::Lease;
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::lease::free::fits;
use ipnetwork::Ipv4Network;

use super::choice::{ACQUIRE_ROUNDS, Choice, choose, pause};
use super::prefix::Keys;
use super::{Claim, SourceError};

/// The verbs that acquiring needs of a store. Each write compares first.
pub(super) trait Subnets: Sync {
    /// A lease as the store has it.
    type Entry: Send + Sync;

    /// Where its keys are.
    fn below(&self) -> &Keys;

    /// All leases, and the subnets of those that cannot be read.
    fn listed(
        &self,
    ) -> impl Future<Output = Result<(Vec<Self::Entry>, Vec<Ipv4Network>), SourceError>> + Send;

    /// What an entry says.
    fn lease(entry: &Self::Entry) -> Lease;

    /// Its subnet and its revision.
    fn place(entry: &Self::Entry) -> (Ipv4Network, i64);

    /// Deletes an entry, unless somebody wrote it since: whether it did.
    fn remove(&self, entry: &Self::Entry)
    -> impl Future<Output = Result<bool, SourceError>> + Send;

    /// Writes a lease where this entry stands, or nothing; `None` if something else does
    /// by now.
    fn put(
        &self,
        subnet: Ipv4Network,
        attrs: &LeaseAttrs,
        stands: Option<&Self::Entry>,
    ) -> impl Future<Output = Result<Option<Lease>, SourceError>> + Send;
}

/// Acquires, but none of the subnets in `avoid` unless it is ours already.
///
/// # Errors
/// The store's, and those of [`choose`] and [`Claim::split`].
pub(super) async fn acquire<S: Subnets>(
    store: &S,
    config: &NetworkConfig,
    claim: &Claim,
    avoid: &[Ipv4Network],
) -> Result<Lease, SourceError> {
    for round in 0..ACQUIRE_ROUNDS {
        pause(round).await;
        if let Some(lease) = try_once(store, config, claim, avoid).await? {
            return Ok(lease);
        }
    }
    let key = store.below().subnets();
    Err(SourceError::Contended { call: "acquire", key, rounds: ACQUIRE_ROUNDS })
}

/// One try; `None` if another node was faster.
async fn try_once<S: Subnets>(
    store: &S,
    config: &NetworkConfig,
    claim: &Claim,
    avoid: &[Ipv4Network],
) -> Result<Option<Lease>, SourceError> {
    let (entries, unreadable) = store.listed().await?;
    let (ours, others) = claim.split(entries, S::lease)?;
    let (fitting, unfit): (Vec<_>, Vec<_>) =
        ours.into_iter().partition(|entry| fits(config, S::place(entry).0));
    for entry in unfit {
        let key = store.below().of(S::place(&entry).0);
        tracing::info!(key, "own lease removed: the network config does not allow it");
        if !store.remove(&entry).await? {
            return Ok(None);
        }
    }
    let own: Vec<_> = fitting.iter().map(S::place).collect();
    let others = others.iter().map(|entry| S::place(entry).0);
    let taken: Vec<_> = others.chain(unreadable).chain(avoid.iter().copied()).collect();
    match choose(config, claim, &own, &taken, || store.below().config())? {
        Choice::Own(at) => store.put(own[at].0, &claim.attrs, Some(&fitting[at])).await,
        Choice::Free(subnet) => store.put(subnet, &claim.attrs, None).await,
    }
}
