//! Conntrack sees only part of what the fast path carries: the settings that make
//! it live with that, and what its timeouts mean for the programs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flannel_core::health::Subject;

use crate::kernel::KernelError;
use crate::kernel::sysctl::{Sysctl, TcpConntrack, Timeout};
use crate::status::Shared;

/// Name of conntrack's switch, as `sysctl` prints it.
pub const LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

/// Timeouts of connections of which conntrack saw data and not its ACK, or data
/// that was sent again: most of what it sees of a confirmed flow.
const IDLE: [Timeout; 2] = [Timeout::TcpUnacknowledged, Timeout::TcpMaxRetrans];

/// Timeouts of connections that carry data.
const BUSY: [Timeout; 5] = [
    Timeout::TcpEstablished,
    Timeout::TcpFinWait,
    Timeout::TcpCloseWait,
    Timeout::TcpUnacknowledged,
    Timeout::TcpMaxRetrans,
];

/// Share of conntrack's timeout that a flow may stay unseen: a proof may be
/// late, and packets may be rare.
const SHARE: u32 = 4;

/// conntrack's settings, as far as we have changed them, or are about to.
#[derive(Debug, Default)]
pub(super) struct Conntrack {
    /// Remembered for `cleanup`: their values before us, by name.
    before: BTreeMap<String, String>,
    /// Those of which the state file does not know yet. They are changed when it does.
    unwritten: BTreeSet<String>,
    /// Those of which nothing was said yet.
    untold: BTreeSet<String>,
}

impl Conntrack {
    /// With what earlier runs have changed.
    pub(super) fn new(before: BTreeMap<String, String>) -> Self {
        Self { before, ..Self::default() }
    }

    /// Settings that we have changed or are about to, with the values before.
    pub(super) fn before(&self) -> &BTreeMap<String, String> {
        &self.before
    }

    /// The state file knows of all, or cannot be written.
    pub(super) fn remembered(&mut self) {
        self.untold.append(&mut self.unwritten);
    }

    /// Whether changes wait until the state file knows of them.
    pub(super) fn waits(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Whether conntrack tolerates that it misses most of a connection; makes
    /// it so where it can.
    pub(super) fn tcp_allowed(&mut self, sysctl: &Sysctl, shared: &Shared) -> bool {
        let set = match sysctl.tcp_conntrack() {
            Ok(TcpConntrack::Absent | TcpConntrack::Liberal) => Ok(true),
            Ok(TcpConntrack::Strict) if !self.may_set(LIBERAL, "0") => Ok(false),
            Ok(TcpConntrack::Strict) => {
                let set = sysctl.set_tcp_conntrack_liberal(true);
                set.map(|()| self.has_set(LIBERAL, "1")).map(|()| true)
            }
            Err(error) => Err(error),
        };
        let found = set.as_ref().map_err(|error| format!("{error}; TCP stays on the kernel path"));
        shared.report(Subject::Conntrack, found);
        set.unwrap_or(false)
    }

    /// Keeps conntrack from forgetting idle TCP connections early, while the fast
    /// path carries TCP: it would take them for connections that get no answer.
    pub(super) fn keep_idle_connections(
        &mut self,
        timeouts: &mut Timeouts<'_>,
        shared: &Shared,
        carries_tcp: bool,
    ) {
        let kept = if carries_tcp { self.raise_idle_timeouts(timeouts) } else { Ok(()) };
        let found = kept.map_err(|error| {
            format!("{error}; idle TCP connections end for conntrack after some minutes")
        });
        shared.report(Subject::ConntrackTimeouts, found);
    }

    fn raise_idle_timeouts(&mut self, timeouts: &mut Timeouts<'_>) -> Result<(), KernelError> {
        let Some(established) = timeouts.get(Timeout::TcpEstablished)? else {
            return Ok(());
        };
        for timeout in IDLE {
            let Some(before) = timeouts.get(timeout)? else { continue };
            if before >= established {
                continue;
            }
            let name = timeout.name();
            if self.may_set(&name, &before.to_string()) {
                timeouts.set(timeout, established)?;
                self.has_set(&name, &established.to_string());
            }
        }
        Ok(())
    }

    /// Remembers what a setting was before the first change; whether the state file
    /// does, too.
    fn may_set(&mut self, name: &str, before: &str) -> bool {
        if !self.before.contains_key(name) {
            self.before.insert(name.to_owned(), before.to_owned());
            self.unwritten.insert(name.to_owned());
        }
        !self.unwritten.contains(name)
    }

    /// Says it once: whoever sets it back is corrected without a word.
    fn has_set(&mut self, name: &str, now: &str) {
        if !self.untold.remove(name) {
            tracing::debug!(sysctl = name, value = now, "sysctl set again");
            return;
        }
        tracing::info!(
            sysctl = name,
            before = self.before.get(name),
            value = now,
            "sysctl set: conntrack sees only part of each TCP connection"
        );
    }
}

/// Conntrack's timeouts as one look finds them: each is read once.
pub(super) struct Timeouts<'a> {
    sysctl: &'a Sysctl,
    /// Seconds; `None` where there is no conntrack.
    known: BTreeMap<Timeout, Option<u32>>,
}

impl<'a> Timeouts<'a> {
    /// None of them is read yet.
    pub(super) fn new(sysctl: &'a Sysctl) -> Self {
        Self { sysctl, known: BTreeMap::new() }
    }

    fn get(&mut self, timeout: Timeout) -> Result<Option<u32>, KernelError> {
        if let Some(known) = self.known.get(&timeout) {
            return Ok(*known);
        }
        let seconds = self.sysctl.timeout(timeout)?;
        self.known.insert(timeout, seconds);
        Ok(seconds)
    }

    fn set(&mut self, timeout: Timeout, seconds: u32) -> Result<(), KernelError> {
        self.sysctl.set_timeout(timeout, seconds)?;
        self.known.insert(timeout, Some(seconds));
        Ok(())
    }

    /// How long a UDP flow may stay on the fast path before the kernel sees a packet of
    /// it: conntrack must not forget it meanwhile. At most `window`.
    pub(super) fn udp_window(&mut self, shared: &Shared, window: Duration) -> Duration {
        let read: Result<Vec<Option<u32>>, KernelError> = [Timeout::Udp, Timeout::UdpStream]
            .map(|timeout| self.get(timeout))
            .into_iter()
            .collect();
        let found = read.as_ref().map_err(|error| {
            format!("{error}; it is not known how soon conntrack forgets UDP flows")
        });
        shared.report(Subject::ConntrackUdpTimeouts, found);
        shortest(window, read.unwrap_or_default().into_iter().flatten())
    }

    /// The same of any flow: how long a TCP connection may stay there. What cannot be read
    /// is told by [`Conntrack::keep_idle_connections`].
    pub(super) fn window(&mut self, window: Duration) -> Duration {
        let read = BUSY.map(|timeout| self.get(timeout).ok().flatten());
        shortest(window, read.into_iter().flatten())
    }
}

fn shortest(window: Duration, timeouts: impl Iterator<Item = u32>) -> Duration {
    let bounds = timeouts.map(|seconds| Duration::from_secs(seconds.into()) / SHARE);
    bounds.fold(window, Duration::min)
}
