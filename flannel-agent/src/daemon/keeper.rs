//! Keeps our lease: renews it in time, claims it again when it has gone.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::lease::attrs::LeaseAttrs;
use crate::lease::table::Lease;
use crate::source::{LeaseSource, SourceError};

/// A failed renewal is tried again after at most this.
const RETRY_LIMIT: Duration = Duration::from_secs(60);

/// What became of a renewal.
#[derive(Debug)]
pub enum Kept {
    /// The lease is good until its new end.
    Renewed,
    /// Tried again later.
    Failed(SourceError),
    /// Another node holds the subnet: nothing is tried any more.
    Lost(SourceError),
}

/// Our lease and its next renewal.
pub struct Keeper<S> {
    source: Arc<S>,
    lease: Lease,
    /// Renewed this long before the end.
    margin: Duration,
    due: Option<Instant>,
    backoff: Backoff,
    running: Option<JoinHandle<Result<Lease, SourceError>>>,
    lost: bool,
}

impl<S: LeaseSource> Keeper<S> {
    /// Keeps `lease`, as it was acquired just now.
    pub fn new(source: Arc<S>, lease: Lease, margin: Duration) -> Self {
        let mut keeper = Self {
            source,
            lease,
            margin,
            due: None,
            backoff: Backoff::new(Duration::from_secs(1), RETRY_LIMIT),
            running: None,
            lost: false,
        };
        keeper.schedule();
        keeper
    }

    /// The lease as last written.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Another node holds our subnet.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// The subnet is another node's now, as the store tells.
    pub fn lose(&mut self) {
        self.lost = true;
        self.due = None;
    }

    /// Writes the lease anew, now: it has gone, or says something else.
    pub fn republish(&mut self, attrs: LeaseAttrs) {
        self.lease.attrs = attrs;
        if !self.lost {
            self.due = Some(Instant::now());
        }
    }

    /// The store's revision of our key, from a write that was ours.
    pub fn seen(&mut self, lease: &Lease) {
        if lease.revision > self.lease.revision {
            self.lease.revision = lease.revision;
        }
    }

    /// The next thing that happens to the lease. Cancel safe.
    pub async fn next(&mut self) -> Kept {
        loop {
            if let Some(running) = &mut self.running {
                let result = running.await;
                self.running = None;
                match result {
                    Ok(result) => return self.finish(result),
                    // The task panicked or the runtime is going: try again.
                    Err(_) => self.due = Some(Instant::now() + self.backoff.fail()),
                }
            }
            match self.due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
            let (source, lease) = (Arc::clone(&self.source), self.lease.clone());
            self.due = None;
            self.running = Some(tokio::spawn(async move { source.renew(&lease).await }));
        }
    }

    fn finish(&mut self, result: Result<Lease, SourceError>) -> Kept {
        match result {
            Ok(lease) => {
                // What was to be published while the call ran stays to be.
                let attrs = std::mem::replace(&mut self.lease, lease).attrs;
                self.backoff.reset();
                if attrs == self.lease.attrs {
                    if self.due.is_none() {
                        self.schedule();
                    }
                } else {
                    self.republish(attrs);
                }
                Kept::Renewed
            }
            Err(error @ SourceError::LeaseLost { .. }) => {
                self.lose();
                Kept::Lost(error)
            }
            Err(error) => {
                self.due = Some(Instant::now() + self.backoff.fail());
                Kept::Failed(error)
            }
        }
    }

    fn schedule(&mut self) {
        // A reservation has no end, and is never renewed.
        self.due = self.lease.expires.map(|expires| {
            let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
            // Up to a tenth of the margin earlier, so that nodes that started
            // together do not renew together.
            let early = self.margin.mul_f64(1.0 + rand::random::<f64>() / 10.0);
            Instant::now() + left.saturating_sub(early)
        });
    }
}
