//! The lease protocol as a whole: nodes of a model run the agent's own start,
//! keeper and etcd client against an etcd in memory, which loses answers, goes
//! away, compacts, and becomes another one.
//!
//! Time is paused, so that days take moments. The agent rolls dice of its own
//! (which subnet, when to renew): a seed of proptest repeats the steps, not those.
//! What these tests have to find was tried by breaking the protocol; see
//! `docs/design/tests.md`.

mod node;

use std::time::Duration;

use etcd_client::proto::PbKeyValue;
use flannel_core::lease::attrs::LeaseAttrs;
use ipnetwork::Ipv4Network;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use tokio::time::{Instant, sleep};

use self::node::{Node, View, public_ip};
use crate::source::etcd3::memory::{Change, Data, Fault, Memory, OPERATOR};

const PREFIX: &str = "/coreos.com/network";
const SUBNETS: &str = "/coreos.com/network/subnets/";
const NODES: usize = 4;
/// Room for hardly more nodes than there are: they run into each other.
const CONFIG: &str = r#"{"Network":"10.5.0.0/24","SubnetLen":28,"SubnetMin":"10.5.0.16",
    "SubnetMax":"10.5.0.80","Backend":{"Type":"vxlan"}}"#;
/// Within so long, while nothing fails, every node knows how it stands.
const LEARNS: Duration = Duration::from_secs(180);
/// Longest pause between two looks at everything.
const LOOK: Duration = Duration::from_secs(300);

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// A node starts, or starts anew.
    Start(usize),
    Crash(usize),
    /// A node is installed anew, and forgets all.
    Wipe(usize),
    /// After a quiet time a node becomes a copy of another one, and starts.
    Copy(usize, usize),
    /// So many seconds pass.
    Wait(u64),
    /// The next requests of all nodes meet these.
    Faults(Vec<Fault>),
    /// The store is away for so many seconds.
    Away(u64),
    /// A node does not reach the store until it is told so.
    Cut(usize, bool),
    /// A node is cut off and its lease is deleted; another one starts, and the first
    /// one is back.
    Seize(usize, usize),
    /// Watches break; and a compaction outruns them as they are begun anew.
    Break {
        compacted: bool,
    },
    /// An operator deletes a node's leases.
    Delete(usize),
    /// The store is empty but for the config.
    Empty,
    /// What the store holds is put by.
    Backup,
    /// The store is as it was at the last backup.
    Restore,
    /// For so many seconds another cluster answers, and has no config.
    Other(u64),
    /// An operator replaces the cluster, and starts the agents anew later.
    Replace,
}

