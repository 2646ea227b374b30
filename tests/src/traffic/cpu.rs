//! Busy time of the machine.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Pins the calling thread (and what it starts) to one CPU.
///
/// # Panics
/// There is no such CPU.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU number");
    sched_setaffinity(Pid::from_raw(0), &set)
        .unwrap_or_else(|error| panic!("pin to CPU {cpu}: {error}"));
}

/// Seconds that all CPUs together were busy since boot: user, nice, system,
/// irq and softirq of /proc/stat, in steps of 10 ms.
///
/// # Panics
/// /proc/stat cannot be read.
pub fn busy_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").expect("/proc/stat");
    let line = text.lines().next().expect("a first line");
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).map(|word| word.parse().unwrap_or(0.0)).collect();
    // user nice system idle iowait irq softirq
    [0, 1, 2, 5, 6].iter().map(|index| ticks[*index]).sum::<f64>() / 100.0
}
