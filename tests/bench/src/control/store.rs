//! The store as the benchmark writes and watches it: by gRPC, as agents do.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Client, EventType, Txn, TxnOp, WatchOptions};
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::mac::MacAddr;
use flannel_tests::etcd::{Etcd, PREFIX};
use flannel_tests::netns::Netns;
use flannel_tests::plain::key;
use ipnetwork::Ipv4Network;
use tokio::runtime::Runtime;

/// Writes in one transaction: etcd's limit.
const TRANSACTION: usize = 128;
/// Writes that wait for etcd at a time.
const AT_ONCE: usize = 16;

/// When a watcher saw each lease last, by its subnet.
type Seen = Arc<Mutex<HashMap<Ipv4Network, Instant>>>;

/// A lease that stands for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paper {
    /// Its subnet.
    pub(super) subnet: Ipv4Network,
    /// Makes MAC and address: two numbers are two nodes.
    pub(super) node: u32,
}

impl Paper {
    /// Lease `number`: a /24 from 10.1.0.0 on.
    pub(super) fn new(number: u32) -> Self {
        let first = u32::from(Ipv4Addr::new(10, 1, 0, 0)) + (number << 8);
        let subnet = Ipv4Network::new(first.into(), 24).expect("a subnet");
        Self { subnet, node: number }
    }

    fn key(self) -> String {
        format!("{PREFIX}/subnets/{}", key(self.subnet))
    }

    fn value(self) -> String {
        let [_, a, b, c] = self.node.to_be_bytes();
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + self.node);
        let attrs = LeaseAttrs::vxlan(address, 1, MacAddr([2, 0x5e, 0, a, b, c]));
        serde_json::to_string(&attrs).expect("JSON of a lease")
    }
}

/// A client of one etcd, in the etcd's network namespace.
pub(super) struct Store {
    runtime: Runtime,
    client: Client,
    seen: Seen,
}

impl Store {
    /// Connects and watches the leases from now on.
    ///
    /// # Panics
    /// etcd does not answer.
    pub(super) fn open(etcd: &Etcd, netns: &Netns) -> Self {
        let endpoint = etcd.endpoint();
        // Threads that the runtime starts are in the namespace of this one.
        let runtime = netns.inside(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
            runtime.handle().spawn(async {});
            runtime
        });
        let client =
            on(&runtime, async move { Client::connect([endpoint], None).await.expect("etcd") });
        let seen = Seen::default();
        let (mut watcher, noted) = (client.watch_client(), Arc::clone(&seen));
        let prefix = format!("{PREFIX}/subnets/");
        let mut stream = on(&runtime, async move {
            let options = WatchOptions::new().with_prefix();
            watcher.watch(prefix, Some(options)).await.expect("a watch")
        });
        runtime.spawn(async move {
            while let Ok(Some(response)) = stream.message().await {
                let now = Instant::now();
                for event in response.events() {
                    let put = event.event_type() == EventType::Put;
                    let name = event.kv().filter(|_| put).and_then(|kv| kv.key_str().ok());
                    let subnet = name
                        .and_then(|name| name.rsplit('/').next())
                        .and_then(|name| name.replace('-', "/").parse().ok());
                    if let Some(subnet) = subnet {
                        note(&noted).insert(subnet, now);
                    }
                }
            }
        });
        Self { runtime, client, seen }
    }

    /// When the watcher saw the lease, if it has.
    pub(super) fn seen(&self, paper: Paper) -> Option<Instant> {
        note(&self.seen).get(&paper.subnet).copied()
    }

    /// Writes leases, many at a time.
    ///
    /// # Panics
    /// etcd refuses.
    pub(super) fn fill(&self, papers: &[Paper]) {
        let put = |paper: &Paper| TxnOp::put(paper.key(), paper.value(), None);
        self.transact(papers.iter().map(put).collect());
    }

    /// Removes leases, many at a time.
    pub(super) fn remove(&self, papers: &[Paper]) {
        self.transact(papers.iter().map(|paper| TxnOp::delete(paper.key(), None)).collect());
    }

    /// Removes a lease by its subnet.
    pub(super) fn forget(&self, subnet: Ipv4Network) {
        self.transact(vec![TxnOp::delete(format!("{PREFIX}/subnets/{}", key(subnet)), None)]);
    }

    fn transact(&self, operations: Vec<TxnOp>) {
        for chunk in operations.chunks(TRANSACTION) {
            let (mut client, chunk) = (self.client.kv_client(), chunk.to_vec());
            on(&self.runtime, async move {
                client.txn(Txn::new().and_then(chunk)).await.expect("a transaction");
            });
        }
    }

    /// Writes leases as they are, one by one, so many each second, until the
    /// handle is dropped.
    pub(super) fn renew(&self, papers: Vec<Paper>, per_second: u32) -> Renewals {
        let (client, done) = (self.client.clone(), Arc::new(Mutex::new(0_u64)));
        let counted = Arc::clone(&done);
        let task = self.runtime.spawn(async move {
            let places = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
            let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second);
            for paper in papers.iter().cycle().copied() {
                tick.tick().await;
                let place = Arc::clone(&places).acquire_owned().await;
                let (mut client, counted) = (client.kv_client(), Arc::clone(&counted));
                tokio::spawn(async move {
                    let _place = place;
                    if client.put(paper.key(), paper.value(), None).await.is_ok() {
                        *counted.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                    }
                });
            }
        });
        Renewals { task, done }
    }
}

/// Renewals that go on.
pub(super) struct Renewals {
    task: tokio::task::JoinHandle<()>,
    done: Arc<Mutex<u64>>,
}

impl Renewals {
    /// How many were written so far.
    pub(super) fn done(&self) -> u64 {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Renewals {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn note(seen: &Seen) -> MutexGuard<'_, HashMap<Ipv4Network, Instant>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries out a future on the runtime's own threads, whose network namespace
/// it needs, and waits for it.
fn on<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        // Nobody waits any more if the benchmark has failed.
        let _ = sender.send(future.await);
    });
    receiver.recv().expect("the store's task")
}
