//! Writes: acquiring and renewing. Each compares first.

use flannel_core::lease::Lease;
use flannel_core::lease::attrs::LeaseAttrs;
use hyper::Method;
use ipnetwork::Ipv4Network;

use super::connect::field;
use super::failure::Refusal;
use super::{Etcd2, EtcdNode, Stands, decode, unexpected};
use crate::source::SourceError;
use crate::source::acquisition::Subnets;
use crate::source::choice::{RENEW_ROUNDS, pause};
use crate::source::claim::{is_taken, question};
use crate::source::prefix::Keys;

impl Subnets for Etcd2 {
    type Entry = Lease;

    fn below(&self) -> &Keys {
        self.keys()
    }

    async fn listed(&self) -> Result<(Vec<Lease>, Vec<Ipv4Network>), SourceError> {
        let listing = self.listing().await?;
        Ok((listing.entries, listing.unreadable))
    }

    fn lease(entry: &Lease) -> Lease {
        entry.clone()
    }

    fn place(entry: &Lease) -> (Ipv4Network, i64) {
        (entry.subnet, entry.revision)
    }

    async fn remove(&self, entry: &Lease) -> Result<bool, SourceError> {
        self.delete(&self.keys().of(entry.subnet), entry.revision).await
    }

    async fn put(
        &self,
        subnet: Ipv4Network,
        attrs: &LeaseAttrs,
        stands: Option<&Lease>,
    ) -> Result<Option<Lease>, SourceError> {
        let key =
            |own: &Lease| Stands::Key { revision: own.revision, reserved: own.expires.is_none() };
        self.write(subnet, attrs, stands.map_or(Stands::Nothing, key)).await
    }
}

impl Etcd2 {
    /// Renews, or claims the subnet of `lease`, whatever its revision is, if
    /// nobody else holds it.
    pub(in crate::source) async fn renew_lease(&self, lease: &Lease) -> Result<Lease, SourceError> {
        let subnet = lease.subnet;
        let key = self.keys().of(subnet);
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
        let key = self.keys().of(lease.subnet);
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
