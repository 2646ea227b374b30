//! One lease more: how soon it is in the kernel after a watcher has seen it.

use std::time::{Duration, Instant};

use rand::Rng as _;

use super::Plan;
use super::bed::{Agent, Bed, Used};
use super::sight::Sight;
use super::store::Paper;
use super::table::{Rows, quantile};

/// One that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);
const SETTLED: Duration = Duration::from_secs(3);

pub(super) fn run(plan: &Plan, rows: &mut Rows) {
    let papers: Vec<Paper> = (0..plan.leases).map(Paper::new).collect();
    let mut bed = Bed::new(&papers);
    let node = bed.node();
    let sight = Sight::open(&node.netns);
    let agent = Agent::exec(&node, &bed.etcd);
    agent.ready();
    std::thread::sleep(SETTLED);
    for _ in 0..plan.rounds {
        let (numbers, each) = sample(plan, &bed, &sight, &agent);
        rows.add("new lease: median", "ms", Some(1.0), quantile(&numbers, 0.5));
        rows.add("new lease: p99", "ms", None, quantile(&numbers, 0.99));
        rows.add("new lease, and its end: CPU", "ms", None, each);
    }
    for _ in 0..plan.rounds {
        let renewals = bed.store.renew(papers.clone(), plan.renewals);
        std::thread::sleep(Duration::from_millis(200));
        let (before, done, began) = (agent.used(), renewals.done(), Instant::now());
        std::thread::sleep(Duration::from_secs(1));
        let (cost, done) = (agent.used().cpu - before.cpu, renewals.done() - done);
        rows.add("a renewal without change: CPU", "us", Some(50.0), 1e6 * cost / done as f64);
        let rate = done as f64 / began.elapsed().as_secs_f64();
        rows.add("renewals that etcd took", "1/s", None, rate);
        let (numbers, _) = sample(plan, &bed, &sight, &agent);
        let title = |what: &str| format!("new lease under renewals: {what}");
        rows.add(&title("median"), "ms", None, quantile(&numbers, 0.5));
        rows.add(&title("p99"), "ms", Some(5.0), quantile(&numbers, 0.99));
    }
    agent.stop();
}

/// Milliseconds from a watcher's view to the route, and the CPU time in
/// milliseconds that a lease costs, its removal included.
fn sample(plan: &Plan, bed: &Bed, sight: &Sight, agent: &Agent) -> (Vec<f64>, f64) {
    let before = agent.used();
    let mut numbers = Vec::new();
    for number in 0..plan.samples {
        let paper = Paper::new(plan.leases + number);
        let began = Instant::now();
        bed.store.fill(&[paper]);
        let came = sight.wait(paper.subnet, began, LIMIT);
        let came = came.unwrap_or_else(|| began + LIMIT);
        // The watcher's event may be later than the agent's.
        std::thread::sleep(Duration::from_millis(2));
        let seen =
            bed.store.seen(paper).filter(|seen| *seen >= began).expect("the watcher's event");
        numbers.push(1e3 * came.saturating_duration_since(seen).as_secs_f64());
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(1..40)));
        bed.store.remove(&[paper]);
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(1..40)));
    }
    let Used { cpu, .. } = agent.used();
    (numbers, 1e3 * (cpu - before.cpu) / f64::from(plan.samples))
}
