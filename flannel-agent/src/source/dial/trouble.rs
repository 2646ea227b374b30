//! Why a connection failed, in better words than the libraries have.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::words;

/// What a connection met that libraries above it do not pass on.
#[derive(Clone, Default)]
pub(in crate::source) struct Trouble(Arc<Mutex<Met>>);

#[derive(Default)]
struct Met {
    /// What the server said first, as far as it is of use.
    first: Vec<u8>,
    error: Option<String>,
    /// The server closed it.
    closed: bool,
    /// Why the server may refuse our certificate.
    certificate: Option<String>,
}

/// h2's words for a connection that is not there any more, whoever left it.
const LEFT: &str = "stream closed because of a broken pipe";

/// How rustls calls a refusal by the server.
const ALERT: &str = "received fatal alert";

/// Bytes of the server's first words that are looked at.
const FIRST: usize = 12;

/// How libraries call a connection that failed.
const GENERAL: [&str; 4] =
    ["transport error", "h2 protocol error", "connection closed", "connection error"];

/// What follows these words and a colon.
fn without<'a>(text: &'a str, words: &str) -> Option<&'a str> {
    text.strip_prefix(words)?.strip_prefix(": ")
}

impl Trouble {
    /// Of a connection with a certificate of ours that something is wrong with.
    pub(super) fn of(certificate: Option<String>) -> Self {
        Self(Arc::new(Mutex::new(Met { certificate, ..Met::default() })))
    }

    /// `cause`, and what is wrong with our certificate where that may be why.
    pub(super) fn of_certificate(&self, cause: String) -> String {
        match &self.met().certificate {
            Some(wrong) if cause.contains(ALERT) => format!("{cause}: {wrong}"),
            _ => cause,
        }
    }

    fn met(&self) -> MutexGuard<'_, Met> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the server says; nothing at all when it closes the connection.
    pub(super) fn heard(&self, bytes: &[u8]) {
        let mut met = self.met();
        met.closed |= bytes.is_empty();
        let room = FIRST.saturating_sub(met.first.len());
        met.first.extend(bytes.iter().take(room));
    }

    /// The first error counts, but for TLS's own, which says more. It is given back, with
    /// what is wrong with our certificate.
    pub(super) fn failed(&self, error: io::Error) -> io::Error {
        let (kind, before) = (error.kind(), words(&error));
        let cause = self.of_certificate(before.clone());
        let mut met = self.met();
        if met.error.is_none() || kind == io::ErrorKind::InvalidData {
            met.error = Some(cause.clone());
        }
        if cause == before { error } else { io::Error::new(kind, cause) }
    }

    /// `cause`, and what was met, for a connection of HTTP/2.
    pub(in crate::source) fn explain(&self, cause: String) -> String {
        let met = self.met();
        // TLS's answer to what is none: an alert.
        if met.first.starts_with(&[0x15, 0x03]) {
            return format!("{cause}: it answers by TLS");
        }
        if met.first.starts_with(b"HTTP/1.") {
            let line = String::from_utf8_lossy(&met.first);
            return format!("{cause}: it answers {} to gRPC", line.trim());
        }
        let left = cause.contains(LEFT);
        match &met.error {
            // It is what the libraries' words stand for.
            Some(error) if left || GENERAL.iter().any(|words| cause.starts_with(words)) => {
                error.clone()
            }
            Some(_) => cause,
            None if left && met.closed => "connection closed by the server".to_owned(),
            // The library left it, as it does when nothing comes.
            None if left => "it does not answer any more".to_owned(),
            None => {
                let mut rest = cause.as_str();
                let next = |rest| GENERAL.iter().find_map(|words| without(rest, words));
                while let Some(shorter) = next(rest) {
                    rest = shorter;
                }
                rest.to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_another_protocol_is_told() {
        let explained = |bytes: &[u8]| {
            let trouble = Trouble::default();
            trouble.heard(&bytes[..1]);
            trouble.heard(&bytes[1..]);
            trouble.explain("h2 protocol error".to_owned())
        };
        assert!(explained(b"HTTP/1.0 400 Bad Request\r\n").ends_with("HTTP/1.0 400 to gRPC"));
        assert!(explained(&[0x15, 3, 1, 0, 2, 2, 70]).ends_with("it answers by TLS"));
        assert_eq!(explained(b"\0\0\x06\x04"), "h2 protocol error");
        let general = "transport error: connection error: no more".to_owned();
        assert_eq!(Trouble::default().explain(general), "no more");
        let trouble = Trouble::default();
        for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::InvalidData] {
            trouble.failed(io::Error::new(kind, format!("{kind:?}")));
            trouble.failed(io::ErrorKind::ConnectionReset.into());
            assert_eq!(trouble.explain("transport error: x".to_owned()), format!("{kind:?}"));
            assert_eq!(
                trouble.explain("etcdserver: no leader".to_owned()),
                "etcdserver: no leader"
            );
        }
    }

    #[test]
    fn a_server_that_is_silent_is_not_one_that_closed() {
        let left = || format!("error reading a body from connection: {LEFT}");
        let trouble = Trouble::default();
        trouble.heard(b"\0\0\x06\x04");
        assert_eq!(trouble.explain(left()), "it does not answer any more");
        trouble.heard(&[]);
        assert_eq!(trouble.explain(left()), "connection closed by the server");
        trouble.failed(io::ErrorKind::ConnectionReset.into());
        assert_eq!(trouble.explain(left()), "connection reset");
    }
}
