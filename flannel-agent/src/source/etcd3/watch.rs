//! Following the leases by one watch of their prefix.

use std::sync::{Arc, Mutex};

use etcd_client::{Error, EventType, WatchOptions, WatchResponse};
use flannel_core::lease::Lease;
use flannel_core::lease::history::History;
use flannel_core::lease::update::LeaseUpdate;
use tokio::time::timeout;

use super::connect::CALL_TIMEOUT;
use super::{Etcd3, LIST_LIMIT};
use crate::source::SourceError;
use crate::source::follow::{End, Followed, Updates};

impl Followed for Etcd3 {
    async fn snapshot(&self) -> Result<(Vec<Lease>, i64), SourceError> {
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
        let opening = watcher.watch(self.subnets(), Some(options));
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

    async fn leave(&self) {
        self.endpoints().leave().await;
    }
}

impl Etcd3 {
    async fn pass_on(&self, response: &WatchResponse, updates: &Updates) -> Result<(), End> {
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let removed = || {
                let subnet = self.subnet_of(kv)?;
                Some(LeaseUpdate::Removed { subnet, revision: kv.mod_revision() })
            };
            let update = match event.event_type() {
                EventType::Delete => removed(),
                EventType::Put => match self.entry(kv) {
                    Some(entry) => {
                        let lease = self.lease(entry).await;
                        let lease =
                            lease.map_err(|error| End::Failed { reason: error.to_string() })?;
                        Some(LeaseUpdate::Put { lease })
                    }
                    // What cannot be read is no lease; a list would lack it.
                    None => removed(),
                },
            };
            if let Some(update) = update {
                updates.send(update).await?;
            }
        }
        Ok(())
    }
}
