//! Datagrams from a socket. An error of it that lasts keeps no processor busy, and ends
//! the worker: the proxy is started anew then.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_udp::RecvMeta;

use super::shared::SharedByWorkers;
use super::socket::{BATCH, Socket};
use crate::backoff::Backoff;

/// So many errors in a row are of what we sent: ICMP errors, say.
const AT_ONCE: u32 = 16;
/// Errors that have lasted for so long end the worker.
const LASTING: Duration = Duration::from_secs(2);
const FIRST: Duration = Duration::from_millis(1);
const LIMIT: Duration = Duration::from_millis(500);

/// Takes datagrams from a socket.
pub(super) struct Receiver {
    socket: Arc<Socket>,
    /// Since when there are only errors, and how many.
    failing: Option<(Instant, u32)>,
    backoff: Backoff,
}

impl Receiver {
    pub(super) fn new(socket: Arc<Socket>) -> Self {
        Self { socket, failing: None, backoff: Backoff::new(FIRST, LIMIT) }
    }

    /// Waits for datagrams; how many came, or `None` if the proxy stops.
    ///
    /// # Errors
    /// None can be received, and that lasts.
    pub(super) fn receive(
        &mut self,
        buffer: &mut [u8],
        metas: &mut [RecvMeta; BATCH],
        shared: &SharedByWorkers,
    ) -> io::Result<Option<usize>> {
        loop {
            match self.socket.receive(buffer, metas) {
                Ok(count) => {
                    self.failing = None;
                    return Ok(Some(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.failing = None;
                    if !shared.wait_for(&*self.socket)? {
                        return Ok(None);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%error, "datagrams not received");
                    if !self.has_failed(error, shared)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Rests for a while; `false` if the proxy stops.
    fn has_failed(&mut self, error: io::Error, shared: &SharedByWorkers) -> io::Result<bool> {
        let (since, count) = self.failing.get_or_insert_with(|| (Instant::now(), 0));
        *count += 1;
        if *count <= AT_ONCE {
            self.backoff.reset();
            return Ok(true);
        }
        if since.elapsed() >= LASTING {
            return Err(error);
        }
        shared.rest(self.backoff.fail())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::udp::shared::tests::shared;

    fn received(receiver: &mut Receiver, shared: &SharedByWorkers) -> io::Result<Option<usize>> {
        let mut metas = [RecvMeta::default(); BATCH];
        receiver.receive(&mut vec![0; BATCH * super::super::socket::TRAIN], &mut metas, shared)
    }

    #[test]
    fn an_error_that_lasts_is_tried_rarely_and_then_ends_the_worker() {
        let mut receiver = Receiver::new(Arc::new(Socket::broken()));
        let began = Instant::now();
        let error = received(&mut receiver, &shared()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK), "{error}");
        assert!(began.elapsed() >= LASTING, "{:?}", began.elapsed());
        let (_, count) = receiver.failing.unwrap();
        assert!(count < AT_ONCE + 50, "{count} tries");
    }

    #[test]
    fn one_that_rests_stops_with_the_proxy() {
        let mut receiver = Receiver::new(Arc::new(Socket::broken()));
        let shared = shared();
        shared.stop();
        let began = Instant::now();
        assert_eq!(received(&mut receiver, &shared).unwrap(), None);
        assert!(began.elapsed() < LASTING);
    }
}
