//! What systemd is told. Without NOTIFY_SOCKET all of this does nothing.
//!
//! A thread of its own tells it: systemd may be slow to listen, and nothing else
//! waits for that.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

/// Words that wait for systemd; more of them are left out.
const QUEUE: usize = 64;
/// Most time that the last word may take.
const LAST: Duration = Duration::from_millis(200);

enum Word {
    Ready,
    Stopping(SyncSender<()>),
    Status(String),
    Watchdog,
}

fn tell(word: Word) {
    static TELLER: OnceLock<SyncSender<Word>> = OnceLock::new();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let teller = TELLER.get_or_init(|| {
        let (sender, words) = sync_channel(QUEUE);
        // Without the thread nobody is told; the daemon goes on.
        let started = std::thread::Builder::new().name("notify".to_owned());
        if let Err(error) = started.spawn(move || follow(&words)) {
            tracing::warn!(%error, "systemd notifications unavailable");
        }
        sender
    });
    // Full: systemd does not listen.
    let _ = teller.try_send(word);
}

fn follow(words: &Receiver<Word>) {
    for word in words {
        let state = match &word {
            Word::Ready => NotifyState::Ready,
            Word::Stopping(_) => NotifyState::Stopping,
            Word::Status(text) => NotifyState::Status(text),
            Word::Watchdog => NotifyState::Watchdog,
        };
        if let Err(error) = send(&state) {
            tracing::debug!(%error, "systemd not notified");
        }
        if let Word::Stopping(done) = word {
            // Nobody may wait any more.
            let _ = done.try_send(());
        }
    }
}

/// One datagram to the socket that NOTIFY_SOCKET names.
fn send(state: &NotifyState<'_>) -> io::Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = address(&name)?;
    UnixDatagram::unbound()?.send_to_addr(format!("{state}\n").as_bytes(), &address)?;
    Ok(())
}

/// A socket's address; `@` stands for the zero byte that abstract ones begin with.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(name),
    }
}

/// The daemon is ready: lease held, data plane programmed, subnet.env written.
pub fn ready() {
    tell(Word::Ready);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    tell(Word::Status(text.to_owned()));
}

/// The daemon is about to exit; everything keeps forwarding.
pub fn stopping() {
    let (done, told) = sync_channel(1);
    tell(Word::Stopping(done));
    // Where systemd does not listen, it is not waited for.
    let _ = told.recv_timeout(LAST);
}

/// The loop is alive.
pub fn watchdog() {
    tell(Word::Watchdog);
}

/// How often the loop has to say so: half of `WatchdogSec=`, if that is set.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2)
}
