//! A timer for what is looked at again and again. The kernel's timer wakes a thread that
//! rests once. tokio's wakes it twice: it goes through far times in steps of 64 ms, and
//! writes to itself whenever such a time is set.
#![allow(unsafe_code, reason = "tokio has no safe form to wait for a descriptor")]

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

/// A timer that is set anew each time. Without the kernel's it is tokio's, which follows a
/// paused clock.
#[derive(Debug, Default)]
pub struct Timer {
    kernel: Option<AsyncFd<OwnedFd>>,
    /// What the kernel's timer was set to last.
    set: Option<Instant>,
}

impl Timer {
    /// The kernel's timer, or tokio's where no descriptor is left. Within a tokio runtime.
    pub fn open() -> Self {
        let kernel = open().inspect_err(|error| tracing::debug!(%error, "timerfd unavailable"));
        Self { kernel: kernel.ok(), set: None }
    }

    /// Waits until then. Others get their turn in any case, what comes from the kernel too.
    /// Cancel safe: it goes on where it is called again for the same time.
    pub async fn until(&mut self, due: Instant) {
        if Instant::now() >= due {
            return yield_now().await;
        }
        let Some(kernel) = &self.kernel else { return sleep_until(due).await };
        while Instant::now() < due {
            if self.set != Some(due) {
                if set(kernel, due.duration_since(Instant::now())).is_err() {
                    return sleep_until(due).await;
                }
                self.set = Some(due);
            }
            // Nobody reads it: it is set anew, which forgets that it has gone off.
            match kernel.readable().await {
                Ok(mut gone_off) => gone_off.clear_ready(),
                Err(_) => return sleep_until(due).await,
            }
        }
    }
}

fn open() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as it lives, and
    // nobody replaces the one that is handed over.
    Ok(unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?)
}

fn set(timer: &AsyncFd<OwnedFd>, left: Duration) -> io::Result<()> {
    // Zero would stop it.
    let left = left.max(Duration::from_nanos(1));
    let it_value = Timespec::try_from(left).map_err(io::Error::other)?;
    let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
    let once = Itimerspec { it_interval, it_value };
    timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PERIOD: Duration = Duration::from_millis(100);
    const TIMES: u64 = 10;

    /// How often this thread has gone to sleep.
    fn sleeps() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    }

    /// How often a thread wakes up that waits for this timer again and again.
    async fn wakes(mut timer: Timer) -> u64 {
        let before = sleeps();
        for _ in 0..TIMES {
            let due = Instant::now() + PERIOD;
            timer.until(due).await;
            let late = Instant::now().duration_since(due);
            assert!(late < PERIOD / 2, "{late:?}");
        }
        sleeps() - before
    }

    #[tokio::test]
    async fn a_thread_that_rests_wakes_once_each_time() {
        let kernels = wakes(Timer::open()).await;
        assert!((TIMES..TIMES + TIMES / 2).contains(&kernels), "{kernels}");
        assert!(wakes(Timer::default()).await > kernels, "tokio's does as well by now");
    }

    #[tokio::test]
    async fn others_get_their_turn_when_it_is_always_due() {
        for mut timer in [Timer::open(), Timer::default()] {
            let (mut ours, mut theirs) = tokio::io::duplex(64);
            tokio::spawn(async move { theirs.write_all(b"a turn").await });
            let mut answer = [0; 6];
            let mut answered = false;
            for _ in 0..TIMES {
                tokio::select! {
                    biased;
                    read = ours.read_exact(&mut answer) => answered = read.is_ok(),
                    () = timer.until(Instant::now()) => {}
                }
                if answered {
                    break;
                }
            }
            assert!(answered, "nobody else has run");
        }
    }

    #[tokio::test]
    async fn what_waits_may_be_cancelled_and_another_time_may_come() {
        for mut timer in [Timer::open(), Timer::default()] {
            let due = Instant::now() + PERIOD;
            let sooner = tokio::time::timeout(PERIOD / 4, timer.until(due)).await;
            assert!(sooner.is_err());
            timer.until(due).await;
            assert!(Instant::now() >= due);
            // It has gone off, and was not waited for.
            let gone = Instant::now() + PERIOD / 10;
            assert!(tokio::time::timeout(Duration::ZERO, timer.until(gone)).await.is_err());
            tokio::time::sleep(PERIOD / 5).await;
            let due = Instant::now() + PERIOD / 2;
            timer.until(due).await;
            assert!(Instant::now() >= due);
            timer.until(due).await;
        }
    }
}
