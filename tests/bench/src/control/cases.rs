//! Starts: on an empty node, again, and with many leases.

use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::hooks;
use flannel_tests::node::Node;

use super::Plan;
use super::bed::{Agent, Bed, options, programmed};
use super::store::Paper;
use super::table::Rows;

/// After this long an agent has nothing left to do.
const SETTLED: Duration = Duration::from_secs(3);

/// What packaging/flannel-agent.service leaves it.
const UNIT: [&str; 3] = ["setpriv", "--bounding-set", "-all,+net_admin,+net_raw,+bpf,+perfmon"];

/// First start, restart, and an agent that idles.
pub(super) fn start(plan: &Plan, rows: &mut Rows) {
    let mut bed = Bed::new(&[Paper::new(0)]);
    for round in 0..plan.rounds {
        let node = rested(&mut bed);
        let agent = Agent::exec(&node, &bed.etcd);
        rows.add("first start to READY", "ms", Some(50.0), 1e3 * agent.ready());
        assert_eq!(programmed(&node), [1; 4], "routes, neighbours, FDB and map entries");
        let hooks = ["flannel.1", "eth0"].map(|name| hooks::on(&node.netns, name).len());
        assert_eq!(hooks, [2, 1], "programs at flannel.1 and eth0");
        std::thread::sleep(SETTLED);
        agent.stop();
        let agent = Agent::exec(&node, &bed.etcd);
        rows.add("restart to READY", "ms", Some(30.0), 1e3 * agent.ready());
        if round == 0 {
            idle(plan, &node, &agent, rows);
        }
        agent.stop();
        let unit = Options { wrapper: UNIT.map(str::to_owned).to_vec(), ..options() };
        let agent = Agent::exec_with(&node, &bed.etcd, &unit);
        let title = "restart to READY with the unit's capabilities";
        rows.add(title, "ms", Some(30.0), 1e3 * agent.ready());
        agent.stop();
        bed.store.forget(node.subnet());
        let node = rested(&mut bed);
        let strict = Options { datapath: Some("ebpf"), ..options() };
        let agent = Agent::exec_with(&node, &bed.etcd, &strict);
        rows.add("first start to READY with all programs", "ms", None, 1e3 * agent.ready());
        agent.stop();
        bed.store.forget(node.subnet());
    }
}

/// A node that was made a while ago: the kernel has done what follows that.
fn rested(bed: &mut Bed) -> Node {
    let node = bed.node();
    std::thread::sleep(SETTLED);
    node
}

fn idle(plan: &Plan, node: &Node, agent: &Agent, rows: &mut Rows) {
    std::thread::sleep(SETTLED);
    let (before, lines) = (agent.used(), node.agent_log().lines().count());
    std::thread::sleep(Duration::from_secs_f64(plan.idle));
    let after = agent.used();
    let lines = node.agent_log().lines().count() - lines;
    rows.add("idle, one peer: RSS", "MB", Some(8.0), after.memory);
    let share = 1e3 * (after.cpu - before.cpu) / plan.idle;
    rows.add("idle, one peer: CPU per second", "ms", Some(0.5), share);
    rows.add("idle, one peer: log lines", "1", Some(0.0), lines as f64);
}

/// A start in a large cluster.
pub(super) fn many(plan: &Plan, rows: &mut Rows) {
    crowded(plan.leases, plan.rounds, [0.35, 0.25, 16.0], rows);
}

/// A start in the largest cluster.
pub(super) fn most(plan: &Plan, rows: &mut Rows) {
    if plan.most > 0 {
        crowded(plan.most, plan.rounds.min(3), [3.5, 2.5, 90.0], rows);
    }
}

fn crowded(leases: u32, rounds: usize, [time, cpu, memory]: [f64; 3], rows: &mut Rows) {
    let papers: Vec<Paper> = (0..leases).map(Paper::new).collect();
    let mut bed = Bed::new(&papers);
    for _ in 0..rounds {
        let node = bed.node();
        let agent = Agent::exec(&node, &bed.etcd);
        let title = |what: &str| format!("{leases} leases: {what}");
        rows.add(&title("exec to READY"), "s", Some(time), agent.ready());
        let used = agent.used();
        // READY comes with the last of them; what is wrong is put right later, and
        // must not be counted as done.
        let done = programmed(&node);
        assert_eq!(done, [leases as usize; 4], "routes, neighbours, FDB and map entries");
        rows.add(&title("CPU until READY"), "s", Some(cpu), used.cpu);
        rows.add(&title("CPU of programs that it ran"), "s", None, used.others);
        std::thread::sleep(SETTLED);
        let settled = agent.used();
        rows.add(&title("CPU after it, until it rests"), "s", None, settled.cpu - used.cpu);
        rows.add(&title("RSS high water"), "MB", Some(memory), settled.peak);
        agent.stop();
        bed.store.forget(node.subnet());
    }
}
