//! [`Proxy`]: the workers, as the loop sees them.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use ipnetwork::Ipv4Network;
use tokio::sync::Notify;

use super::inward::{Inward, is_gone};
use super::outward::Outward;
use super::routes::PeerRoutes;
pub use super::shared::ProxySettings;
use super::shared::SharedByWorkers;
use super::socket::{IcmpSocket, Socket};
use super::tun::Queue;
use crate::task::Watched;

/// Most queues: more workers than this only wait for each other.
const QUEUES: usize = 8;

/// The proxy could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{call} {object}: {source}{}", hint.map(|hint| format!(" ({hint})")).unwrap_or_default())]
pub struct ProxyError {
    /// What was tried.
    call: &'static str,
    /// On what.
    object: String,
    /// The kernel's answer.
    source: io::Error,
    /// What may help.
    hint: Option<&'static str>,
}

/// A running proxy. Dropped, it stops; the device stays.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<SharedByWorkers>,
    workers: Vec<JoinHandle<()>>,
    icmp_refused: Option<String>,
}

/// Queues for this machine: one for each CPU, within reason.
pub fn default_queues() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(QUEUES)
}

impl Proxy {
    /// Binds the sockets, opens the device (which is made if need be, without
    /// address and down), starts the workers. There are no peers yet. `ended` is notified
    /// when a worker has ended.
    ///
    /// # Errors
    /// The port is taken, or the device cannot be had.
    pub fn start(settings: ProxySettings, ended: Arc<Notify>) -> Result<Self, ProxyError> {
        let queues = settings.queues.max(1);
        // The port first: if flanneld still runs, the device is its.
        let sockets = (0..queues)
            .map(|_| Socket::bind(settings.local, settings.port).map(Arc::new))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|source| ProxyError {
                call: "bind UDP",
                object: format!("{}:{}", settings.local, settings.port),
                hint: (source.kind() == io::ErrorKind::AddrInUse)
                    .then_some("another program has the port, flanneld perhaps; see `ss -ulnp`"),
                source,
            })?;
        let opened = Queue::open(&settings.device, queues).map_err(|source| ProxyError {
            call: "open TUN device",
            object: settings.device.clone(),
            hint: match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV) => Some("the kernel has no tun: modprobe tun"),
                Some(libc::EPERM | libc::EACCES) => Some("CAP_NET_ADMIN and /dev/net/tun"),
                Some(libc::EBUSY | libc::EINVAL) => {
                    Some("a device of that name is there that another program made")
                }
                _ => None,
            },
            source,
        })?;
        let (icmp, icmp_refused) = match IcmpSocket::open() {
            Ok(socket) => (Some(socket), None),
            Err(error) => (None, Some(format!("raw socket: {error}; CAP_NET_RAW is missing"))),
        };
        let other =
            |source| ProxyError { call: "start", object: "workers".to_owned(), source, hint: None };
        let shared = Arc::new(SharedByWorkers::new(settings, icmp, ended).map_err(other)?);
        let mut proxy = Self { shared, workers: Vec::new(), icmp_refused };
        for (index, (queue, socket)) in opened.into_iter().zip(sockets).enumerate() {
            proxy.work(index, Arc::new(queue), socket).map_err(other)?;
        }
        Ok(proxy)
    }

    fn work(&mut self, index: usize, queue: Arc<Queue>, socket: Arc<Socket>) -> io::Result<()> {
        let shared = || Arc::clone(&self.shared);
        let outward = Outward::new(Arc::clone(&queue), Arc::clone(&socket), shared());
        let inward = Inward::new(queue, socket, shared());
        let spawn = |name, work: Box<dyn FnOnce() -> io::Result<()> + Send>| {
            let shared = shared();
            let fallen = shared.clone();
            let watched = Watched::new("carries packets", move |ended| {
                fallen.worker_ended(Some(ended.to_string()));
            });
            thread::Builder::new().name(format!("udp-{name}-{index}")).spawn(move || {
                let _watched = watched;
                let ended = work();
                if let Err(error) = &ended {
                    tracing::debug!(%error, worker = name, "udp proxy worker ended");
                }
                let error = ended.err();
                let failure = error.filter(|error| !is_gone(error));
                shared.worker_ended(failure.map(|error| format!("packets not carried: {error}")));
            })
        };
        self.workers.push(spawn("out", Box::new(|| outward.run()))?);
        self.workers.push(spawn("in", Box::new(|| inward.run()))?);
        Ok(())
    }

    /// What it was started with.
    pub fn settings(&self) -> &ProxySettings {
        &self.shared.settings
    }

    /// All workers run. They end when the device is deleted.
    pub fn is_alive(&self) -> bool {
        self.workers.iter().all(|worker| !worker.is_finished())
    }

    /// Why a worker has ended that was to go on: the proxy is to be started anew.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure()
    }

    /// Why senders get no ICMP errors, if so.
    pub fn icmp_refused(&self) -> Option<&str> {
        self.icmp_refused.as_deref()
    }

    /// From now on these are the peers: public addresses by subnet.
    pub fn set_peers(&self, peers: &BTreeMap<Ipv4Network, Ipv4Addr>) {
        let before = self.shared.routes();
        let same = before.iter().map(|route| (&route.subnet, &route.public_ip)).eq(peers);
        if !same {
            self.shared.set_routes(PeerRoutes::new(peers, &before));
        }
    }

    /// The peers with their counters.
    pub fn routes(&self) -> Arc<PeerRoutes> {
        self.shared.routes()
    }

    /// Packets by outcome.
    pub fn outcomes(&self) -> BTreeMap<&'static str, u64> {
        self.shared.counters.by_name()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop();
        for worker in self.workers.drain(..) {
            // It has no result, and its panic was told.
            let _ = worker.join();
        }
    }
}
