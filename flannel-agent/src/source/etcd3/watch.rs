//! Following the leases: a list, then each change, again after every break.

use std::time::{Duration, Instant};

use etcd_client::{EventType, WatchOptions, WatchResponse};
use rand::Rng as _;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::connect::CALL_TIMEOUT;
use super::failure::cause;
use super::{Etcd3, LIST_LIMIT};
use crate::source::LeaseUpdate;

/// First pause after a break.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Longest pause between tries.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A watch that lasted so long was a good one.
const GOOD_WATCH: Duration = Duration::from_secs(10);

/// Why following ended.
enum End {
    /// Nobody reads the updates any more.
    NoReader,
    /// The changes since the list are not kept any more.
    Compacted { revision: i64 },
    /// The store could not be followed.
    Failed { reason: String },
}

/// Follows the leases until `stop`, or until nobody reads.
pub(super) async fn run(source: Etcd3, updates: Sender<LeaseUpdate>, stop: CancellationToken) {
    let work = async {
        let mut follower = Follower { source, updates: &updates, connected: true };
        follower.run().await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = updates.closed() => {}
        () = work => {}
    }
}

struct Follower<'a> {
    source: Etcd3,
    updates: &'a Sender<LeaseUpdate>,
    /// Whether the reader was told that the store can be followed.
    connected: bool,
}

impl Follower<'_> {
    async fn run(&mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let began = Instant::now();
            match self.follow().await {
                End::NoReader => return,
                End::Compacted { revision } => {
                    tracing::info!(revision, "etcd compacted changes not seen yet; listing again");
                }
                End::Failed { reason } => {
                    if !self.disconnected(reason).await {
                        return;
                    }
                }
            }
            if began.elapsed() >= GOOD_WATCH {
                backoff = BACKOFF_MIN;
            }
            tokio::time::sleep(jittered(backoff)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Tells of a break, once. `false` if nobody reads.
    async fn disconnected(&mut self, reason: String) -> bool {
        self.source.endpoints().leave().await;
        if !std::mem::replace(&mut self.connected, false) {
            tracing::debug!(reason, "etcd still cannot be followed");
            return true;
        }
        tracing::warn!(reason, "etcd cannot be followed; trying again");
        self.updates.send(LeaseUpdate::Disconnected { reason }).await.is_ok()
    }

    /// Lists, then watches until that ends.
    async fn follow(&mut self) -> End {
        let revision = match self.snapshot().await {
            Ok(revision) => revision,
            Err(end) => return end,
        };
        // The list went to this endpoint, so that the login is fresh: etcd
        // answers an outdated one of a watch with a plain refusal.
        let (client, endpoint) = match self.source.endpoints().current().await {
            Ok(current) => current,
            Err(error) => return End::Failed { reason: cause(&error) },
        };
        let failed = |what: &str| End::Failed { reason: format!("{endpoint}: watch: {what}") };
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(revision + 1)
            .with_progress_notify();
        let mut watcher = client.watch_client().max_decoding_message_size(LIST_LIMIT);
        let opening = watcher.watch(self.source.subnets(), Some(options));
        let mut stream = match timeout(CALL_TIMEOUT, opening).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return failed(&cause(&error)),
            Err(_) => return failed("no answer"),
        };
        loop {
            let response = match stream.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return failed("the stream ended"),
                Err(error) => return failed(&cause(&error)),
            };
            if response.compact_revision() != 0 {
                return End::Compacted { revision: response.compact_revision() };
            }
            if response.canceled() {
                return failed(&format!("cancelled: {}", response.cancel_reason()));
            }
            if let Err(end) = self.pass_on(&response).await {
                return end;
            }
        }
    }

    /// Lists all leases and hands them over; returns the list's revision.
    async fn snapshot(&mut self) -> Result<i64, End> {
        let (leases, revision) = async {
            let listing = self.source.listing().await?;
            self.source.leases(listing).await
        }
        .await
        .map_err(|error| End::Failed { reason: error.to_string() })?;
        if !self.connected {
            tracing::info!(revision, leases = leases.len(), "etcd can be followed again");
            self.connected = true;
        }
        self.send(LeaseUpdate::Snapshot { leases, revision }).await?;
        Ok(revision)
    }

    async fn pass_on(&self, response: &WatchResponse) -> Result<(), End> {
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let removed = || {
                let subnet = self.source.subnet_of(kv)?;
                Some(LeaseUpdate::Removed { subnet, revision: kv.mod_revision() })
            };
            let update = match event.event_type() {
                EventType::Delete => removed(),
                EventType::Put => match self.source.entry(kv) {
                    Some(entry) => {
                        let lease = self.source.lease(entry).await;
                        let lease =
                            lease.map_err(|error| End::Failed { reason: error.to_string() })?;
                        Some(LeaseUpdate::Put { lease })
                    }
                    // What cannot be read is no lease; a list would lack it.
                    None => removed(),
                },
            };
            if let Some(update) = update {
                self.send(update).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, update: LeaseUpdate) -> Result<(), End> {
        self.updates.send(update).await.map_err(|_| End::NoReader)
    }
}

/// Between half and all of `pause`, but not less than [`BACKOFF_MIN`].
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..=1.0)).max(BACKOFF_MIN)
}
