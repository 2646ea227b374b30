//! What systemd is told.

use std::time::Duration;

use sd_notify::NotifyState;

/// The daemon is ready: lease held, data plane programmed, subnet.env written.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// The daemon is about to exit; everything keeps forwarding.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// The loop is alive.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// How often the loop has to say so: half of `WatchdogSec=`, if that is set.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2)
}

fn send(state: &[NotifyState<'_>]) {
    // Without NOTIFY_SOCKET nobody wants to know.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be notified");
    }
}
