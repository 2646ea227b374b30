//! Waiting for something to become true.

use std::thread;
use std::time::{Duration, Instant};

/// Polls `probe` each 10 ms until it gives `Some`, and returns that with the
/// time it took.
///
/// # Panics
/// It does not within `limit`.
#[track_caller]
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return (value, start.elapsed());
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// As [`until`], for a condition.
///
/// # Panics
/// It does not hold within `limit`.
#[track_caller]
pub fn holds(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) -> Duration {
    until(what, limit, || probe().then_some(())).1
}
