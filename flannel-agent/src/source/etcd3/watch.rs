//! Following the leases by one watch of their prefix.

use std::sync::{Arc, Mutex};

use etcd_client::{Error, EventType, KeyValue, WatchOptions, WatchResponse};
use flannel_core::lease::Lease;
use flannel_core::lease::history::History;
use flannel_core::lease::update::LeaseUpdate;
use ipnetwork::Ipv4Network;
use tokio::time::timeout;

use super::aliases::Aliases;
use super::connect::CALL_TIMEOUT;
use super::{Etcd3, LIST_LIMIT};
use crate::source::SourceError;
use crate::source::follow::{End, Followed, Updates};
use crate::source::unreadable::Unreadable;

impl Followed for Etcd3 {
    async fn snapshot(&self) -> Result<(Vec<Lease>, i64), SourceError> {
        self.memory().aliases = Aliases::default();
        self.unreadable().begin_list();
        let listing = self.listing().await?;
        self.leases(listing).await
    }

    async fn changes(&self, revision: i64, updates: &Updates) -> End {
        // The list went to this endpoint, so that the login is fresh: etcd
        // answers an outdated one of a watch with a plain refusal.
        let mut left = self.endpoints().left();
        let connection = match self.endpoints().current().await {
            Ok(current) => current,
            Err(failure) => {
                let reason = format!("{}: {}", self.endpoints().names(), failure.cause);
                return End::Failed { reason };
            }
        };
        let failed =
            |what: &str| End::Failed { reason: format!("{}: watch: {what}", connection.url) };
        let broken = |error: &Error| failed(&connection.failure(error).cause);
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(revision + 1)
            .with_progress_notify();
        let mut watcher = connection.client.watch_client().max_decoding_message_size(LIST_LIMIT);
        let opening = watcher.watch(self.keys().subnets(), Some(options));
        let mut stream = match timeout(CALL_TIMEOUT, opening).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return broken(&error),
            Err(_) => return failed("no answer"),
        };
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                Ok(()) = left.changed() => return End::Left,
            };
            let response = match message {
                Ok(Some(response)) => response,
                Ok(None) => return failed("the stream ended"),
                Err(error) => return broken(&error),
            };
            if response.compact_revision() != 0 {
                return End::Compacted { revision: response.compact_revision() };
            }
            if response.canceled() {
                return failed(&format!("cancelled: {}", response.cancel_reason()));
            }
            if let Err(end) = self.pass_on(&response, updates).await {
                return end;
            }
        }
    }

    fn history(&self) -> Arc<Mutex<History>> {
        Arc::clone(&self.inner.history)
    }

    fn unreadable(&self) -> Arc<Mutex<Unreadable>> {
        Arc::clone(&self.inner.unreadable)
    }

    async fn leave(&self) {
        self.endpoints().leave().await;
    }
}

impl Etcd3 {
    async fn pass_on(&self, response: &WatchResponse, updates: &Updates) -> Result<(), End> {
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let put = match event.event_type() {
                EventType::Delete => {
                    self.unreadable().forget(kv.key());
                    None
                }
                // What cannot be read is no lease; a list would lack it.
                EventType::Put => self.entry(kv),
            };
            let update = match put {
                Some(entry) => {
                    Some(self.lease(entry).await.map(|lease| LeaseUpdate::Put { lease }))
                }
                None => match self.subnet_of(kv) {
                    Some(subnet) => Some(self.without(kv, subnet).await),
                    None => None,
                },
            };
            let update = update.transpose();
            let update = update.map_err(|error| End::Failed { reason: error.to_string() })?;
            if let Some(update) = update {
                updates.send(update).await?;
            }
        }
        updates.tell_unreadable().await
    }

    /// What a subnet is without this key: another one may stand for it, too.
    async fn without(
        &self,
        kv: &KeyValue,
        subnet: Ipv4Network,
    ) -> Result<LeaseUpdate, SourceError> {
        let name = kv.key_str().ok().and_then(|key| key.strip_prefix(&self.keys().subnets()));
        let has_others = self.memory().aliases.forget(subnet, name.unwrap_or_default());
        if has_others {
            let left = self.listing().await?.entries.into_iter();
            let left = left.filter(|entry| entry.subnet == subnet);
            if let Some(entry) = left.max_by_key(|entry| entry.revision) {
                return Ok(LeaseUpdate::Put { lease: self.lease(entry).await? });
            }
        }
        Ok(LeaseUpdate::Removed { subnet, revision: kv.mod_revision() })
    }
}
