//! Follows the node's rules in a task of its own: nobody waits for it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::firewall::packet_rules::walk::{Findings, Overlay};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

use super::read::Reader;
use crate::backoff::Backoff;
use crate::task::TaskEnded;

/// Rules are read at most this often.
const PAUSE: Duration = Duration::from_millis(500);
/// And at most for this part of the time: a large rule set that changes all the
/// time must not keep a processor busy.
const SHARE: u32 = 20;
/// A look that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(60);
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(60);

/// What is known of the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// As last read; `None`: never yet.
    pub findings: Option<Arc<Findings>>,
    /// Why the last look failed, if it did.
    pub failed: Option<String>,
}

/// Where rules come from: [`Reader`], or a test's.
pub trait Source: Send + 'static {
    /// Whether something has changed that no event tells of. Cheap.
    fn hints(&mut self) -> bool;

    /// What matters of the rules; `None` if nothing changed.
    fn look(
        &mut self,
        thoroughly: bool,
    ) -> impl Future<Output = Result<Option<Findings>, String>> + Send;
}

impl Source for Reader {
    fn hints(&mut self) -> bool {
        self.has_to_look()
    }

    async fn look(&mut self, thoroughly: bool) -> Result<Option<Findings>, String> {
        Self::look(self, thoroughly).await.map_err(|error| error.to_string())
    }
}

/// The task's handle: with it the task ends.
#[derive(Debug)]
pub struct RulesFollower {
    notice: Arc<Notify>,
    glance: Arc<Notify>,
    readings: watch::Receiver<Reading>,
    _task: AbortOnDropHandle<()>,
}

impl RulesFollower {
    /// Follows the rules of the calling thread's network namespace; decisions are repeated
    /// for `window` at most. Must be called within a tokio runtime.
    pub fn start(overlay: Overlay, window: Duration, slow: Duration) -> Self {
        Self::of(Reader::new(overlay, window), slow)
    }

    /// Follows what a source says; looks at it at least once in `slow`.
    pub fn of(source: impl Source, slow: Duration) -> Self {
        let (notice, glance) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (sender, readings) = watch::channel(Reading::default());
        let calls = (Arc::clone(&notice), Arc::clone(&glance));
        let task = tokio::spawn(follow(source, calls, sender, slow));
        Self { notice, glance, readings, _task: AbortOnDropHandle::new(task) }
    }

    /// The rules have changed.
    pub fn notice(&self) {
        self.notice.notify_one();
    }

    /// Time to look whether something has changed that no event tells of: tables of
    /// legacy iptables. It has no timer of its own, so that an idle agent wakes up less.
    pub fn glance(&self) {
        self.glance.notify_one();
    }

    /// What is known now.
    pub fn reading(&mut self) -> Reading {
        self.readings.borrow_and_update().clone()
    }

    /// Waits until something else is known.
    ///
    /// # Errors
    /// The task has ended.
    pub async fn changed(&mut self) -> Result<(), TaskEnded> {
        let changed = self.readings.changed().await;
        changed.map_err(|_| TaskEnded::of("reads the node's rules"))
    }
}

async fn follow(
    mut source: impl Source,
    (notice, glance): (Arc<Notify>, Arc<Notify>),
    sender: watch::Sender<Reading>,
    slow: Duration,
) {
    // The first tick is at once.
    let mut slow = every(slow);
    let mut backoff = Backoff::new(FIRST, LAST);
    let mut again = None;
    loop {
        let thoroughly = tokio::select! {
            () = notice.notified() => false,
            _ = slow.tick() => true,
            () = glance.notified() => match source.hints() {
                true => true,
                false => continue,
            },
            () = at(again) => true,
        };
        let began = Instant::now();
        let looked = match tokio::time::timeout(LIMIT, source.look(thoroughly)).await {
            Ok(looked) => looked,
            Err(_) => Err(format!("the rules were not read within {} s", LIMIT.as_secs())),
        };
        // One that hung must not keep new rules from being read.
        let mut pause = (began.elapsed() * SHARE).clamp(PAUSE, LAST);
        again = None;
        match looked {
            Ok(found) => {
                backoff.reset();
                sender.send_if_modified(|reading| take(reading, found));
            }
            Err(reason) => {
                pause = PAUSE.max(backoff.fail());
                again = Some(Instant::now() + pause);
                sender.send_if_modified(|reading| {
                    let failed = Some(reason);
                    let news = reading.failed != failed;
                    reading.failed = failed;
                    news
                });
            }
        }
        // What changes meanwhile is remembered by `notice`.
        tokio::time::sleep(pause).await;
    }
}

/// Whether it is news.
fn take(reading: &mut Reading, found: Option<Findings>) -> bool {
    let mut news = reading.failed.take().is_some();
    if let Some(found) = found.filter(|found| reading.findings.as_deref() != Some(found)) {
        reading.findings = Some(Arc::new(found));
        news = true;
    }
    news
}

fn every(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
