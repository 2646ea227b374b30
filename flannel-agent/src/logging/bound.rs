//! A bound for messages that come again and again: of each place in the code, a burst,
//! then one every few seconds. What is left out is counted.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Messages of one place that may come at once. A change may have some hundred lines:
/// so many complaints are kept.
const BURST: u32 = 200;

/// How long it takes until one more may come.
const REFILL: Duration = Duration::from_secs(5);

/// What each place in the code has said.
#[derive(Debug, Default)]
pub(super) struct Bound(Mutex<HashMap<Identifier, Bucket>>);

impl Bound {
    /// Whether a message of this place is to be written now.
    fn takes(&self, place: Identifier, now: Instant, message: impl FnOnce() -> String) -> bool {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = places.entry(place).or_insert_with(|| Bucket::full(now));
        let takes = bucket.take(now);
        if !takes {
            bucket.left_out += 1;
            if bucket.left_out == 1 {
                bucket.message = message();
            }
        }
        takes
    }

    /// What was left out since the last call: message and how often.
    pub(super) fn left_out(&self) -> Vec<(String, u64)> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places
            .values_mut()
            .filter(|bucket| bucket.left_out > 0)
            .map(|bucket| {
                (std::mem::take(&mut bucket.message), std::mem::take(&mut bucket.left_out))
            })
            .collect()
    }
}

/// What one place may say.
#[derive(Debug)]
struct Bucket {
    left: u32,
    since: Instant,
    left_out: u64,
    message: String,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self { left: BURST, since: now, left_out: 0, message: String::new() }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since);
        let more = u32::try_from(passed.as_nanos() / REFILL.as_nanos()).unwrap_or(u32::MAX);
        self.since = match more {
            0 => self.since,
            _ if more >= BURST => now,
            _ => self.since + REFILL * more,
        };
        self.left = self.left.saturating_add(more).min(BURST);
        let takes = self.left > 0;
        self.left = self.left.saturating_sub(1);
        takes
    }
}

/// Leaves out what comes too often. Debug messages all pass: who asks for them wants
/// them.
pub(super) struct Limit(pub(super) Arc<Bound>);

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        *metadata.level() > Level::INFO
            || self.0.takes(metadata.callsite(), Instant::now(), || Message::of(event))
    }
}

/// A message without its fields.
#[derive(Default)]
struct Message(String);

impl Message {
    fn of(event: &Event<'_>) -> String {
        let mut message = Self::default();
        event.record(&mut message);
        message.0
    }
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Count(Arc<AtomicU32>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_place_that_says_too_much_is_counted_and_others_are_not_touched() {
        let (bound, count) = (Arc::new(Bound::default()), Count::default());
        let all =
            tracing_subscriber::registry().with(Limit(Arc::clone(&bound))).with(count.clone());
        tracing::subscriber::with_default(all, || {
            for number in 0..BURST + 7 {
                tracing::info!(number, "again");
            }
            assert_eq!(count.0.load(Ordering::Relaxed), BURST);
            tracing::warn!("something else");
            assert_eq!(count.0.load(Ordering::Relaxed), BURST + 1);
            for _ in 0..2 * BURST {
                tracing::debug!("asked for");
            }
        });
        assert_eq!(count.0.load(Ordering::Relaxed), 3 * BURST + 1);
        assert_eq!(bound.left_out(), [("again".to_owned(), 7)]);
        assert_eq!(bound.left_out(), []);
    }

    #[test]
    fn time_gives_it_back() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        assert!((0..BURST).all(|_| bucket.take(start)));
        assert!(!bucket.take(start) && !bucket.take(start + REFILL - Duration::from_millis(1)));
        assert!(bucket.take(start + REFILL) && !bucket.take(start + REFILL));
        let day = start + Duration::from_secs(86_400);
        assert!((0..BURST).all(|_| bucket.take(day)) && !bucket.take(day));
    }
}
