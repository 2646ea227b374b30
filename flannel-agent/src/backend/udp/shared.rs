//! What the workers of a proxy share.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnetwork::Ipv4Network;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

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
}

impl SharedByWorkers {
    pub(super) fn new(settings: ProxySettings, icmp: Option<IcmpSocket>) -> io::Result<Self> {
        Ok(Self {
            settings,
            counters: ProxyCounters::default(),
            icmp,
            routes: Mutex::default(),
            version: AtomicU64::new(0),
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopping: AtomicBool::new(false),
        })
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
        let mut wanted = [PollFd::new(&source, PollFlags::IN), stop];
        loop {
            match poll(&mut wanted, None) {
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
