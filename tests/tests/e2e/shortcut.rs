//! What the kernel routes goes past its VXLAN device; the node's firewall still
//! decides about the tunnel.

use std::thread;
use std::time::{Duration, Instant};

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::load::{BULK, ECHOES, MESSAGES, REQUESTS, SPACED, assert_whole, traffic};
use flannel_tests::pair::{Kind, Pair, SERVICE};

fn window(time: &'static str) -> Options {
    Options { window: Some(time), ..Options::ebpf() }
}

/// A rule that looks at the TTL of each packet and changes it: more than the fast
/// path repeats.
fn keep_with_the_kernel(pair: &Pair) {
    pair.left.netns.nft(
        "table ip slow { chain forward { type filter hook forward priority 0;
            ip protocol { tcp, udp } ip ttl set 50; }; }",
    );
}

#[test]
fn flows_that_stay_with_the_kernel_bypass_the_device_both_ways() {
    let pair = Pair::agents(&Options::ebpf());
    pair.serve_translated();
    keep_with_the_kernel(&pair);
    let before = pair.left.outcomes();
    let requests = pair.client.traffic(REQUESTS, SERVICE, "--seconds 2 --patience 2");
    let made = requests.transactions;
    assert!(made > 500, "{requests:?}");
    let since = pair.left.outcomes().since(&before);
    assert_eq!(since.fast(), 0, "{since:?}");
    // One packet for each window and generation confirms the tunnel.
    for name in [Outcome::ShortcutEncap, Outcome::ShortcutDecap] {
        assert!(since.get(name) * 10 > made * 9, "{made} requests: {since:?}");
    }
    // Data of all sizes, checksums verified by the receiver.
    for load in [MESSAGES, ECHOES] {
        let result = pair.client.traffic(load, SERVICE, "--from 1 --upto 1450");
        assert_whole(&result);
    }
    let bulk = pair.client.traffic(BULK, SERVICE, "--megabytes 64");
    assert_eq!(bulk.corrupt, 0, "{bulk:?}");
}

#[test]
fn a_plain_node_takes_and_sends_as_ever() {
    let pair = Pair::new(&Kind::Agent(Options::ebpf()), &Kind::Plain);
    pair.serve_translated();
    keep_with_the_kernel(&pair);
    let spaced = pair.client.traffic(SPACED, SERVICE, "--seconds 2");
    assert_eq!(spaced.lost, 0, "{spaced:?}");
    let outcomes = pair.left.outcomes();
    assert!(outcomes.get(Outcome::ShortcutEncap) > 1500, "{outcomes:?}");
    assert!(outcomes.get(Outcome::ShortcutDecap) > 1500, "{outcomes:?}");
}

#[test]
fn the_nodes_firewall_decides_about_the_tunnel() {
    let pair = Pair::agents(&window("2s"));
    pair.serve_translated();
    pair.right.netns.nft("table ip wall { chain input { type filter hook input priority 0; }; }");
    let start = Instant::now();
    let running = pair.client.start_traffic(SPACED, SERVICE, "--seconds 8");
    thread::sleep(Duration::from_secs(3));
    let inserted = start.elapsed();
    pair.right.netns.sh(&format!(
        "nft add rule ip wall input ip saddr {} udp dport 8472 counter drop",
        pair.left.address
    ));
    // The window, and half a second for two processes to be scheduled.
    let limit = (inserted + Duration::from_millis(2500)).as_millis();
    let result = running.finish();
    let last = u128::from(result.last_ms);
    assert!(last > 2000 && last < limit, "until {last} ms, rule at {inserted:?}: {result:?}");
    let refused = pair.client.traffic(SPACED, SERVICE, "--seconds 1");
    assert_eq!(refused.lost, refused.sent, "{refused:?}");
}

#[test]
fn a_node_speaks_to_the_pods_of_others() {
    let pair = Pair::agents(&Options::ebpf());
    let target = pair.server.target();
    let node = &pair.left.netns;
    let before = pair.left.outcomes();
    let requests = traffic(node, REQUESTS, target, "--seconds 1 --patience 2");
    assert!(requests.transactions > 200, "{requests:?}");
    for load in [MESSAGES, ECHOES] {
        let result = traffic(node, load, target, "--from 1 --upto 1450");
        assert_whole(&result);
    }
    let bulk = traffic(node, BULK, target, "--megabytes 32");
    assert_eq!(bulk.corrupt, 0, "{bulk:?}");
    let since = pair.left.outcomes().since(&before);
    assert!(since.get(Outcome::ShortcutEncap) > 200, "{since:?}");
}

#[test]
fn switched_off_the_device_carries_all() {
    let options = Options { extra: vec!["--fast-path=off".into()], ..Options::ebpf() };
    let pair = Pair::agents(&options);
    pair.traffic(REQUESTS, "--seconds 0.5");
    let outcomes = pair.left.outcomes();
    assert_eq!(
        (outcomes.get(Outcome::ShortcutEncap), outcomes.get(Outcome::ShortcutDecap)),
        (0, 0)
    );
}
