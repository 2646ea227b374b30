//! What the flow table and the counters promise.

use flannel_core::health::Subject;
use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::hooks;
use flannel_tests::load::{CONNECTS, REQUESTS, SCATTER};
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::told::Outcomes;
use flannel_tests::wait;
use std::time::Duration;

/// Packets that the entry hooks have seen, and the sum of what they did.
fn balance(outcomes: &Outcomes) -> (u64, u64) {
    let ended = Outcome::ALL.iter().filter(|outcome| outcome.ends_entry());
    (
        outcomes.get(Outcome::SeenFromPod) + outcomes.get(Outcome::SeenFromUnderlay),
        ended.map(|outcome| outcomes.get(*outcome)).sum(),
    )
}

#[test]
fn outcomes_add_up_to_the_packets_seen() {
    let pair = Pair::agents(&Options::ebpf());
    pair.check_integrity(8);
    pair.traffic(CONNECTS, "--seconds 0.5");
    pair.traffic(SCATTER, "--seconds 0.5 --flows 1000");
    pair.client.ping(pair.server.address, "-c 3 -i 0.1 -s 4000 -W 5");
    for node in [&pair.left, &pair.right] {
        let (seen, ended) = wait::until("still counters", Duration::from_secs(10), || {
            let first = node.outcomes();
            std::thread::sleep(Duration::from_millis(50));
            (first == node.outcomes()).then(|| balance(&first))
        })
        .0;
        assert!(seen > 1000);
        assert_eq!(seen, ended, "{:?}", node.outcomes());
    }
}

#[test]
fn a_flood_of_new_flows_leaves_busy_ones_on_the_fast_path() {
    // A window much longer than the test: what is lost of a flow was evicted.
    let options = Options {
        window: Some("20s"),
        extra: vec!["--flow-table-size=8192".into()],
        ..Options::ebpf()
    };
    let pair = Pair::agents(&options);
    pair.traffic(REQUESTS, "--seconds 0.5");
    let other = pair.left.pod(3);
    let before = [&pair.left, &pair.right].map(|node| node.outcomes());
    let target = pair.server.target();
    let flood = other.start_traffic(SCATTER, target, "--seconds 6");
    let busy = pair.traffic(REQUESTS, "--seconds 5 --patience 4");
    let flood = flood.finish();
    assert!(flood.sent > 30_000, "{flood:?}");
    assert_eq!(busy.error, None, "{busy:?}");
    let requests = busy.transactions;
    for (node, before) in [&pair.left, &pair.right].into_iter().zip(&before) {
        let since = node.outcomes().since(before);
        // Four times the table and more went through it.
        assert!(since.get(Outcome::FlowNew) > 4 * 8192, "{since:?}");
        let fast = since.fast();
        assert!(fast * 100 > 2 * requests * 95, "{requests} requests, {fast} fast: {since:?}");
    }
}

#[test]
fn the_size_of_the_table_is_an_option_and_pressure_is_told() {
    let options = Options {
        window: Some("500ms"),
        extra: vec!["--flow-table-size=2048".into()],
        ..Options::ebpf()
    };
    let mut pair = Pair::agents(&options);
    let size = |node: &Node| node.status().datapath.flows.expect("a flow table").size;
    assert_eq!(size(&pair.left), 2048);
    assert_eq!(pair.left.complaint(Subject::FlowTable), None);
    let running = pair.client.start_traffic(SCATTER, pair.server.target(), "--seconds 6");
    wait::holds("pressure in status", Duration::from_secs(6), || {
        let reason = pair.left.complaint(Subject::FlowTable).unwrap_or_default();
        reason.contains("room for 2048") && reason.contains("--flow-table-size")
    });
    running.finish();
    wait::holds("no pressure any more", Duration::from_secs(10), || {
        pair.left.complaint(Subject::FlowTable).is_none()
    });
    // Another size at the next start: nothing is lost, the old table goes.
    pair.nothing_lost(Duration::from_secs(4), |pair| {
        pair.left.stop_agent();
        pair.left.start(&pair.etcd, &Options::ebpf());
    });
    assert_eq!(size(&pair.left), 65_536);
    assert!(pair.left.outcomes().fast() > 100);
}

#[test]
fn connections_end_in_the_flow_table_and_for_conntrack() {
    let pair = Pair::agents(&Options::ebpf());
    for node in [&pair.left, &pair.right] {
        node.netns.nft("table ip seen { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }");
    }
    let connects = pair.traffic(CONNECTS, "--orderly --seconds 1");
    let made = connects.transactions;
    assert!(made > 300, "{connects:?}");
    let port = format!(" dport={} ", pair.server.target().port());
    for node in [&pair.left, &pair.right] {
        assert!(node.outcomes().fast() > made, "{:?}", node.outcomes());
        let known = node.netns.sh("cat /proc/net/nf_conntrack");
        let known: Vec<_> = known.lines().filter(|line| line.contains(&port)).collect();
        assert!(known.len() > 300, "{known:?}");
        // Those of before the first SYN's tunnel was known, or cut off by the end.
        let alive: Vec<_> = known.iter().filter(|line| !line.contains(" TIME_WAIT ")).collect();
        assert!(alive.len() < 5, "of {} entries: {alive:?}", known.len());
        // Answers to FINs that cross come when the flow is gone, and make another.
        let flows = hooks::dump(node.pin_dir(), "fl_flows4").len() as u64;
        assert!(flows < made / 10, "{flows} flows of {made} connections");
    }
}
