//! The clock of a node is set: by hand, or by NTP after a boot with a wrong one.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flannel_tests::agent::Options;
use flannel_tests::pair::Pair;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// Longer than a lease lasts, back further than it began, and where it was.
const DAYS: [i64; 3] = [400, -800, 400];
/// What a lease lasts, in seconds, less a few minutes that the case may take.
const LASTS: std::ops::RangeInclusive<u64> = 85_000..=86_400;

#[test]
fn a_clock_that_is_set_changes_nothing() {
    let own_machine = std::env::var_os("FLANNEL_TEST_CARDS").is_some();
    assert!(own_machine, "it sets the machine's clock: only for one that is emulated");
    let pair = Pair::agents(&Options::default());
    pair.fast_both_ways();
    for days in DAYS {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        let seconds = i64::try_from(now.as_secs()).expect("a time before 2262") + days * 86_400;
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, 0)).expect("to set it");
        // Some looks at everything that is looked at again and again.
        thread::sleep(Duration::from_millis(1500));
        for node in [&pair.left, &pair.right] {
            let status = node.status();
            assert_eq!(status.health, [], "{days} days: {}", node.agent_log());
            assert_eq!((status.peers, status.store.connected), (1, true), "{days} days");
            let lease = status.lease.expect("a lease");
            let left = lease.expires_in_seconds.expect("an end");
            assert!(LASTS.contains(&left), "{days} days: it ends in {left} s");
        }
        pair.fast_both_ways();
    }
}
