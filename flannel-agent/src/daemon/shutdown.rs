//! Which signals end the agent, and which do not.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT.
pub(super) struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

/// Signals that end a process by default, and mean nothing to flanneld.
const UNHEARD: [i32; 6] =
    [libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGVTALRM, libc::SIGIO, libc::SIGPWR];

impl Shutdown {
    pub(super) fn install() -> std::io::Result<Self> {
        for number in UNHEARD {
            // What was asked for once never has its default again.
            drop(signal(SignalKind::from_raw(number))?);
        }
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn what_means_nothing_ends_nothing() {
        let mut shutdown = Shutdown::install().unwrap();
        for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM, Signal::SIGIO] {
            raise(signal).unwrap();
        }
        let soon = Duration::from_millis(100);
        assert!(tokio::time::timeout(soon, shutdown.requested()).await.is_err());
        raise(Signal::SIGTERM).unwrap();
        tokio::time::timeout(Duration::from_secs(10), shutdown.requested()).await.unwrap();
    }
}