/// What a few requests in a row meet. Only some runs have late ones.
fn faults() -> impl Strategy<Value = Vec<Fault>> {
    let fault = prop_oneof![
        3 => Just(Fault::None),
        2 => Just(Fault::Lost),
        3 => Just(Fault::AnswerLost),
        1 => Just(Fault::Silence),
        2 => Just(Fault::Twice),
    ];
    let late = (1..20_000_u64).prop_map(Fault::Late);
    prop_oneof![
        5 => proptest::collection::vec(fault.clone(), 1..12),
        // One call is tried again a few times.
        4 => (0..4_usize, 3..9_usize).prop_map(|(well, unheard)| {
            [vec![Fault::None; well], vec![Fault::AnswerLost; unheard]].concat()
        }),
        1 => proptest::collection::vec(prop_oneof![fault, late], 1..12),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    prop_oneof![
        8 => node().prop_map(Step::Start),
        4 => node().prop_map(Step::Crash),
        1 => node().prop_map(Step::Wipe),
        2 => (node(), node()).prop_map(|(to, from)| Step::Copy(to, from)),
        5 => (0..10_u64).prop_map(Step::Wait),
        4 => (60..7200_u64).prop_map(Step::Wait),
        3 => (20..30_u64).prop_map(|hours| Step::Wait(hours * 3600)),
        8 => faults().prop_map(Step::Faults),
        2 => (1..200_u64).prop_map(Step::Away),
        3 => (node(), any::<bool>()).prop_map(|(at, cut)| Step::Cut(at, cut)),
        3 => (node(), node()).prop_map(|(of, by)| Step::Seize(of, by)),
        3 => any::<bool>().prop_map(|compacted| Step::Break { compacted }),
        2 => node().prop_map(Step::Delete),
        1 => Just(Step::Empty),
        1 => Just(Step::Backup),
        1 => Just(Step::Restore),
        1 => (1..100_u64).prop_map(Step::Other),
        1 => Just(Step::Replace),
    ]
}

/// Nodes, store, and what may be said of them.
struct World {
    store: Memory,
    nodes: Vec<Node>,
    /// What they took to be so at the last look.
    views: Vec<View>,
    backup: Option<Data>,
    /// Since when requests meet nothing.
    calm_since: Option<Instant>,
    /// When the store last lost leases that nodes rely on.
    shaken: Option<Instant>,
    /// Some requests come late: then a node may revoke what it attaches later.
    late: bool,
    /// Nodes that do not reach the store.
    cut: [bool; NODES],
    /// Agents have to be started anew, as they say.
    replaced: bool,
    clusters: u64,
}

/// What is wrong.
type Wrong = String;

impl World {
    fn new() -> Self {
        let store = Memory::new(1);
        store.with(|data| data.put(&format!("{PREFIX}/config"), CONFIG));
        Self {
            store,
            nodes: (0..NODES).map(Node::new).collect(),
            views: vec![View::Down; NODES],
            backup: None,
            calm_since: Some(Instant::now()),
            shaken: None,
            late: false,
            cut: [false; NODES],
            replaced: false,
            clusters: 1,
        }
    }

    async fn take(&mut self, step: Step) -> Result<(), Wrong> {
        match step {
            Step::Start(at) => self.nodes[at].start(&self.store),
            Step::Crash(at) => self.nodes[at].crash(),
            Step::Wipe(at) => self.nodes[at].wipe(),
            Step::Copy(to, from) if to != from => self.copy(to, from).await?,
            Step::Copy(..) => {}
            Step::Wait(seconds) => self.wait(Duration::from_secs(seconds)).await?,
            Step::Faults(faults) => {
                self.late |= faults.iter().any(|fault| matches!(fault, Fault::Late(_)));
                self.store.fail(faults);
                self.calm_since = None;
            }
            Step::Away(seconds) => {
                self.store.go_away(true);
                self.wait(Duration::from_secs(seconds)).await?;
                self.store.go_away(false);
            }
            Step::Cut(at, cut) => self.cut_off(at, cut),
            Step::Seize(of, by) if of != by => self.seize(of, by).await?,
            Step::Seize(..) => {}
            Step::Break { compacted } => {
                self.store.outrun(if compacted { NODES } else { 0 });
            }
            Step::Delete(at) => self.delete(at),
            Step::Empty => self.become_another(|data| {
                data.empty();
                data.put(&format!("{PREFIX}/config"), CONFIG);
            }),
            Step::Backup => self.backup = Some(self.store.with(|data| data.clone())),
            Step::Restore => {
                if let Some(backup) = self.backup.clone() {
                    self.become_another(|data| data.restore(&backup));
                }
            }
            Step::Other(seconds) => self.meet_another(Duration::from_secs(seconds)).await?,
            Step::Replace => {
                self.clusters += 1;
                let clusters = self.clusters;
                self.become_another(|data| {
                    *data = data.successor(clusters);
                    data.put(&format!("{PREFIX}/config"), CONFIG);
                });
                self.replaced = true;
                self.backup = None;
            }
        }
        self.look()
    }

    async fn copy(&mut self, to: usize, from: usize) -> Result<(), Wrong> {
        self.calm();
        self.wait(2 * LEARNS).await?;
        let mut copy = Node::new(to);
        copy.copy(&self.nodes[from]);
        self.nodes[to] = copy;
        self.nodes[to].start(&self.store);
        self.wait(Duration::from_secs(5)).await
    }

    async fn seize(&mut self, of: usize, by: usize) -> Result<(), Wrong> {
        self.cut_off(of, true);
        self.delete(of);
        self.nodes[by].start(&self.store);
        self.wait(Duration::from_secs(3)).await?;
        self.cut_off(of, false);
        Ok(())
    }

    fn calm(&mut self) {
        self.store.calm();
        self.cut = [false; NODES];
    }

    fn cut_off(&mut self, at: usize, cut: bool) {
        self.store.cut_off(at, cut);
        self.cut[at] = cut;
        self.calm_since = None;
    }

    fn delete(&mut self, at: usize) {
        let deleted = self.store.with(|data| {
            let keys = data.below(SUBNETS);
            let of = keys.iter().filter(|kv| owner(kv) == Some(at));
            of.map(|kv| data.delete(&kv.key)).count()
        });
        if deleted > 0 {
            self.shaken = Some(Instant::now());
        }
    }

    fn become_another(&mut self, how: impl FnOnce(&mut Data)) {
        self.store.with(how);
        self.store.break_watches();
        self.shaken = Some(Instant::now());
    }

    /// As by a proxy that leads elsewhere for a while.
    async fn meet_another(&mut self, time: Duration) -> Result<(), Wrong> {
        let ours = self.store.with(|data| data.clone());
        self.become_another(|data| *data = data.successor(99));
        self.wait(time).await?;
        self.become_another(|data| *data = ours.with_changes_of(data));
        Ok(())
    }

    async fn wait(&mut self, time: Duration) -> Result<(), Wrong> {
        // Who is refused or cut off tries again every few seconds, for days if need be.
        let in_vain = self.replaced || self.cut.iter().any(|cut| *cut);
        let time = if in_vain { time.min(LEARNS) } else { time };
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // Closely at first, when most happens.
            let passed = time.saturating_sub(left);
            sleep(left.min(LOOK).min(passed / 2 + Duration::from_millis(50))).await;
            self.look()?;
            if left.is_zero() {
                return Ok(());
            }
        }
    }

    /// Looks at all that was written, and at what nodes believe now.
    fn look(&mut self) -> Result<(), Wrong> {
        let now = Instant::now();
        if !self.store.is_calm() {
            self.calm_since = None;
        } else {
            self.calm_since.get_or_insert(now);
        }
        for change in self.store.with(Data::changes) {
            self.judge(&change)?;
        }
        self.views = self.nodes.iter().map(Node::view).collect();
        self.look_for_pairs()
    }

    /// Whether nothing failed for so long.
    fn is_calm_for(&self, time: Duration) -> bool {
        let since = |at: Instant| at.elapsed() >= time;
        self.calm_since.is_some_and(since) && self.shaken.is_none_or(since) && !self.replaced
    }

    /// Nobody's lease is overwritten or deleted by another node, unless its holder
    /// was asked before and did not answer: for want of life, or of a connection.
    fn judge(&mut self, change: &Change) -> Result<(), Wrong> {
        let Some(before) = &change.before else { return Ok(()) };
        let Some(whose) = owner(before) else { return Ok(()) };
        let runs = matches!(self.nodes[whose].view(), View::Holds { .. } | View::Lost { .. });
        // It may know better by now.
        let held =
            matches!(&self.views[whose], View::Holds { subnet, .. } if names(before, *subnet));
        let holds = runs && held;
        let Some(who) = change.who.filter(|who| *who != OPERATOR) else {
            if change.who.is_none() && holds && self.is_calm_for(LEARNS) {
                return Err(format!("the lease of node {whose} ran out, which could renew it"));
            }
            self.shaken = Some(Instant::now());
            return Ok(());
        };
        let only_asks = change.after.as_ref().is_some_and(|after| {
            attrs(after).map(|after| after.unasked())
                == attrs(before).map(|before| before.unasked())
        });
        if who == whose && change.after.is_none() && !self.late {
            return Err(format!("node {who} deleted its own lease: {change:?}"));
        }
        if who == whose || only_asks {
            return Ok(());
        }
        let asked = attrs(before).is_some_and(|before| before.asked_by.is_some());
        if !asked || holds && self.is_calm_for(LEARNS) {
            let text = |kv: &PbKeyValue| {
                let key = String::from_utf8_lossy(&kv.key);
                format!("{key} {} at {}", String::from_utf8_lossy(&kv.value), kv.mod_revision)
            };
            return Err(format!(
                "node {who} wrote over the lease of node {whose}, {}: {:?}",
                text(before),
                change.after.as_ref().map(text)
            ));
        }
        self.shaken = Some(Instant::now());
        Ok(())
    }

    /// No two nodes use one subnet, unless the store lost a lease just now.
    fn look_for_pairs(&self) -> Result<(), Wrong> {
        let excused = self.replaced
            || self
                .shaken
                .is_some_and(|shaken| shaken.elapsed() < LEARNS || !self.is_calm_for(LEARNS));
        let mut holders: Vec<(Ipv4Network, usize)> = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let View::Holds { subnet, .. } = node.view() else { continue };
            if let Some((_, other)) = holders.iter().find(|(held, _)| *held == subnet)
                && !excused
            {
                return Err(format!("nodes {other} and {at} both use {subnet}"));
            }
            holders.push((subnet, at));
        }
        Ok(())
    }

    /// All faults end; then whoever runs knows how it stands.
    async fn settle(&mut self) -> Result<(), Wrong> {
        self.calm();
        if std::mem::take(&mut self.replaced) {
            for node in &mut self.nodes {
                if node.view() != View::Down {
                    node.start(&self.store);
                }
            }
        }
        self.wait(LEARNS).await?;
        // As systemd does.
        for node in &mut self.nodes {
            if matches!(node.view(), View::Failed(_)) {
                node.start(&self.store);
            }
        }
        self.wait(LEARNS).await?;
        let stands = self.store.with(|data| data.below(SUBNETS));
        for (at, node) in self.nodes.iter().enumerate() {
            let view = node.view();
            let of = |subnet: &Ipv4Network| stands.iter().find(|kv| names(kv, *subnet));
            let well = match &view {
                View::Down => true,
                View::Holds { subnet, attrs: ours } => {
                    of(subnet).and_then(attrs).as_ref() == Some(ours)
                }
                View::Lost { subnet } => {
                    of(subnet).and_then(owner).is_some_and(|other| other != at)
                }
                View::Starting => false,
                View::Failed(why) => why.contains("out of subnets") && stands.len() >= 5,
            };
            if !well {
                return Err(format!(
                    "node {at} takes this to be so: {view:?}; there is {stands:?}"
                ));
            }
        }
        Ok(())
    }
}

