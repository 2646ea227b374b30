//! A node of the model: the agent's own start, keeper, table and etcd client; no
//! data path.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::lease::table::LeaseTable;
use flannel_core::lease::update::LeaseUpdate;
use flannel_core::mac::MacAddr;
use ipnetwork::Ipv4Network;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::PREFIX;
use crate::daemon::acquire::acquire;
use crate::daemon::keeper::{Keeper, Renewal};
use crate::daemon::start::{Before, wait_for_config};
use crate::files::state::{NodeState, VERSION};
use crate::source::LeaseSource as _;
use crate::source::etcd3::Etcd3;
use crate::source::etcd3::memory::Memory;
use crate::source::options::EtcdOptions;
use crate::status::Shared;

/// What a node takes to be so.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum View {
    /// It does not run.
    Down,
    /// It runs, and has no lease yet.
    Starting,
    /// It could not start.
    Failed(String),
    /// It uses this subnet, and publishes this.
    Holds { subnet: Ipv4Network, attrs: LeaseAttrs },
    /// Another node has its subnet.
    Lost { subnet: Ipv4Network },
}

/// A node, which can crash and keeps its state file then.
pub(super) struct Node {
    at: usize,
    state_file: Arc<Mutex<Option<NodeState>>>,
    run: Option<Run>,
}

struct Run {
    alive: Arc<AtomicBool>,
    view: Arc<Mutex<View>>,
    task: JoinHandle<()>,
}

impl Drop for Run {
    fn drop(&mut self) {
        // Whatever of it still runs reaches nobody any more.
        self.alive.store(false, Ordering::Relaxed);
        self.task.abort();
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// PublicIP of the node.
pub(super) fn public_ip(at: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, u8::try_from(at).unwrap_or(u8::MAX) + 1)
}

impl Node {
    pub(super) fn new(at: usize) -> Self {
        Self { at, state_file: Arc::default(), run: None }
    }

    pub(super) fn view(&self) -> View {
        self.run.as_ref().map_or(View::Down, |run| lock(&run.view).clone())
    }

    /// Starts it, or starts it anew.
    pub(super) fn start(&mut self, store: &Memory) {
        self.crash();
        let alive = Arc::new(AtomicBool::new(true));
        let view = Arc::new(Mutex::new(View::Starting));
        let channels = (0..2).map(|_| store.channel(self.at, Arc::clone(&alive))).collect();
        let options = EtcdOptions { prefix: PREFIX.to_owned(), ..EtcdOptions::default() };
        let source = Etcd3::over(&options, channels).expect("two endpoints");
        let life = live(self.at, source, Arc::clone(&self.state_file), Arc::clone(&view));
        self.run = Some(Run { alive, view, task: tokio::spawn(life) });
    }

    pub(super) fn crash(&mut self) {
        self.run = None;
    }

    /// It is installed anew.
    pub(super) fn wipe(&mut self) {
        self.crash();
        *lock(&self.state_file) = None;
    }

    /// It becomes a copy of another machine, but for the address.
    pub(super) fn copy(&mut self, of: &Self) {
        self.crash();
        let copied = lock(&of.state_file).clone();
        *lock(&self.state_file) = copied;
    }
}

/// What the node's state file has.
fn state_of(at: usize, network: Ipv4Network, subnet: Ipv4Network, vtep_mac: MacAddr) -> NodeState {
    NodeState {
        version: VERSION,
        public_ip: public_ip(at),
        underlay: None,
        subnet,
        vtep_mac,
        device: None,
        vni: Some(1),
        network: Some(network),
        attach: None,
        subnet_file: None,
        pin_dir: None,
        traces: Default::default(),
    }
}

async fn live(
    at: usize,
    source: Etcd3,
    state_file: Arc<Mutex<Option<NodeState>>>,
    view: Arc<Mutex<View>>,
) {
    let source = Arc::new(source);
    let shared = Shared::default();
    let config = wait_for_config(&*source, &shared).await;
    let before = Before::of(lock(&state_file).clone());
    let acquired = acquire(&*source, &shared, &config, public_ip(at), &before).await;
    let (lease, vtep_mac) = match acquired {
        Ok(acquired) => acquired,
        Err(error) => {
            *lock(&view) = View::Failed(error.to_string());
            return;
        }
    };
    let subnet = lease.subnet;
    let mut table = LeaseTable::new(config.network, config.backend);
    table.set_own(Some(subnet), public_ip(at));
    *lock(&state_file) = Some(state_of(at, config.network, subnet, vtep_mac));
    let hour = std::time::Duration::from_secs(3600);
    let mut keeper = Keeper::new(Arc::clone(&source), lease, hour);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut updates = source.watch(stop);
    let mut other_history = false;
    loop {
        *lock(&view) = match keeper.is_lost() {
            true => View::Lost { subnet },
            false => View::Holds { subnet, attrs: keeper.lease().attrs.clone() },
        };
        tokio::select! {
            Some(update) = updates.recv() => {
                other_history |= matches!(update, LeaseUpdate::OtherHistory { .. });
                let listed = matches!(update, LeaseUpdate::Snapshot { .. });
                let own = table.apply(update).own;
                let lost = listed && std::mem::take(&mut other_history);
                if let Some(own) = own {
                    keeper.told(own, lost);
                }
            }
            kept = keeper.next() => {
                if let Renewal::Renewed = kept {
                    table.set_own(Some(keeper.lease().subnet), keeper.lease().attrs.public_ip);
                }
            }
        }
    }
}
