//! Whether the flow table is large enough. Pure.
//!
//! The kernel does not tell how many entries an LRU table holds, nor what it
//! evicts. But the programs count what they enter: if that is more within a
//! window than the table has room for, confirmed flows are evicted.

use std::time::{Duration, Instant};

use flannel_core::text;

/// Entries made over time, compared with the table's size.
#[derive(Clone, Debug)]
pub(super) struct Turnover {
    size: u32,
    window: Duration,
    /// When the present span began, and the counter then.
    began: Option<(Instant, u64)>,
    /// New entries in the last whole span, scaled to a window.
    last: Option<u64>,
    pressed: bool,
}

impl Turnover {
    /// For a table of `size` entries whose confirmations last for `window`.
    pub(super) fn new(size: u32, window: Duration) -> Self {
        Self { size, window, began: None, last: None, pressed: false }
    }

    /// Takes the programs' counter; the complaint, if there is pressure.
    pub(super) fn look(&mut self, now: Instant, entered: u64) -> Option<String> {
        match self.began {
            Some((began, before)) if entered >= before => {
                let span = now.saturating_duration_since(began);
                if span >= self.window {
                    let scale = self.window.as_secs_f64() / span.as_secs_f64();
                    self.judge(((entered - before) as f64 * scale) as u64);
                    self.began = Some((now, entered));
                }
            }
            // The first look, or counters that began anew.
            _ => self.began = Some((now, entered)),
        }
        self.pressed.then(|| {
            format!(
                "{} new entries within {}, room for {}: confirmed flows are evicted and proven \
                 anew; raise --flow-table-size",
                self.last.unwrap_or(0),
                text::lasting(self.window),
                self.size
            )
        })
    }

    /// New entries within a window, lately.
    pub(super) fn per_window(&self) -> Option<u64> {
        self.last
    }

    fn judge(&mut self, entered: u64) {
        self.last = Some(entered);
        let size = u64::from(self.size);
        // It ends at half of what it begins at: no complaint comes and goes.
        self.pressed = if self.pressed { entered > size / 2 } else { entered > size };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_was_before_the_first_look_and_short_spans_say_nothing() {
        let start = Instant::now();
        let mut turnover = Turnover::new(1000, 5 * SECOND);
        assert_eq!(turnover.look(start, 70_000), None);
        assert_eq!(turnover.look(start + 4 * SECOND, 79_000), None);
        assert_eq!(turnover.per_window(), None);
    }

    #[test]
    fn it_begins_at_the_size_and_ends_at_half() {
        let start = Instant::now();
        let mut turnover = Turnover::new(1000, 5 * SECOND);
        turnover.look(start, 0);
        assert_eq!(turnover.look(start + 5 * SECOND, 1000), None);
        let complaint = turnover.look(start + 15 * SECOND, 3002).unwrap();
        assert!(complaint.starts_with("1001 new entries within 5 s, room for 1000"), "{complaint}");
        assert!(turnover.look(start + 20 * SECOND, 3602).is_some(), "600 in a window");
        assert_eq!(turnover.look(start + 25 * SECOND, 4102), None);
        assert_eq!(turnover.per_window(), Some(500));
    }

    #[test]
    fn counters_that_begin_anew_are_no_pressure() {
        let start = Instant::now();
        let mut turnover = Turnover::new(10, SECOND);
        turnover.look(start, 1_000_000);
        assert_eq!(turnover.look(start + SECOND, 5), None);
        assert_eq!(turnover.look(start + 2 * SECOND, 10), None);
        assert_eq!(turnover.per_window(), Some(5));
    }
}
