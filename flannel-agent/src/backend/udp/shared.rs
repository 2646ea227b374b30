//! What the workers of a proxy share.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use tokio::sync::Notify;

use super::counters::ProxyCounters;
use super::routes::PeerRoutes;
use super::socket::IcmpSocket;
use crate::bpf::VerifySource;

/// What a proxy is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// Name of the TUN device.
    pub device: String,
    /// Underlay address of this node: the datagrams' source.
    pub local: Ipv4Addr,
    /// Source and destination port.
    pub port: u16,
    /// The overlay network.
    pub network: Ipv4Network,
    /// Our own subnet; its first address is the device's.
    pub subnet: Ipv4Network,
    /// What becomes of packets whose source is not their sender's.
    pub verify_source: VerifySource,
    /// Queues of the device, each with two workers.
    pub queues: usize,
}

/// Shared by all workers.
#[derive(Debug)]
pub(super) struct SharedByWorkers {
    pub(super) settings: ProxySettings,
    pub(super) counters: ProxyCounters,
    pub(super) icmp: Option<IcmpSocket>,
    routes: Mutex<Arc<PeerRoutes>>,
    version: AtomicU64,
    stop: OwnedFd,
    stopping: AtomicBool,
    /// Why a worker has ended that was to go on.
    failure: OnceLock<String>,
    /// Is notified when a worker has ended.
    ended: Arc<Notify>,
}

impl SharedByWorkers {
    pub(super) fn new(
        settings: ProxySettings,
        icmp: Option<IcmpSocket>,
        ended: Arc<Notify>,
    ) -> io::Result<Self> {
        Ok(Self {
            settings,
            counters: ProxyCounters::default(),
            icmp,
            routes: Mutex::default(),
            version: AtomicU64::new(0),
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopping: AtomicBool::new(false),
            failure: OnceLock::new(),
            ended,
        })
    }

    /// A worker has ended; `failure`: why, if it was to go on.
    pub(super) fn worker_ended(&self, failure: Option<String>) {
        if let Some(failure) = failure {
            // The first counts.
            let _ = self.failure.set(failure);
        }
        self.ended.notify_one();
    }

    /// Why a worker has ended that was to go on.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    pub(super) fn routes(&self) -> Arc<PeerRoutes> {
        Arc::clone(&self.routes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_routes(&self, routes: PeerRoutes) {
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(routes);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Ends all workers.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // A counter that is raised wakes all who wait, and stays raised.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }

    /// Waits until there is something to read; `false` if the proxy stops.
    pub(super) fn wait_for(&self, source: impl AsFd) -> io::Result<bool> {
        let stop = PollFd::new(&self.stop, PollFlags::IN);
        self.wait(&mut [PollFd::new(&source, PollFlags::IN), stop], None)
    }

    /// Waits for so long; `false` if the proxy stops.
    pub(super) fn rest(&self, pause: Duration) -> io::Result<bool> {
        let pause = Timespec::try_from(pause).map_err(io::Error::other)?;
        self.wait(&mut [PollFd::new(&self.stop, PollFlags::IN)], Some(&pause))
    }

    fn wait(&self, wanted: &mut [PollFd<'_>], limit: Option<&Timespec>) -> io::Result<bool> {
        loop {
            match poll(wanted, limit) {
                Ok(_) => return Ok(!self.stopping.load(Ordering::Acquire)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A worker's routes: as shared, without a lock for each packet.
#[derive(Debug)]
pub(super) struct View {
    routes: Arc<PeerRoutes>,
    version: u64,
}

impl View {
    pub(super) fn of(shared: &SharedByWorkers) -> Self {
        // The version first: if it is old, the next refresh reads again.
        let version = shared.version.load(Ordering::Acquire);
        Self { version, routes: shared.routes() }
    }

    pub(super) fn refresh(&mut self, shared: &SharedByWorkers) {
        if shared.version.load(Ordering::Acquire) != self.version {
            *self = Self::of(shared);
        }
    }

    pub(super) fn routes(&self) -> &PeerRoutes {
        &self.routes
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the workers of a proxy on this machine would share.
    pub(in crate::backend::udp) fn shared() -> SharedByWorkers {
        let settings = ProxySettings {
            device: "flannel0".to_owned(),
            local: Ipv4Addr::LOCALHOST,
            port: 8285,
            network: "10.2.0.0/16".parse().unwrap(),
            subnet: "10.2.5.0/24".parse().unwrap(),
            verify_source: VerifySource::Drop,
            queues: 1,
        };
        SharedByWorkers::new(settings, None, Arc::default()).unwrap()
    }
}
