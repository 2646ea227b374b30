//! Following the leases by long polls: each brings one change.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use flannel_core::lease::Lease;
use flannel_core::lease::history::History;
use flannel_core::lease::update::LeaseUpdate;
use hyper::Method;
use tokio::time::{Instant, timeout, timeout_at};

use super::connect::{CALL_TIMEOUT, Request, index, read};
use super::failure::Refusal;
use super::{Etcd2, LeaseChange};
use crate::source::SourceError;
use crate::source::follow::{End, Followed, Updates};
use crate::source::unreadable::Unreadable;

/// After so long without a change the poll is made anew: an etcd that has gone
/// is noticed by this, and the index moves on with the changes of other keys,
/// so that it stays within the 1000 changes that etcd keeps.
const POLL: Duration = Duration::from_secs(15);

impl Followed for Etcd2 {
    async fn snapshot(&self) -> Result<(Vec<Lease>, i64), SourceError> {
        self.unreadable().begin_list();
        let listing = self.listing().await?;
        Ok((listing.entries, listing.revision))
    }

    async fn changes(&self, revision: i64, updates: &Updates) -> End {
        let mut after = revision;
        let mut left = self.endpoints().left();
        loop {
            let polled = tokio::select! {
                polled = self.poll(after) => polled,
                Ok(()) = left.changed() => return End::Left,
            };
            match polled {
                // It would wait for changes that are long past.
                Ok(Polled::Quiet { upto }) if upto < after => {
                    let reason = format!(
                        "{}: watch: etcd's index went back from {after} to {upto}",
                        self.endpoints().current()
                    );
                    return End::Failed { reason };
                }
                Ok(Polled::Quiet { upto }) => after = after.max(upto),
                Ok(Polled::Change(change)) => {
                    after = after.max(change.node.revision());
                    let update = self.update(&change);
                    if let Err(end) = pass_on(update, updates).await {
                        return end;
                    }
                }
                Err(end) => return end,
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
        self.endpoints().leave();
    }
}

async fn pass_on(update: Option<LeaseUpdate>, updates: &Updates) -> Result<(), End> {
    if let Some(update) = update {
        updates.send(update).await?;
    }
    updates.tell_unreadable().await
}

/// What one poll brought.
enum Polled {
    /// Nothing; there was no change up to this index.
    Quiet {
        upto: i64,
    },
    Change(Box<LeaseChange>),
}

impl Etcd2 {
    async fn poll(&self, after: i64) -> Result<Polled, End> {
        let endpoint = self.endpoints().current();
        let failed = |what: String| End::Failed { reason: format!("{endpoint}: watch: {what}") };
        let subnets = self.keys().subnets();
        let request = Request {
            call: "watch",
            method: Method::GET,
            key: subnets.trim_end_matches('/'),
            query: format!("wait=true&recursive=true&waitIndex={}", after + 1),
            form: None,
        };
        let until = Instant::now() + POLL;
        // etcd sends the head of its answer at once.
        let answer = match timeout(CALL_TIMEOUT, self.endpoints().send(endpoint, &request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => return Err(failed(failure.cause)),
            Err(_) => return Err(failed(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
        };
        let upto = index(answer.headers());
        let outcome = match timeout_at(until, read(answer)).await {
            Err(_) => return Ok(Polled::Quiet { upto }),
            Ok(Err(failure)) => return Err(failed(failure.cause)),
            Ok(Ok(outcome)) => outcome,
        };
        match outcome {
            // etcd ends polls without a word after a while, and when it stops.
            Ok(answer) if answer.body.is_empty() => Ok(Polled::Quiet { upto }),
            Ok(answer) => match serde_json::from_slice(&answer.body) {
                Ok(change) => Ok(Polled::Change(Box::new(change))),
                Err(error) => Err(failed(error.to_string())),
            },
            Err(Refusal::Cleared { index }) => Err(End::Compacted { revision: index }),
            Err(refusal) => Err(failed(format!("{refusal:?}"))),
        }
    }

    /// The change as a reader of leases sees it.
    fn update(&self, change: &LeaseChange) -> Option<LeaseUpdate> {
        let gone = || {
            let subnet = self.subnet_of(&change.node)?;
            Some(LeaseUpdate::Removed { subnet, revision: change.node.revision() })
        };
        match change.action.as_str() {
            // A directory with all of them, which etcd tells of as one.
            "delete" | "expire"
                if self.keys().subnets().starts_with(&format!("{}/", change.node.key)) =>
            {
                self.unreadable().begin_list();
                Some(LeaseUpdate::Snapshot { leases: Vec::new(), revision: change.node.revision() })
            }
            "delete" | "expire" | "compareAndDelete" => {
                self.unreadable().forget_directory(change.node.key.as_bytes());
                gone()
            }
            // What cannot be read is no lease; a list would lack it.
            _ => match self.entry(&change.node) {
                Some(lease) => Some(LeaseUpdate::Put { lease }),
                None => gone(),
            },
        }
    }
}
