//! Clocks that are others: one that is set, by hand or by NTP after a boot with a wrong one,
//! and those of a time namespace.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aya::maps::{Array, Map};
use flannel_ebpf::abi::{Attendance, map};
use flannel_tests::agent::Options;
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

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

/// The programs' clock is not the agent's there: by the agent's a fast path that is behind
/// never begins, and tables that are ahead outlive their agent.
#[test]
fn a_time_namespace_is_lived_with() {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock").tv_sec();
    let within = |offset: i64| {
        let words = ["unshare", "--time", "--monotonic", &offset.to_string()];
        Options { wrapper: words.map(str::to_owned).to_vec(), ..Options::ebpf() }
    };
    let lab = Lab::new();
    let etcd = lab.etcd();
    let nodes = (lab.node(1), lab.node(2));
    let pair = Pair::started(lab, etcd, nodes, [&within(-now / 2), &within(86_400)]);
    pair.fast_both_ways();
    for node in [&pair.left, &pair.right] {
        let age = now.cast_unsigned().abs_diff(sign_of_life(node) / 1_000_000_000);
        assert!(age < 60, "{} is {age} s away", node.address);
        assert_eq!(node.status().health, []);
    }
}

/// When the agent last kept the programs' tables true, by the programs' clock.
fn sign_of_life(node: &Node) -> u64 {
    let all = Map::Array(node.map(map::ATTENDED));
    let all: Array<_, Attendance> = all.try_into().expect("an array");
    all.get(&0, 0).expect("a sign of life").time_ns
}
