//! Small things that wait for an answer: how many per second, how long each.

use std::io::{Error, Read, Result, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::client::connect;
use super::cpu::busy_seconds;
use super::want;

/// Result of [`requests`] and [`connects`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Transactions {
    /// Transactions.
    pub transactions: u64,
    /// Per second, of all connections together.
    pub rate: f64,
    /// Half of the transactions took at most this, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 took at most this, in microseconds.
    pub p99_us: f64,
    /// Busy time of all CPUs per transaction, in microseconds.
    pub cpu_us: f64,
    /// Time of the last answer since the start, in milliseconds.
    pub last_ms: u64,
    /// Why it ended early.
    pub error: Option<String>,
}

/// What one connection saw.
#[derive(Default)]
struct Seen {
    /// Time of each transaction, in nanoseconds.
    times: Vec<u32>,
    /// Time of the last answer since the start.
    last: Duration,
    error: Option<Error>,
}

impl Seen {
    fn rate(mut self, elapsed: Duration, busy: f64) -> Transactions {
        self.times.sort_unstable();
        let at = |part: usize| {
            let index = (self.times.len() * part / 100).min(self.times.len().saturating_sub(1));
            f64::from(self.times.get(index).copied().unwrap_or(0)) / 1000.0
        };
        let transactions = self.times.len() as u64;
        Transactions {
            transactions,
            rate: transactions as f64 / elapsed.as_secs_f64(),
            p50_us: at(50),
            p99_us: at(99),
            cpu_us: busy * 1e6 / (transactions.max(1) as f64),
            last_ms: u64::try_from(self.last.as_millis()).unwrap_or(u64::MAX),
            error: self.error.map(|error| error.to_string()),
        }
    }
}

fn nanoseconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

/// One byte there, one byte back, on each of `flows` connections at the same
/// time. `pause` after each; a connection ends early when an answer takes
/// longer than `patience`.
///
/// # Errors
/// A connection cannot be made.
pub fn requests(
    to: SocketAddrV4,
    duration: Duration,
    flows: usize,
    pause: Duration,
    patience: Duration,
) -> Result<Transactions> {
    let mut streams = Vec::new();
    for _ in 0..flows {
        let mut stream = connect(to)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(&[want::ECHO])?;
        streams.push(stream);
    }
    let ready = Arc::new(Barrier::new(flows + 1));
    let threads: Vec<_> = streams
        .into_iter()
        .map(|stream| {
            let ready = Arc::clone(&ready);
            thread::spawn(move || {
                let times = Vec::with_capacity((1 << 20) / flows);
                ready.wait();
                exchange(stream, duration, pause, times)
            })
        })
        .collect();
    let (busy, start) = (busy_seconds(), Instant::now());
    ready.wait();
    let mut all = Seen::default();
    for thread in threads {
        let seen = thread.join().map_err(|_| Error::other("a connection panicked"))?;
        all.times.extend(seen.times);
        all.last = all.last.max(seen.last);
        all.error = all.error.or(seen.error);
    }
    let elapsed = start.elapsed();
    Ok(all.rate(elapsed, busy_seconds() - busy))
}

fn exchange(
    mut stream: TcpStream,
    duration: Duration,
    pause: Duration,
    mut times: Vec<u32>,
) -> Seen {
    let (start, mut byte, mut error) = (Instant::now(), [0], None);
    let mut now = start;
    while now - start < duration {
        if let Err(failed) = stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte)) {
            error = Some(failed);
            break;
        }
        let answered = Instant::now();
        times.push(nanoseconds(answered - now));
        now = answered;
        if !pause.is_zero() {
            thread::sleep(pause);
            now = Instant::now();
        }
    }
    Seen { times, last: now - start, error }
}

/// Connect, one byte there, one byte back, close.
///
/// # Errors
/// A connection fails.
pub fn connects(to: SocketAddrV4, duration: Duration, orderly: bool) -> Result<Transactions> {
    let mut times = Vec::with_capacity(1 << 18);
    let (busy, start) = (busy_seconds(), Instant::now());
    let mut now = start;
    while now - start < duration {
        let mut stream = connect(to)?;
        stream.write_all(&[want::ONCE])?;
        stream.read_exact(&mut [0])?;
        if orderly {
            stream.read_to_end(&mut Vec::new())?;
        }
        let answered = Instant::now();
        times.push(nanoseconds(answered - now));
        now = answered;
    }
    let (elapsed, busy) = (start.elapsed(), busy_seconds() - busy);
    Ok(Seen { times, last: now - start, error: None }.rate(elapsed, busy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_all_transactions() {
        let times = (1..=1000).rev().map(|number| number * 1000).collect();
        let seen = Seen { times, last: Duration::from_millis(1500), error: None };
        let rate = seen.rate(Duration::from_secs(2), 0.5);
        assert_eq!((rate.transactions, rate.rate), (1000, 500.0));
        assert_eq!((rate.p50_us, rate.p99_us), (501.0, 991.0));
        assert_eq!((rate.cpu_us, rate.last_ms), (500.0, 1500));
        let none = Seen::default().rate(Duration::from_secs(1), 0.0);
        assert_eq!((none.rate, none.p99_us), (0.0, 0.0));
    }
}
