//! Exponential backoff with jitter.

use std::time::Duration;

/// Delays between tries: doubled each time up to a limit, and jittered, so that
/// many nodes that failed together do not try together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    failures: u32,
}

impl Backoff {
    /// Starts at `first`, never exceeds `limit`.
    pub const fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, failures: 0 }
    }

    /// Another failure: how long to wait now, between half the nominal delay
    /// and all of it.
    pub fn fail(&mut self) -> Duration {
        let nominal = self.first.saturating_mul(1 << self.failures.min(16)).min(self.limit);
        self.failures = self.failures.saturating_add(1);
        nominal.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    /// It worked: the next failure waits for `first` again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        for nominal in [100u64, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let delay = backoff.fail();
            let nominal = Duration::from_millis(nominal);
            assert!(delay >= nominal / 2 && delay <= nominal, "{delay:?} of {nominal:?}");
        }
        backoff.reset();
        assert!(backoff.fail() <= Duration::from_millis(100));
    }
}
