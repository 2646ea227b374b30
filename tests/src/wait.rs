//! Waiting for something to become true.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// How many times longer everything may take: `FLANNEL_TEST_PATIENCE`, for
/// machines whose processor is emulated; else 1.
pub fn patience() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let given = std::env::var("FLANNEL_TEST_PATIENCE").ok();
        given.map_or(1, |text| text.parse().expect("FLANNEL_TEST_PATIENCE is a number"))
    })
}

/// Polls `probe` each 10 ms until it gives `Some`, and returns that with the
/// time it took.
///
/// # Panics
/// It does not within `limit` times [`patience`].
#[track_caller]
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> (T, Duration) {
    let (start, limit) = (Instant::now(), limit * patience());
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
