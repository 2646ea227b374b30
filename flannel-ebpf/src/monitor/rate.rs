//! How many packets are told: a token bucket for each CPU.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Tokens come one by one, and `burst_ns` of them are kept at most.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Rate {
    /// Nanoseconds from one token to the next; 0: no bound.
    pub interval_ns: u64,
    /// For how long tokens are saved.
    pub burst_ns: u64,
}

impl Rate {
    /// So many in a second, the tokens of a tenth of it at once.
    pub const fn per_second(count: u32) -> Self {
        let second: u64 = 1_000_000_000;
        let count = if count == 0 { 1 } else { count };
        let interval_ns = second / count as u64;
        let tenth = second / 10;
        Self { interval_ns, burst_ns: tenth.saturating_sub(interval_ns) }
    }

    /// Whether there is a token at `now`, where the last one was taken until `due`.
    #[inline(always)]
    pub fn allows(&self, due: u64, now: u64) -> bool {
        due <= now
    }

    /// When the next token can be had, behind one that is taken at `now`.
    #[inline(always)]
    pub fn take(&self, due: u64, now: u64) -> u64 {
        let earliest = now.saturating_sub(self.burst_ns);
        let from = if due > earliest { due } else { earliest };
        from + self.interval_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets that are told of one in each of `step` ns, for `time` ns.
    fn told(rate: Rate, step: u64, time: u64) -> u64 {
        let (mut due, mut count) = (0, 0);
        for now in (1..).map(|packet| 5_000_000_000 + packet * step) {
            if now > 5_000_000_000 + time {
                return count;
            }
            if rate.allows(due, now) {
                due = rate.take(due, now);
                count += 1;
            }
        }
        count
    }

    #[test]
    fn no_more_than_the_rate_and_a_tenth_of_a_second_at_once() {
        let rate = Rate::per_second(1000);
        assert_eq!(told(rate, 1000, 1_000_000_000), 1100 - 1);
        assert_eq!(told(rate, 1000, 10_000_000), 100 + 10 - 1);
        assert_eq!(told(Rate::per_second(1), 1000, 3_000_000_000), 3);
    }

    #[test]
    fn fewer_are_all_told() {
        assert_eq!(told(Rate::per_second(1000), 2_000_000, 1_000_000_000), 500);
    }
}
