//! Keeps our lease: renews it in time, claims it again when it has gone.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::lease::Lease;
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::lease::table::OwnChange;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::source::{LeaseSource, SourceError};
use crate::task;

/// A failed renewal is tried again after at most this, and a lost lease after
/// just that.
const RETRY_LIMIT: Duration = Duration::from_secs(60);
/// A lease that lasts longer is not renewed before this, whatever the margin.
const MINIMUM: Duration = Duration::from_secs(60);
/// Somebody who writes or removes our lease again and again is answered more
/// and more slowly after so many times: two nodes with one PublicIP would wear
/// the store out otherwise.
const AT_ONCE: u32 = 3;
const FIRST_ANSWER: Duration = Duration::from_secs(1);
/// After so long without that the next is answered at once again.
const QUIET: Duration = Duration::from_secs(5 * 60);

/// What became of a renewal.
#[derive(Debug)]
pub enum Renewal {
    /// The lease is good until its new end.
    Renewed,
    /// Tried again later.
    Failed(String),
    /// Another node holds the subnet: it is claimed again once it is free.
    Lost(SourceError),
}

/// What a store's news of our lease are about.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing: it is as we wrote it, or as lost as before.
    Known,
    /// Another node asked for a sign of life, which it gets.
    Asked {
        /// Who asked.
        by: String,
    },
    /// Somebody else wrote it; it is written anew.
    Rewritten,
    /// It has gone; it is written anew.
    Gone {
        /// After our last write, and not by news from before that.
        since: bool,
    },
    /// Another node claims it; the store knows whose it is.
    Claimed {
        /// The other's PublicIP.
        by: Ipv4Addr,
    },
}

/// Our lease and its next renewal.
pub struct Keeper<S> {
    source: Arc<S>,
    lease: Lease,
    /// Renewed this long before the end.
    margin: Duration,
    due: Option<Instant>,
    backoff: Backoff,
    answers: u32,
    slower: Backoff,
    answered: Option<Instant>,
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
            answers: 0,
            slower: Backoff::new(FIRST_ANSWER, RETRY_LIMIT),
            answered: None,
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

    /// Somebody else writes or removes our lease again and again.
    pub fn is_contested(&self) -> bool {
        self.answers > AT_ONCE
            && self.answered.is_some_and(|answered| Instant::now() < answered + QUIET)
    }

    /// Writes the lease with these attributes now: they are ours and new.
    pub fn publish(&mut self, attrs: LeaseAttrs) {
        self.lease.attrs = attrs;
        self.due_by(Instant::now());
    }

    /// Takes in what the store tells of our lease, and does what it takes. What a
    /// store lost (`lost`) nobody took: to write it anew is no answer to anybody.
    pub fn told(&mut self, own: OwnChange, lost: bool) -> News {
        if self.lost {
            match own {
                OwnChange::Removed { .. } => self.freed(),
                // Somebody put it back.
                OwnChange::Put(lease) if lease.attrs == self.lease.attrs => self.freed(),
                OwnChange::Put(_) | OwnChange::Taken { .. } => {}
            }
            return News::Known;
        }
        let ours = &self.lease;
        let news = match own {
            OwnChange::Put(lease) | OwnChange::Taken { lease } if lease.attrs == ours.attrs => {
                self.seen(&lease);
                return News::Known;
            }
            OwnChange::Put(lease) if lease.attrs.unasked() == ours.attrs => {
                self.seen(&lease);
                self.publish(self.lease.attrs.clone());
                return News::Asked { by: lease.attrs.asked_by.unwrap_or_default() };
            }
            OwnChange::Put(lease) => {
                self.seen(&lease);
                News::Rewritten
            }
            OwnChange::Removed { revision } => News::Gone { since: revision > ours.revision },
            // The store knows best: the renewal is refused if that is so.
            OwnChange::Taken { lease } => News::Claimed { by: lease.attrs.public_ip },
        };
        match lost {
            true => self.due_by(Instant::now()),
            false => self.answer(),
        }
        news
    }

    /// Writes the lease anew: it has gone, or says something else, or another
    /// node may hold it (then the store refuses).
    fn answer(&mut self) {
        let now = Instant::now();
        if self.answered.is_none_or(|answered| now >= answered + QUIET) {
            self.answers = 0;
            self.slower.reset();
        }
        self.answers += 1;
        let due = if self.answers <= AT_ONCE { now } else { now + self.slower.fail() };
        self.answered = Some(due);
        self.due_by(due);
    }

