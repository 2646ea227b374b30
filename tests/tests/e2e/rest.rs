//! What an agent costs that has nothing to do.

use std::fs;
use std::thread;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::pair::Pair;

/// Threads of the start end meanwhile, and what comes after it is done.
const SETTLED: Duration = Duration::from_secs(15);
const SECONDS: u32 = 10;

/// How often threads of this process have gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the agent's threads");
    let of = |status: String| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse().ok()).expect("a count")
    };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok())
        .map(of)
        .sum()
}

#[test]
fn a_resting_agent_wakes_up_twice_a_second() {
    let mut pair = Pair::agents(&Options::ebpf());
    let pid = pair.left.agent_pid();
    thread::sleep(SETTLED);
    let before = sleeps(pid);
    thread::sleep(Duration::from_secs(SECONDS.into()));
    let wakes = (sleeps(pid) - before) as f64 / f64::from(SECONDS);
    println!("{wakes} in a second");
    // 1.25 looks, and the store's config each ten seconds. One look less is no agent at all.
    assert!((1.0..3.5).contains(&wakes), "{wakes} in a second");
}
