//! Many pods at once: when all have their programs, and what else is done
//! meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flannel_tests::agent::Options;
use flannel_tests::netns::Netns;
use flannel_tests::node::Node;
use flannel_tests::wait;

use super::Plan;
use super::bed::{Agent, Bed, options};
use super::sight::Sight;
use super::store::Paper;
use super::table::{Rows, quantile};

const LIMIT: Duration = Duration::from_secs(60);
const SETTLED: Duration = Duration::from_secs(3);

/// Nobody else listens in the node's namespace.
const PORT: u16 = 10_250;

/// As agents attach by themselves, and without grace periods of the kernel.
const WAYS: [(&str, Option<&str>); 2] = [("", None), (", --attach=clsact", Some("clsact"))];

pub(super) fn run(plan: &Plan, rows: &mut Rows) {
    let papers: Vec<Paper> = (0..plan.leases).map(Paper::new).collect();
    let mut bed = Bed::new(&papers);
    for (title, attach) in WAYS {
        let title = format!("{} pods at once{title}", plan.pods);
        let node = bed.node();
        let port = format!("--healthz-port={PORT}");
        let options = Options { attach, extra: vec![port], ..options() };
        let agent = Agent::exec_with(&node, &bed.etcd, &options);
        agent.ready();
        node.bridge();
        for _ in 0..plan.rounds.min(3) {
            std::thread::sleep(SETTLED);
            one_round(plan, &bed, &node, &title, rows);
        }
        agent.stop();
    }
}

fn one_round(plan: &Plan, bed: &Bed, node: &Node, title: &str, rows: &mut Rows) {
    let pods = Netns::new(&format!("{}-pods", node.netns.name()));
    let sight = Sight::open(&node.netns);
    let before = hooks(node);
    let done = AtomicBool::new(false);
    let began = Instant::now();
    let (leases, repairs) = std::thread::scope(|scope| {
        let others = scope.spawn(|| meanwhile(plan, bed, node, &sight, &done));
        make(plan, node, &pods);
        let made = began.elapsed();
        // One program on each side of each veth.
        let all = before + 2 * plan.pods as usize;
        wait::holds("hooks of all pods", LIMIT, || hooks(node) >= all);
        let hooked = began.elapsed();
        done.store(true, Ordering::Relaxed);
        rows.add(&format!("{title}: made by ip"), "s", None, made.as_secs_f64());
        let after = hooked.saturating_sub(made).as_secs_f64();
        rows.add(&format!("{title}: the last hook after that"), "s", Some(1.0), after);
        others.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    rows.add(&format!("{title}: the slowest lease"), "ms", Some(50.0), quantile(&leases, 1.0));
    rows.add(&format!("{title}: the slowest repair"), "ms", Some(50.0), quantile(&repairs, 1.0));
    let gone = (0..plan.pods).map(|number| format!("link del pod{number}"));
    node.netns.ip_batch(&gone.collect::<Vec<_>>());
    wait::holds("the hooks to go", LIMIT, || hooks(node) <= before);
}

fn make(plan: &Plan, node: &Node, pods: &Netns) {
    let made = (0..plan.pods).flat_map(|number| {
        [
            format!("link add pod{number} type veth peer name pod{number} netns {}", pods.name()),
            format!("link set pod{number} master cni0 up"),
        ]
    });
    node.netns.ip_batch(&made.collect::<Vec<_>>());
}

/// Hooks that programs are attached to, as the agent's metrics tell.
fn hooks(node: &Node) -> usize {
    let (_, text) = node.get(PORT, "/metrics").expect("an answer");
    let of_hooks = text.lines().filter(|line| line.starts_with("flannel_hooks_attached{"));
    let value = |line: &str| line.rsplit_once(' ')?.1.parse::<usize>().ok();
    of_hooks.map(|line| value(line).expect("a number of hooks")).sum()
}

/// New leases and routes that somebody deletes, until all is done: milliseconds
/// until each was there.
fn meanwhile(
    plan: &Plan,
    bed: &Bed,
    node: &Node,
    sight: &Sight,
    done: &AtomicBool,
) -> (Vec<f64>, Vec<f64>) {
    let (mut leases, mut repairs) = (Vec::new(), Vec::new());
    let mut number = plan.leases;
    while !done.load(Ordering::Relaxed) {
        number += 1;
        let paper = Paper::new(number);
        let began = Instant::now();
        bed.store.fill(&[paper]);
        let came = sight.wait(paper.subnet, began, LIMIT).expect("the route of a new lease");
        std::thread::sleep(Duration::from_millis(5));
        let seen = bed.store.seen(paper).expect("the watcher's event");
        leases.push(1e3 * came.saturating_duration_since(seen).as_secs_f64());
        let taken = Paper::new(number % plan.leases).subnet;
        let began = Instant::now();
        node.netns.ip(&format!("route del {taken}"));
        let came = sight.wait(taken, began, LIMIT).expect("the route that was deleted");
        let went = sight.of(taken).went.expect("the event of the deletion");
        repairs.push(1e3 * came.saturating_duration_since(went).as_secs_f64());
    }
    let new: Vec<Paper> = (plan.leases + 1..=number).map(Paper::new).collect();
    bed.store.remove(&new);
    (leases, repairs)
}