    fn due_by(&mut self, due: Instant) {
        if !self.lost {
            self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    /// The subnet that was lost is free.
    fn freed(&mut self) {
        if self.lost {
            self.due = Some(Instant::now());
        }
    }

    /// The store's revision of our key, from a write that was ours.
    fn seen(&mut self, lease: &Lease) {
        if lease.revision > self.lease.revision {
            self.lease.revision = lease.revision;
        }
    }

    /// The next thing that happens to the lease. Cancel safe.
    pub async fn next(&mut self) -> Renewal {
        loop {
            if let Some(running) = &mut self.running {
                let result = running.await;
                self.running = None;
                match task::joined(result).await {
                    Ok(result) => {
                        if let Some(kept) = self.finish(result) {
                            return kept;
                        }
                    }
                    Err(panicked) => return self.failed(&panicked),
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

    /// `None` if the lease is as lost as before.
    fn finish(&mut self, result: Result<Lease, SourceError>) -> Option<Renewal> {
        Some(match result {
            Ok(lease) => {
                // What was to be published while the call ran stays to be.
                let attrs = std::mem::replace(&mut self.lease, lease).attrs;
                self.backoff.reset();
                self.lost = false;
                if attrs != self.lease.attrs {
                    self.publish(attrs);
                } else if self.due.is_none() {
                    self.schedule();
                }
                Renewal::Renewed
            }
            Err(error @ SourceError::LeaseLost { .. }) => {
                // It may have been told free meanwhile.
                let later = Instant::now() + RETRY_LIMIT;
                self.due = Some(self.due.map_or(later, |due| due.min(later)));
                if std::mem::replace(&mut self.lost, true) {
                    return None;
                }
                Renewal::Lost(error)
            }
            Err(error) => self.failed(&error),
        })
    }

    fn failed(&mut self, error: &dyn std::error::Error) -> Renewal {
        self.due = Some(Instant::now() + self.backoff.fail());
        Renewal::Failed(error.to_string())
    }

    fn schedule(&mut self) {
        // A reservation has no end, and is never renewed.
        self.due = self.lease.expires.map(|expires| {
            let left = expires.saturating_duration_since(std::time::Instant::now());
            // Up to a tenth of the margin earlier, so that nodes that started
            // together do not renew together.
            let early = self.margin.mul_f64(1.0 + rand::random::<f64>() / 10.0);
            Instant::now() + left.saturating_sub(early).max(left.min(MINIMUM))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Claim;
    use crate::source::fake::{Call, FakeSource, Write};
    use flannel_core::config::NetworkConfig;
    use flannel_core::mac::MacAddr;

    const HOUR: Duration = Duration::from_secs(3600);

    async fn keeper(margin: Duration) -> (FakeSource, Keeper<FakeSource>) {
        let text = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
        let config = NetworkConfig::parse(text).unwrap();
        let source = FakeSource::new(config.clone());
        let attrs = LeaseAttrs::vxlan(Ipv4Addr::new(192, 0, 2, 1), 1, MacAddr([2; 6]));
        let lease = source.acquire(&config, &Claim::new(attrs, None)).await.unwrap();
        let keeper = Keeper::new(Arc::new(source.clone()), lease, margin);
        (source, keeper)
    }

    /// How long the next thing takes to happen.
    async fn next(keeper: &mut Keeper<FakeSource>) -> (Renewal, Duration) {
        let before = Instant::now();
        let kept = keeper.next().await;
        (kept, before.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn renews_a_margin_before_the_end_with_jitter() {
        let (source, mut keeper) = keeper(HOUR).await;
        for _ in 0..3 {
            let (kept, after) = next(&mut keeper).await;
            assert!(matches!(kept, Renewal::Renewed), "{kept:?}");
            let earliest = 23 * HOUR - HOUR / 10 - Duration::from_secs(10);
            assert!(after > earliest && after <= 23 * HOUR, "{after:?}");
        }
        assert_eq!(source.writes().len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn the_widest_margin_is_no_busy_loop() {
        let (_, mut keeper) = keeper(Duration::from_secs(1439 * 60)).await;
        for _ in 0..5 {
            let (_, after) = next(&mut keeper).await;
            assert!(after >= MINIMUM - Duration::from_secs(1), "{after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_retried_at_least_each_minute() {
        let (source, mut keeper) = keeper(HOUR).await;
        source.fail(Call::Renew, 20);
        let (kept, _) = next(&mut keeper).await;
        assert!(matches!(kept, Renewal::Failed(_)));
        for _ in 0..19 {
            let (kept, after) = next(&mut keeper).await;
            assert!(matches!(kept, Renewal::Failed(_)));
            assert!(after <= RETRY_LIMIT, "{after:?}");
        }
        let (kept, _) = next(&mut keeper).await;
        assert!(matches!(kept, Renewal::Renewed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_panics_has_failed_and_is_tried_again() {
        let (source, mut keeper) = keeper(HOUR).await;
        source.panic_at(Call::Renew);
        let (kept, _) = next(&mut keeper).await;
        assert!(matches!(&kept, Renewal::Failed(why) if why.contains("panicked")), "{kept:?}");
        let (kept, after) = next(&mut keeper).await;
        assert!(matches!(kept, Renewal::Renewed) && after <= RETRY_LIMIT, "{kept:?} {after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_is_left_alone() {
        let (source, mut keeper) = keeper(HOUR).await;
        let attrs = LeaseAttrs::vxlan(Ipv4Addr::new(192, 0, 2, 2), 1, MacAddr([4; 6]));
        source.put(Lease { attrs, ..keeper.lease().clone() });
        let (kept, _) = next(&mut keeper).await;
        assert!(matches!(kept, Renewal::Lost(_)), "{kept:?}");
        keeper.publish(keeper.lease().attrs.clone());
        keeper.answer();
        assert!(tokio::time::timeout(48 * HOUR, keeper.next()).await.is_err());
        assert!(!source.writes().iter().any(|write| matches!(write, Write::Renewed(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_store_lost_is_written_again_and_nobodys_contest() {
        for lost in [true, false] {
            let (source, mut keeper) = keeper(HOUR).await;
            for round in 0..2 * AT_ONCE {
                source.remove(keeper.lease().subnet);
                let news = keeper.told(OwnChange::Removed { revision: i64::MAX }, lost);
                assert_eq!(news, News::Gone { since: true });
                let (kept, after) = next(&mut keeper).await;
                assert!(matches!(kept, Renewal::Renewed), "{kept:?}");
                assert_eq!(after == Duration::ZERO, lost || round < AT_ONCE, "{round}");
            }
            assert_eq!(keeper.is_contested(), !lost);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_is_claimed_again_once_it_is_free() {
        for (told, put_back) in [(true, false), (true, true), (false, false)] {
            let (source, mut keeper) = keeper(HOUR).await;
            let ours = keeper.lease().clone();
            let attrs = LeaseAttrs::vxlan(Ipv4Addr::new(192, 0, 2, 2), 1, MacAddr([4; 6]));
            source.put(Lease { attrs, ..keeper.lease().clone() });
            next(&mut keeper).await;
            assert!(keeper.is_lost());
            let while_taken = HOUR - RETRY_LIMIT / 2;
            assert!(tokio::time::timeout(while_taken, keeper.next()).await.is_err());
            source.remove(ours.subnet);
            if put_back {
                source.put(ours.clone());
                assert!(matches!(keeper.told(OwnChange::Put(ours), false), News::Known));
            } else if told {
                keeper.freed();
            }
            let (kept, after) = next(&mut keeper).await;
            assert!(matches!(kept, Renewal::Renewed), "{kept:?}");
            assert!(after <= if told { Duration::ZERO } else { RETRY_LIMIT }, "{after:?}");
            assert!(!keeper.is_lost());
            let (_, after) = next(&mut keeper).await;
            assert!(after > 22 * HOUR, "it is renewed as before: {after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_during_a_renewal_is_published_after_it() {
        let (source, mut keeper) = keeper(HOUR).await;
        keeper.publish(keeper.lease().attrs.clone());
        // Starts the call, and is dropped before its end.
        let started = tokio::time::timeout(Duration::ZERO, keeper.next()).await;
        assert!(started.is_err());
        let moved =
            LeaseAttrs { public_ip: Ipv4Addr::new(192, 0, 2, 9), ..keeper.lease().attrs.clone() };
        keeper.publish(moved.clone());
        while source.lease(keeper.lease().subnet).unwrap().attrs != moved {
            let (_, after) = next(&mut keeper).await;
            assert!(after <= RETRY_LIMIT);
        }
    }
}
