//! The programs' clock.
//!
//! It is the kernel's. In a time namespace (time_namespaces(7)) processes have another one,
//! which is ahead or behind by as much as the namespace says.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::BpfError;

/// By how much our clocks are ahead. Kernels before 5.6 have no such file.
const OFFSETS: &str = "/proc/self/timens_offsets";

const SECOND_NS: i128 = 1_000_000_000;

/// The clock of the programs, in nanoseconds.
///
/// # Errors
/// The kernel has no such clock.
pub fn monotonic_ns() -> Result<u64, BpfError> {
    // A process stays in its time namespace.
    static AHEAD: OnceLock<i128> = OnceLock::new();
    let ahead = AHEAD.get_or_init(|| ahead_ns(&fs::read_to_string(OFFSETS).unwrap_or_default()));
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_err(|errno| BpfError::new("read", "monotonic clock", &std::io::Error::from(errno)))?;
    let now = i128::try_from(Duration::from(now).as_nanos()).unwrap_or(i128::MAX);
    Ok(u64::try_from((now - ahead).max(0)).unwrap_or(u64::MAX))
}

/// By how many nanoseconds the file says that this clock is ahead.
fn ahead_ns(offsets: &str) -> i128 {
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        // Before 5.11 the clock has its number.
        let is_ours = matches!(words.next()?, "monotonic" | "1");
        let (seconds, nanoseconds): (i64, i64) =
            (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        is_ours.then(|| i128::from(seconds) * SECOND_NS + i128::from(nanoseconds))
    };
    offsets.lines().find_map(of).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_of_a_time_namespace_is_read() {
        assert_eq!(
            ahead_ns("monotonic           0         0\nboottime            7         1\n"),
            0
        );
        let day = 86_400 * SECOND_NS;
        assert_eq!(ahead_ns("boottime 7 1\nmonotonic 86400 5\n"), day + 5);
        assert_eq!(ahead_ns("monotonic -86401 999999995\nboottime 7 1\n"), -day - 5);
        assert_eq!(ahead_ns("7 1 1\n1 2 0\n"), 2 * SECOND_NS);
        assert_eq!(ahead_ns(""), 0);
        assert_eq!(ahead_ns("monotonic many\n"), 0);
    }
}
