//! Conntrack sees only part of what the fast path carries: the settings that make
//! it live with that, and what its timeouts mean for the programs.

use std::time::Duration;

use flannel_core::health::Subject;

use super::Reconciler;
use crate::firewall::Firewall;
use crate::kernel::sysctl::{TcpConntrack, Timeout};
use crate::kernel::{Kernel, KernelError};

/// Name of conntrack's switch, as `sysctl` prints it.
pub const LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

/// Timeouts of connections of which conntrack saw data and not its ACK, or data
/// that was sent again: most of what it sees of a confirmed flow.
const IDLE: [Timeout; 2] = [Timeout::TcpUnacknowledged, Timeout::TcpMaxRetrans];

/// Share of conntrack's timeout that a UDP flow may stay unseen: a proof may be
/// late, and packets may be rare.
const UDP_SHARE: u32 = 4;

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Whether conntrack tolerates that it misses most of a connection; makes
    /// it so where it can.
    pub(super) fn tcp_allowed(&mut self) -> bool {
        let set = match self.sysctl.tcp_conntrack() {
            Ok(TcpConntrack::Absent | TcpConntrack::Liberal) => Ok(()),
            Ok(TcpConntrack::Strict) => {
                let set = self.sysctl.set_tcp_conntrack_liberal(true);
                set.inspect(|()| self.has_set(LIBERAL, "0", "1"))
            }
            Err(error) => Err(error),
        };
        let found = set.as_ref().map_err(|error| format!("{error}; TCP stays on the kernel path"));
        self.shared.report(Subject::Conntrack, found);
        set.is_ok()
    }

    /// Keeps conntrack from forgetting idle TCP connections early, while the fast
    /// path carries TCP: it would take them for connections that get no answer.
    pub(super) fn keep_idle_connections(&mut self, carries_tcp: bool) {
        let kept = if carries_tcp { self.raise_idle_timeouts() } else { Ok(()) };
        let found = kept.map_err(|error| {
            format!("{error}; idle TCP connections end for conntrack after some minutes")
        });
        self.shared.report(Subject::ConntrackTimeouts, found);
    }

    fn raise_idle_timeouts(&mut self) -> Result<(), KernelError> {
        let Some(established) = self.sysctl.timeout(Timeout::TcpEstablished)? else {
            return Ok(());
        };
        for timeout in IDLE {
            let Some(before) = self.sysctl.timeout(timeout)? else { continue };
            if before < established {
                self.sysctl.set_timeout(timeout, established)?;
                let (before, now) = (before.to_string(), established.to_string());
                self.has_set(timeout.name(), &before, &now);
            }
        }
        Ok(())
    }

    /// Remembers for `cleanup` what a setting was before the first change, and
    /// says that once: whoever sets it back is corrected without a word.
    fn has_set(&mut self, name: &str, before: &str, now: &str) {
        if self.sysctls_before.contains_key(name) {
            tracing::debug!(sysctl = name, value = now, "set again");
            return;
        }
        self.sysctls_before.insert(name.to_owned(), before.to_owned());
        tracing::info!(
            sysctl = name,
            before,
            value = now,
            "set: conntrack sees only part of each TCP connection"
        );
    }

    /// How long a UDP flow may stay on the fast path before the kernel sees a
    /// packet of it: conntrack must not forget it meanwhile.
    pub(super) fn udp_window(&self) -> Duration {
        let timeouts = [Timeout::Udp, Timeout::UdpStream];
        let read: Result<Vec<Option<u32>>, KernelError> =
            timeouts.into_iter().map(|timeout| self.sysctl.timeout(timeout)).collect();
        let found = read.as_ref().map_err(|error| {
            format!("{error}; it is not known how soon conntrack forgets UDP flows")
        });
        self.shared.report(Subject::ConntrackUdpTimeouts, found);
        let bounds = read.unwrap_or_default().into_iter().flatten();
        let bounds = bounds.map(|seconds| Duration::from_secs(seconds.into()) / UDP_SHARE);
        bounds.fold(self.settings.fast_path.window, Duration::min)
    }
}
