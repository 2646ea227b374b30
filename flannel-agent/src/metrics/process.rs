//! The agent's own process, from `/proc/self`.

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

/// What is known of the process. What cannot be read is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    /// CPU time in user and kernel mode, in seconds.
    pub(super) cpu_seconds: Option<f64>,
    /// Resident memory in bytes.
    pub(super) resident_bytes: Option<u64>,
    /// Virtual memory in bytes.
    pub(super) virtual_bytes: Option<u64>,
    /// When it began, in seconds since the epoch.
    pub(super) start_seconds: Option<f64>,
    /// Threads.
    pub(super) threads: Option<u64>,
    /// Open file descriptors.
    pub(super) open_fds: Option<u64>,
    /// How many it may open.
    pub(super) max_fds: Option<u64>,
}

impl Process {
    /// Reads it.
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let page = rustix::param::page_size() as u64;
        // The name in the second field may hold blanks and brackets.
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
        // By proc(5), whose third field is the first here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let both = field(14).zip(field(15));
        Self {
            cpu_seconds: both.map(|(user, system)| (user + system) as f64 / ticks),
            resident_bytes: field(24).map(|pages| pages * page),
            virtual_bytes: field(23),
            start_seconds: field(22)
                .zip(booted(&boot))
                .map(|(start, boot)| boot.as_secs_f64() + start as f64 / ticks),
            threads: field(20),
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64),
            max_fds: soft_limit(&limits),
        }
    }
}

/// When the machine booted, since the epoch.
fn booted(stat: &str) -> Option<Duration> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(Duration::from_secs(seconds.trim().parse().ok()?))
}

fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Seconds since the epoch.
pub(super) fn seconds(time: std::time::SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn this_process_is_read() {
        let process = Process::read();
        let age = seconds(SystemTime::now()) - process.start_seconds.unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age}");
        assert!(process.resident_bytes.unwrap() > 1 << 20, "{process:?}");
        assert!(process.virtual_bytes > process.resident_bytes, "{process:?}");
        assert!(process.open_fds.unwrap() >= 3 && process.max_fds.unwrap() >= 64, "{process:?}");
        assert!(process.threads.unwrap() >= 1 && process.cpu_seconds.is_some(), "{process:?}");
    }

    #[test]
    fn limits_may_be_absent() {
        assert_eq!(soft_limit("Max open files            1024  4096  files\n"), Some(1024));
        assert_eq!(soft_limit("Max open files            unlimited unlimited files"), None);
        assert_eq!(booted("cpu 1 2\nbtime 1700000000\n"), Some(Duration::from_secs(1_700_000_000)));
    }
}
