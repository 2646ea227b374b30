//! Writes: acquiring, renewing, and keeping no etcd lease that nothing uses.

use std::time::{Duration, Instant};

use etcd_client::{
    Compare, CompareOp, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, Txn,
    TxnOp, TxnOpResponse,
};
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::lease::{self, Lease};
use ipnetwork::Ipv4Network;
use rand::Rng as _;

use super::failure::{is_lease_exists, is_no_lease};
use super::{Entry, Etcd3};
use crate::source::acquisition::Subnets;
use crate::source::choice::{RENEW_ROUNDS, pause};
use crate::source::claim::{is_taken, value};
use crate::source::prefix::Keys;
use crate::source::{LEASE_TTL, SourceError};

/// Most etcd leases that are remembered for a later revocation.
const UNSETTLED: usize = 64;

/// What stands where we want to write.
#[derive(Clone, Copy)]
enum Stands<'a> {
    /// Nothing, neither in the plain nor in the dual-stack form.
    Nothing,
    /// This key, with this revision and etcd lease; it may be the dual-stack
    /// form, which the plain one then replaces.
    Key { key: &'a str, revision: i64, etcd_lease: i64 },
}

impl<'a> From<&'a Entry> for Stands<'a> {
    fn from(entry: &'a Entry) -> Self {
        let Entry { key, revision, etcd_lease, .. } = entry;
        Self::Key { key, revision: *revision, etcd_lease: *etcd_lease }
    }
}

impl Subnets for Etcd3 {
    type Entry = Entry;

    fn below(&self) -> &Keys {
        self.keys()
    }

    async fn listed(&self) -> Result<(Vec<Entry>, Vec<Ipv4Network>), SourceError> {
        let listing = self.listing().await?;
        Ok((listing.entries, listing.unreadable))
    }

    fn lease(entry: &Entry) -> Lease {
        entry.lease()
    }

    fn place(entry: &Entry) -> (Ipv4Network, i64) {
        (entry.subnet, entry.revision)
    }

    async fn remove(&self, entry: &Entry) -> Result<bool, SourceError> {
        self.delete(entry).await
    }

    async fn put(
        &self,
        subnet: Ipv4Network,
        attrs: &LeaseAttrs,
        stands: Option<&Entry>,
    ) -> Result<Option<Lease>, SourceError> {
        self.write(subnet, attrs, stands.map_or(Stands::Nothing, Stands::from)).await
    }
}

impl Etcd3 {
    pub(super) async fn renew_lease(&self, lease: &Lease) -> Result<Lease, SourceError> {
        let subnet = lease.subnet;
        let key = self.keys().of(subnet);
        for round in 0..RENEW_ROUNDS {
            pause(round).await;
            let options = GetOptions::new().with_prefix();
            let (kvs, _) = self.get(&key, Some(options)).await?;
            let entries: Vec<_> = kvs
                .iter()
                .filter_map(|kv| self.entry(kv))
                .filter(|entry| entry.subnet == subnet)
                .collect();
            let written = self.memory().own.clone();
            let is_theirs = |entry: &&Entry| is_taken(&entry.lease(), lease, written.as_ref());
            let theirs = entries.iter().find(is_theirs);
            if let Some(theirs) = theirs {
                return Err(SourceError::LeaseLost { subnet, holder: theirs.attrs.public_ip });
            }
            let plain = entries.iter().find(|entry| entry.key == key).or(entries.first());
            let stands = match plain {
                Some(entry) => entry.into(),
                // Unreadable, so it tells of no other node: the subnet still is ours.
                None => {
                    kvs.iter().find(|kv| kv.key() == key.as_bytes()).map_or(Stands::Nothing, |kv| {
                        Stands::Key {
                            key: &key,
                            revision: kv.mod_revision(),
                            etcd_lease: kv.lease(),
                        }
                    })
                }
            };
            if let Some(lease) = self.write(subnet, &lease.attrs, stands).await? {
                return Ok(lease);
            }
        }
        Err(SourceError::Contended { call: "renew", key, rounds: RENEW_ROUNDS })
    }

