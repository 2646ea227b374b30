//! What the traffic client can be asked for, and what it tells of it: one type for each
//! result, read once.

use std::fmt;
use std::fmt::Debug;
use std::net::SocketAddrV4;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::netns::Netns;
use crate::process::{Process, output, own_program};
use crate::told;
use crate::traffic::client::{Checked, Flood, Spaced, Throughput};
use crate::traffic::transactions::Transactions;

/// A kind of load. `R` is what the client tells of it.
pub struct Load<R> {
    name: &'static str,
    read: fn(&str) -> Result<R, String>,
}

/// TCP, one byte there and back.
pub const REQUESTS: Load<Transactions> = Load::new("requests");
/// TCP, one byte there and back on a connection of its own.
pub const CONNECTS: Load<Transactions> = Load::new("connects");
/// UDP as fast as it goes.
pub const FLOOD: Load<Flood> = Load::new("flood");
/// UDP, each datagram from another address or port.
pub const SCATTER: Load<Flood> = Load::new("scatter");
/// TCP in one direction.
pub const STREAM: Load<Throughput> = Load::new("stream");
/// UDP at fixed times, there and back.
pub const SPACED: Load<Spaced> = Load::new("spaced");
/// TCP messages of all sizes, checked.
pub const MESSAGES: Load<Checked> = Load::new("messages");
/// UDP datagrams of all sizes, checked.
pub const ECHOES: Load<Checked> = Load::new("echoes");
/// Random data both ways in large writes, checked.
pub const BULK: Load<Checked> = Load::new("bulk");

impl<R: Serialize + DeserializeOwned> Load<R> {
    const fn new(name: &'static str) -> Self {
        Self { name, read: told::read::<R> }
    }
}

impl<R> Clone for Load<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Load<R> {}

/// The client's word for it.
impl<R> fmt::Display for Load<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A load that can come through in part.
pub trait Whole: Debug {
    /// Whether all of it came through as it was sent.
    fn is_whole(&self) -> bool;
}

impl Whole for Transactions {
    fn is_whole(&self) -> bool {
        self.error.is_none()
    }
}

impl Whole for Spaced {
    fn is_whole(&self) -> bool {
        self.lost == 0
    }
}

impl Whole for Checked {
    fn is_whole(&self) -> bool {
        (self.lost, self.corrupt) == (0, 0)
    }
}

/// Asserts that all of a load came through.
///
/// # Panics
/// It did not.
#[track_caller]
pub fn assert_whole(result: &impl Whole) {
    assert!(result.is_whole(), "{result:?}");
}

/// Runs the traffic client in a namespace to its end.
///
/// # Panics
/// It fails.
#[track_caller]
pub fn traffic<R>(netns: &Netns, load: Load<R>, to: SocketAddrV4, options: &str) -> R {
    try_traffic(netns, load, to, options).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs the traffic client in a namespace to its end.
///
/// # Errors
/// It fails, and this is what it says.
pub fn try_traffic<R>(
    netns: &Netns,
    load: Load<R>,
    to: SocketAddrV4,
    options: &str,
) -> Result<R, String> {
    let mut command = netns.command(own_program("flannel-traffic"));
    let arguments = load.arguments(to, options);
    let output = output(command.args(&arguments));
    let arguments = arguments.join(" ");
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{arguments}: {}: {said}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    (load.read)(&text).map_err(|error| format!("{arguments}: {error}"))
}

/// Starts the traffic client in a namespace.
pub fn start_traffic<R>(
    netns: &Netns,
    load: Load<R>,
    to: SocketAddrV4,
    options: &str,
) -> RunningLoad<R> {
    let mut command = netns.command(own_program("flannel-traffic"));
    let out = tempfile::NamedTempFile::new().expect("a temporary file");
    let arguments = load.arguments(to, options);
    command.args(&arguments);
    let process = Process::start("flannel-traffic", &mut command, out.path());
    RunningLoad { process, out, load, arguments: arguments.join(" ") }
}

impl<R> Load<R> {
    fn arguments(self, to: SocketAddrV4, options: &str) -> Vec<String> {
        let options = options.split_whitespace().map(str::to_owned);
        [self.name.to_owned(), to.to_string()].into_iter().chain(options).collect()
    }
}

/// A traffic client that runs.
pub struct RunningLoad<R> {
    process: Process,
    out: tempfile::NamedTempFile,
    load: Load<R>,
    arguments: String,
}

impl<R> RunningLoad<R> {
    /// Waits for its end.
    ///
    /// # Panics
    /// It fails, or does not end within five minutes.
    #[track_caller]
    pub fn finish(mut self) -> R {
        let status = self.process.wait(Duration::from_secs(300));
        let text = std::fs::read_to_string(self.out.path()).unwrap_or_default();
        assert!(status.success(), "{}: {status}: {text}", self.arguments);
        (self.load.read)(&text).unwrap_or_else(|error| panic!("{}: {error}", self.arguments))
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        self.process.ended().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read_into_the_type_of_its_load() {
        let text = r#"{"sent":9,"lost":1,"corrupt":0,"first_wrong":"3 bytes lost"}"#;
        let echoes = (ECHOES.read)(text).unwrap();
        assert_eq!((echoes.sent, echoes.is_whole()), (9, false));
        let error = (SPACED.read)(text).unwrap_err();
        assert!(error.contains("missing field `duplicated`"), "{error}");
        let more = text.replace("\"sent\"", "\"late\":2,\"sent\"");
        let error = (BULK.read)(&more).unwrap_err();
        assert!(error.starts_with(".late is unknown"), "{error}");
    }

    #[test]
    fn what_is_changed_is_not_whole() {
        let whole = Checked::default();
        assert!(whole.is_whole());
        assert!(!Checked { corrupt: 1, ..whole }.is_whole());
    }
}