fn attrs(kv: &PbKeyValue) -> Option<LeaseAttrs> {
    serde_json::from_slice(&kv.value).ok()
}

/// The node whose lease this is.
fn owner(kv: &PbKeyValue) -> Option<usize> {
    let public_ip_there = attrs(kv)?.public_ip;
    (0..NODES).find(|at| public_ip(*at) == public_ip_there)
}

fn names(kv: &PbKeyValue, subnet: Ipv4Network) -> bool {
    let key = format!("{SUBNETS}{}-{}", subnet.network(), subnet.prefix());
    kv.key == key.as_bytes()
}

/// Runs the steps in a world of their own.
fn run(steps: Vec<Step>) -> Result<(), Wrong> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut world = World::new();
        for step in steps {
            world.take(step).await?;
        }
        world.settle().await
    })
}

#[test]
fn leases_hold_whatever_happens() {
    let config = Config { max_shrink_time: 10_000, failure_persistence: None, ..Config::default() };
    let steps = proptest::collection::vec(step(), 1..30);
    TestRunner::new(config)
        .run(&steps, |steps| run(steps).map_err(TestCaseError::fail))
        .unwrap_or_else(|error| match error {
            TestError::Fail(why, steps) => panic!("{why}, by {steps:?}"),
            TestError::Abort(why) => panic!("{why}"),
        });
}