    /// Puts `attrs` under the subnet's key if that still is what `stands`
    /// tells; `None` if not.
    async fn write(
        &self,
        subnet: Ipv4Network,
        attrs: &LeaseAttrs,
        stands: Stands<'_>,
    ) -> Result<Option<Lease>, SourceError> {
        let key = self.keys().of(subnet);
        let key = key.as_str();
        let value = value(subnet, attrs)?;
        // A reservation has no etcd lease, and is not given one.
        let grant = match stands {
            Stands::Key { etcd_lease: 0, .. } => None,
            _ => {
                // At most one is left in doubt, however often writes fail.
                self.settle(0).await;
                Some(self.grant(key, LEASE_TTL).await?)
            }
        };
        let id = grant.map_or(0, |(id, _)| id);
        let transaction = transaction(key, value.as_str(), id, stands);
        let Some(revision) = self.write_once(key, transaction, id).await? else {
            self.revoke_unused(id).await;
            return Ok(None);
        };
        self.memory().own = Some((subnet, attrs.clone()));
        self.history().wrote(subnet, revision);
        if let Stands::Key { etcd_lease, .. } = stands {
            self.revoke_unused(etcd_lease).await;
        }
        self.settle(id).await;
        let expires = grant.and_then(|(_, end)| end);
        Ok(Some(Lease { subnet, attrs: attrs.clone(), expires, revision }))
    }

    /// The revision that the transaction made, or one whose answer got lost: `id` is
    /// the etcd lease that it writes with, 0 for none. `None` if something else stands
    /// there.
    async fn write_once(
        &self,
        key: &str,
        transaction: Txn,
        id: i64,
    ) -> Result<Option<i64>, SourceError> {
        match self.transact(key, transaction).await {
            Ok(Written::Done { revision }) => Ok(Some(revision)),
            // A try whose answer got lost had succeeded.
            Ok(Written::Refused { stands: Some((etcd_lease, revision)) })
                if id != 0 && etcd_lease == id =>
            {
                Ok(Some(revision))
            }
            Ok(Written::Refused { .. }) => Ok(None),
            Err(error @ SourceError::Call { refused: true, .. }) => {
                self.revoke_unused(id).await;
                Err(error)
            }
            Err(error) => {
                // Whether the key carries the new etcd lease is unknown.
                self.remember(id);
                Err(error)
            }
        }
    }

    /// Gives up a lease of ours, unless somebody wrote it since.
    pub(in crate::source) async fn release(&self, lease: &Lease) -> Result<(), SourceError> {
        let key = self.keys().of(lease.subnet);
        let (kvs, _) = self.get(&key, None).await?;
        let entry = kvs.first().and_then(|kv| self.entry(kv));
        if let Some(entry) = entry.filter(|entry| entry.revision == lease.revision) {
            self.delete(&entry).await?;
        }
        Ok(())
    }

