//! Following the leases of a store: a list, then each change, again after
//! every break.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flannel_core::lease::Lease;
use flannel_core::lease::history::History;
use flannel_core::lease::update::LeaseUpdate;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;

use super::SourceError;
use super::unreadable::Unreadable;
use crate::backoff::Backoff;

/// First pause after a break.
const BACKOFF_MIN: Duration = Duration::from_millis(200);

/// Longest pause between tries.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A watch that lasted so long was a good one.
const GOOD_WATCH: Duration = Duration::from_secs(10);

/// Another reason why the store cannot be followed is told after so long: those
/// of a server that is just starting are not.
const LASTING: Duration = Duration::from_secs(2);

/// Updates that may wait for the reader.
const UPDATES: usize = 256;

/// Why following ended.
pub(super) enum End {
    /// Nobody reads the updates any more.
    NoReader,
    /// The changes since the list are not kept any more.
    Compacted {
        /// As far as they are gone.
        revision: i64,
    },
    /// Its connection was left on purpose.
    Left,
    /// The store could not be followed.
    Failed {
        /// Why, with the endpoint.
        reason: String,
    },
}

/// A store that can be followed.
pub(super) trait Followed: Send + Sync + 'static {
    /// All leases, and the revision that they are of.
    fn snapshot(&self) -> impl Future<Output = Result<(Vec<Lease>, i64), SourceError>> + Send;

    /// Hands over each change after `revision` until that ends.
    fn changes(&self, revision: i64, updates: &Updates) -> impl Future<Output = End> + Send;

    /// What was told of it, and what we wrote there.
    fn history(&self) -> Arc<Mutex<History>>;

    /// Keys of it that cannot be read.
    fn unreadable(&self) -> Arc<Mutex<Unreadable>>;

    /// Leaves the endpoint that failed to the others.
    fn leave(&self) -> impl Future<Output = ()> + Send;
}

/// Where changes go.
pub(super) struct Updates {
    sender: Sender<LeaseUpdate>,
    told: Arc<Mutex<History>>,
    unreadable: Arc<Mutex<Unreadable>>,
}

impl Updates {
    /// Hands over which keys cannot be read, if they are others than before.
    pub(super) async fn tell_unreadable(&self) -> Result<(), End> {
        let keys = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).take();
        match keys {
            Some(keys) => self.send(LeaseUpdate::Unreadable { keys }).await,
            None => Ok(()),
        }
    }

    /// Hands one over; waits for a slow reader.
    pub(super) async fn send(&self, update: LeaseUpdate) -> Result<(), End> {
        self.told().note(&update);
        self.sender.send(update).await.map_err(|_| End::NoReader)
    }

    /// Hands over a list, with a word if it does not go on from what was told.
    async fn send_list(
        &self,
        leases: Vec<Lease>,
        revision: i64,
        followed: bool,
    ) -> Result<(), End> {
        let broken = self.told().broken_by(&leases, revision, followed);
        if let Some(broken) = broken {
            self.send(LeaseUpdate::OtherHistory { reason: broken.to_string() }).await?;
        }
        self.send(LeaseUpdate::Snapshot { leases, revision }).await?;
        self.tell_unreadable().await
    }

    fn told(&self) -> MutexGuard<'_, History> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the leases until `stop`, or until nobody reads.
pub(super) fn follow<S: Followed>(source: S, stop: CancellationToken) -> Receiver<LeaseUpdate> {
    let (updates, receiver) = channel(UPDATES);
    tokio::spawn(async move {
        let mut follower = Follower {
            updates: Updates {
                sender: updates.clone(),
                told: source.history(),
                unreadable: source.unreadable(),
            },
            source,
            connected: true,
            told: None,
            other: None,
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = updates.closed() => {}
            () = follower.run() => {}
        }
    });
    receiver
}

struct Follower<S> {
    source: S,
    updates: Updates,
    /// Whether the reader was told that the store can be followed.
    connected: bool,
    /// Why not, as the reader was told.
    told: Option<String>,
    /// Another reason, and since when.
    other: Option<(String, Instant)>,
}

impl<S: Followed> Follower<S> {
    async fn run(&mut self) {
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        let mut followed = false;
        loop {
            let began = Instant::now();
            let end = self.follow(std::mem::take(&mut followed)).await;
            match end {
                End::NoReader => return,
                End::Left => continue,
                End::Compacted { revision } => {
                    followed = true;
                    tracing::info!(
                        revision,
                        "etcd compacted changes not seen yet; leases are listed again"
                    );
                }
                End::Failed { reason } => {
                    if self.disconnected(reason).await.is_err() {
                        return;
                    }
                }
            }
            if began.elapsed() >= GOOD_WATCH {
                backoff.reset();
            }
            tokio::time::sleep(backoff.fail()).await;
        }
    }

    /// Tells of a break, once, and of another reason if that lasts.
    async fn disconnected(&mut self, reason: String) -> Result<(), End> {
        self.source.leave().await;
        if !std::mem::replace(&mut self.connected, false) {
            tracing::debug!(reason, "etcd still unavailable");
            if !self.lasts(&reason) {
                return Ok(());
            }
        } else {
            tracing::debug!(reason, "etcd unavailable");
        }
        self.told = Some(reason.clone());
        self.updates.send(LeaseUpdate::Disconnected { reason }).await
    }

    /// Whether this is another reason than was told, and not of a moment only.
    fn lasts(&mut self, reason: &str) -> bool {
        if self.told.as_deref() == Some(reason) {
            self.other = None;
            return false;
        }
        match &self.other {
            Some((other, since)) if other == reason => since.elapsed() >= LASTING,
            _ => {
                self.other = Some((reason.to_owned(), Instant::now()));
                false
            }
        }
    }

    /// Lists, then watches until that ends. `followed`: the last watch was only
    /// outrun.
    async fn follow(&mut self, followed: bool) -> End {
        let (leases, revision) = match self.source.snapshot().await {
            Ok(listed) => listed,
            Err(error) => return End::Failed { reason: error.to_string() },
        };
        if !self.connected {
            tracing::debug!(revision, leases = leases.len(), "etcd recovered");
            self.connected = true;
        }
        match self.updates.send_list(leases, revision, followed).await {
            Ok(()) => self.source.changes(revision, &self.updates).await,
            Err(end) => end,
        }
    }
}
