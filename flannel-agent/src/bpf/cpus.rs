//! How many CPUs there are.

use std::fs;

use super::BpfError;

/// What the kernel says of CPUs that may ever be there.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// One more than the highest number of a CPU that may ever be there: numbers may be missing
/// between, and parts of maps are found by number.
///
/// # Errors
/// The kernel does not tell.
pub(super) fn possible_cpus() -> Result<u32, BpfError> {
    let told = fs::read_to_string(POSSIBLE)
        .map_err(|error| BpfError::new("count CPUs", POSSIBLE, &error))?;
    above_all(&told).ok_or_else(|| BpfError::plain("count CPUs", POSSIBLE, "it has no numbers"))
}

/// One more than the last number of a list such as `0-3,8-11`, which rises.
fn above_all(list: &str) -> Option<u32> {
    list.trim().rsplit([',', '-']).next()?.parse::<u32>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_missing_count_too() {
        for (list, count) in [("0\n", 1), ("0-1\n", 2), ("0-3,8-11\n", 12), ("0,2\n", 3)] {
            assert_eq!(above_all(list), Some(count), "{list}");
        }
        assert_eq!(above_all("\n"), None);
        assert_eq!(above_all("4294967295"), None);
    }
}
