//! An etcd in memory: revisions, transactions, leases with an end, watches with
//! compaction, and answers that get lost. For tests with paused time.

mod data;
mod rpc;

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::Channel;
use tokio::sync::watch;

pub(crate) use self::data::{Change, Data, OPERATOR};

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is answered.
    None,
    /// It does not arrive.
    Lost,
    /// It is done, and the answer gets lost: the connection breaks.
    AnswerLost,
    /// It is done, and nothing is heard ever after.
    Silence,
    /// It arrives twice, and the second answer is the one that is heard.
    Twice,
    /// The connection breaks, and it arrives so many milliseconds later.
    Late(u64),
}

/// A store, which may become another one. Clones share it.
#[derive(Clone)]
pub(crate) struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Counts changes, and what ends watches.
    told: watch::Sender<Told>,
}

#[derive(Clone, Copy, Default)]
struct Told {
    changes: u64,
    /// Watches that began before this many breaks have ended.
    breaks: u64,
}

struct State {
    data: Data,
    faults: VecDeque<Fault>,
    away: bool,
    /// Nodes that do not reach it.
    cut: BTreeSet<usize>,
    /// So many watches begin after a compaction that outran them.
    outrun: usize,
}

impl Memory {
    /// An empty store of this cluster.
    pub(crate) fn new(cluster: u64) -> Self {
        let data = Data::new(cluster);
        let state =
            State { data, faults: VecDeque::new(), away: false, cut: BTreeSet::new(), outrun: 0 };
        let told = watch::Sender::new(Told::default());
        Self { shared: Arc::new(Shared { state: Mutex::new(state), told }) }
    }

    /// A connection of the node `who`, as long as it is `alive`.
    pub(crate) fn channel(&self, who: usize, alive: Arc<AtomicBool>) -> Channel {
        let store = self.clone();
        Channel::Custom(tower::util::BoxCloneSyncService::new(tower::service_fn(move |request| {
            rpc::serve(store.clone(), who, Arc::clone(&alive), request)
        })))
    }

    /// The data, as of now. Watches are told of what is written.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Data) -> T) -> T {
        let mut state = self.state();
        let before = state.data.revision;
        state.data.expire();
        let result = look(&mut state.data);
        let changed = state.data.revision != before;
        drop(state);
        if changed {
            self.shared.told.send_modify(|told| told.changes += 1);
        }
        result
    }

    /// The next requests meet these.
    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// No further request meets anything.
    pub(crate) fn calm(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.away = false;
        state.cut.clear();
    }

    /// Whether requests are still to meet something.
    pub(crate) fn is_calm(&self) -> bool {
        let state = self.state();
        state.faults.is_empty() && !state.away && state.cut.is_empty()
    }

    /// Nobody reaches the store until it is called again.
    pub(crate) fn go_away(&self, away: bool) {
        self.state().away = away;
        self.break_watches();
    }

    /// This node does not reach the store until it is called again.
    pub(crate) fn cut_off(&self, who: usize, cut: bool) {
        let mut state = self.state();
        if cut {
            state.cut.insert(who);
        } else {
            state.cut.remove(&who);
        }
        drop(state);
        self.break_watches();
    }

    /// All watches end, and of the next ones so many are outrun by a compaction.
    pub(crate) fn outrun(&self, watches: usize) {
        self.state().outrun = watches;
        self.break_watches();
    }

    /// All watches end.
    pub(crate) fn break_watches(&self) {
        self.shared.told.send_modify(|told| told.breaks += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watch begins.
    fn watched(&self) {
        let mut state = self.state();
        if state.outrun > 0 {
            state.outrun -= 1;
            state.data.put("/elsewhere", "");
            state.data.compact();
        }
    }

    /// What becomes of the next request.
    fn fate(&self, who: usize, alive: &AtomicBool) -> Fault {
        let mut state = self.state();
        if state.away || state.cut.contains(&who) || !alive.load(Ordering::Relaxed) {
            return Fault::Lost;
        }
        state.faults.pop_front().unwrap_or(Fault::None)
    }
}

/// How long a request is on its way.
const WAY: Duration = Duration::from_millis(1);