    /// Deletes `entry` if nobody wrote it since it was read.
    async fn delete(&self, entry: &Entry) -> Result<bool, SourceError> {
        let key = entry.key.as_str();
        let transaction = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, entry.revision)])
            .and_then([TxnOp::delete(key, None)]);
        let done = matches!(self.transact(key, transaction).await?, Written::Done { .. });
        if done {
            self.revoke_unused(entry.etcd_lease).await;
        }
        Ok(done)
    }

    pub(super) async fn transact(
        &self,
        key: &str,
        transaction: Txn,
    ) -> Result<Written, SourceError> {
        let transaction = &transaction;
        let answer = self
            .endpoints()
            .call("write of", key, |client| {
                let transaction = transaction.clone();
                async move { client.kv_client().txn(transaction).await }
            })
            .await?;
        if answer.succeeded() {
            let revision = answer.header().map_or(0, |header| header.revision());
            return Ok(Written::Done { revision });
        }
        let stands = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(get) => get.kvs().first().map(|kv| (kv.lease(), kv.mod_revision())),
            _ => None,
        });
        Ok(Written::Refused { stands })
    }

    /// Grants an etcd lease of this length; returns its id and its end, as
    /// [`lease::end`] has it.
    pub(super) async fn grant(
        &self,
        key: &str,
        ttl: Duration,
    ) -> Result<(i64, Option<Instant>), SourceError> {
        // With an id of our choice, a try whose answer got lost leaves no
        // etcd lease that we would not know of.
        let id = rand::rng().random_range(1..=i64::MAX);
        let ttl = ttl.as_secs().max(1).cast_signed();
        let asked = Instant::now();
        let granted = self
            .endpoints()
            .call("lease grant for", key, |client| async move {
                let options = LeaseGrantOptions::new().with_id(id);
                match client.lease_client().grant(ttl, Some(options)).await {
                    Ok(answer) => Ok(answer.ttl()),
                    Err(error) if is_lease_exists(&error) => Ok(ttl),
                    Err(error) => Err(error),
                }
            })
            .await
            .inspect_err(|_| self.remember(id))?;
        Ok((id, lease::end(asked, granted)))
    }

    /// Revokes the etcd lease `id` unless a key carries it; 0 is none.
    pub(super) async fn revoke_unused(&self, id: i64) {
        if id == 0 {
            return;
        }
        let name = format!("{id:x}");
        let revoked = self
            .endpoints()
            .call("revocation of lease", &name, |client| async move {
                let mut leases = client.lease_client();
                let options = LeaseTimeToLiveOptions::new().with_keys();
                let answer = leases.time_to_live(id, Some(options)).await?;
                if answer.ttl() <= 0 || !answer.keys().is_empty() {
                    return Ok(());
                }
                match leases.revoke(id).await {
                    Err(error) if !is_no_lease(&error) => Err(error),
                    _ => Ok(()),
                }
            })
            .await;
        if let Err(error) = revoked {
            tracing::debug!(%error, "unused etcd lease kept until later");
            self.remember(id);
        }
    }

    /// Revokes what earlier calls left, but not what our key carries (`current`).
    async fn settle(&self, current: i64) {
        let unsettled = std::mem::take(&mut self.memory().unsettled);
        for id in unsettled.into_iter().filter(|id| *id != current) {
            self.revoke_unused(id).await;
        }
    }

    fn remember(&self, id: i64) {
        let mut memory = self.memory();
        // They end by themselves after LEASE_TTL.
        if id != 0 && memory.unsettled.len() < UNSETTLED {
            memory.unsettled.push(id);
        }
    }
}

/// Puts `value` under `key`, with the etcd lease `id`, if `stands` still is there.
fn transaction(key: &str, value: &str, id: i64, stands: Stands<'_>) -> Txn {
    let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(id)));
    let absent = || Compare::version(key, CompareOp::Equal, 0);
    let (compares, operations) = match stands {
        Stands::Nothing => {
            let dual = Compare::version(format!("{key}&"), CompareOp::Equal, 0).with_prefix();
            (vec![absent(), dual], vec![put])
        }
        Stands::Key { key: at, revision, .. } => {
            let same = Compare::mod_revision(at, CompareOp::Equal, revision);
            if at == key {
                (vec![same], vec![put])
            } else {
                (vec![same, absent()], vec![TxnOp::delete(at, None), put])
            }
        }
    };
    Txn::new().when(compares).and_then(operations).or_else([TxnOp::get(key, None)])
}

/// What became of a transaction.
pub(super) enum Written {
    Done {
        revision: i64,
    },
    /// The compare failed.
    Refused {
        /// etcd lease and revision of what stands under the key.
        stands: Option<(i64, i64)>,
    },
}
