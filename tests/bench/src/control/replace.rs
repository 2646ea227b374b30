//! All leases but one become others: when that is done, and what a flow between
//! nodes that stay loses.

use std::time::{Duration, Instant};

use flannel_tests::load::SPACED;
use flannel_tests::wait;

use super::Plan;
use super::bed::{Agent, Bed};
use super::sight::Sight;
use super::store::Paper;
use super::table::Rows;

/// All leases are replaced within this time.
const WITHIN: Duration = Duration::from_secs(10);
/// Leases that are replaced together.
const STEP: usize = 50;
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(plan: &Plan, rows: &mut Rows) {
    let papers: Vec<Paper> = (0..plan.leases).map(Paper::new).collect();
    let mut bed = Bed::new(&papers);
    let (left, right) = (bed.node(), bed.node());
    let agents = [&left, &right].map(|node| Agent::exec(node, &bed.etcd));
    agents.iter().for_each(|agent| {
        agent.ready();
    });
    for node in [&left, &right] {
        let other = if node.address == left.address { &right } else { &left };
        node.wait_routes(&[other]);
    }
    let (client, mut server) = (left.pod(2), right.pod(2));
    let target = server.serve();
    client.ping(server.address, "-c 3 -i 0.2 -W 2");
    let sight = Sight::open(&left.netns);
    let seconds = WITHIN.as_secs() + 5;
    let flow = client.start_traffic(SPACED, target, &format!("--seconds {seconds}"));
    std::thread::sleep(Duration::from_secs(1));
    let next: Vec<Paper> =
        papers.iter().map(|paper| Paper::new(paper.node + plan.leases)).collect();
    let before = agents[0].used();
    let began = Instant::now();
    let steps = papers.chunks(STEP).zip(next.chunks(STEP));
    let pause = WITHIN / u32::try_from(papers.len().div_ceil(STEP)).expect("few steps");
    for (count, (old, new)) in (1_u32..).zip(steps) {
        bed.store.remove(old);
        bed.store.fill(new);
        std::thread::sleep((began + pause * count).saturating_duration_since(Instant::now()));
    }
    let written = Instant::now();
    let (first, last) = (papers[papers.len() - 1].subnet, next[next.len() - 1].subnet);
    let came = sight.wait(last, began, LIMIT).expect("the last new route");
    wait::holds("the last old route to go", LIMIT, || sight.of(first).went.is_some());
    let went = sight.of(first).went.expect("it has gone");
    let done = came.max(went).saturating_duration_since(written).as_secs_f64();
    let title = |what: &str| format!("{} leases replaced within 10 s: {what}", plan.leases);
    rows.add(&title("done after the last"), "ms", Some(1000.0), 1e3 * done);
    rows.add(&title("CPU"), "s", None, agents[0].used().cpu - before.cpu);
    let lost = flow.finish().lost as f64;
    rows.add(&title("packets lost of 15,000"), "1", Some(0.0), lost);
    for agent in agents {
        agent.stop();
    }
}
