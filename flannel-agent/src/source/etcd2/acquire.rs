//! Writes: acquiring and renewing. Each compares first.

use flannel_core::config::NetworkConfig;
use flannel_core::lease::Lease;
use flannel_core::lease::free::fits;
use hyper::Method;

use super::connect::field;
use super::failure::Refusal;
use super::{Etcd2, EtcdNode, Listing, Stands, decode, unexpected};
use crate::source::choice::{ACQUIRE_ROUNDS, Choice, RENEW_ROUNDS, choose, pause};
use crate::source::claim::{is_taken, question};
use crate::source::{Claim, SourceError};

impl Etcd2 {
    pub(super) async fn acquire_subnet(
        &self,
        config: &NetworkConfig,
        claim: &Claim,
    ) -> Result<Lease, SourceError> {
        for round in 0..ACQUIRE_ROUNDS {
            pause(round).await;
            let listing = self.listing().await?;
            if let Some(lease) = self.try_acquire(config, claim, listing).await? {
                return Ok(lease);
            }
        }
        Err(SourceError::Contended { call: "acquire", key: self.subnets(), rounds: ACQUIRE_ROUNDS })
    }

    /// One try; `None` if another node was faster.
    async fn try_acquire(
        &self,
        config: &NetworkConfig,
        claim: &Claim,
        listing: Listing,
    ) -> Result<Option<Lease>, SourceError> {
        let (ours, others) = claim.split(listing.entries, Clone::clone)?;
        let (fitting, unfit): (Vec<_>, Vec<_>) =
            ours.into_iter().partition(|entry| fits(config, entry.subnet));
        for entry in unfit {
            let key = self.key(entry.subnet);
            tracing::info!(key, "own lease removed: the network config does not allow it");
            if !self.delete(&key, entry.revision).await? {
                return Ok(None);
            }
        }
        let own: Vec<_> = fitting.iter().map(|entry| (entry.subnet, entry.revision)).collect();
        let taken: Vec<_> =
            others.iter().map(|entry| entry.subnet).chain(listing.unreadable).collect();
        let (subnet, stands) = match choose(config, claim, &own, &taken, || self.config_key())? {
            Choice::Own(at) => {
                let own = &fitting[at];
                let reserved = own.expires.is_none();
                (own.subnet, Stands::Key { revision: own.revision, reserved })
            }
            Choice::Free(subnet) => (subnet, Stands::Nothing),
        };
        self.write(subnet, &claim.attrs, stands).await
    }

    /// Renews, or claims the subnet of `lease`, whatever its revision is, if
    /// nobody else holds it.
    pub(in crate::source) async fn renew_lease(&self, lease: &Lease) -> Result<Lease, SourceError> {
        let subnet = lease.subnet;
        let key = self.key(subnet);
        for round in 0..RENEW_ROUNDS {
            pause(round).await;
            let node = self.get(&key).await?;
            let stands = match node {
                None => Stands::Nothing,
                Some(node) => {
                    self.refuse_if_taken(&node, lease)?;
                    Stands::Key { revision: node.revision(), reserved: node.ttl.is_none() }
                }
            };
            if let Some(lease) = self.write(subnet, &lease.attrs, stands).await? {
                return Ok(lease);
            }
        }
        Err(SourceError::Contended { call: "renew", key, rounds: RENEW_ROUNDS })
    }

    pub(super) async fn ask_holder(
        &self,
        lease: &Lease,
        by: &str,
    ) -> Result<Option<Lease>, SourceError> {
        let key = self.key(lease.subnet);
        let Some(node) = self.get(&key).await? else { return Ok(None) };
        let same = |stands: &Lease| stands.attrs.unasked() == lease.attrs.unasked();
        let Some(stands) = self.entry(&node).filter(same) else { return Ok(None) };
        let (attrs, value) = question(&stands, by)?;
        let mut form = field("value", &value);
        if let Some(left) = node.ttl {
            form.push_str(&format!("&ttl={}", left.max(1)));
        }
        let query = format!("prevIndex={}", node.revision());
        match self.change("write of", Method::PUT, &key, query, Some(form)).await? {
            Ok(answer) => {
                let revision = decode("write of", &key, &answer.body)?.node.revision();
                Ok(Some(Lease { attrs, revision, ..stands }))
            }
            Err(Refusal::Differs | Refusal::NoKey { .. }) => Ok(None),
            Err(refusal) => Err(unexpected("write of", &key, refusal)),
        }
    }

    /// What cannot be read tells of no other node: the subnet still is ours.
    fn refuse_if_taken(&self, node: &EtcdNode, lease: &Lease) -> Result<(), SourceError> {
        let written = self.written().clone();
        match self.entry(node) {
            Some(entry) if is_taken(&entry, lease, written.as_ref()) => {
                let holder = entry.attrs.public_ip;
                Err(SourceError::LeaseLost { subnet: lease.subnet, holder })
            }
            _ => Ok(()),
        }
    }
}
