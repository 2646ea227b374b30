//! Address translation and policy of the node hold for pods' traffic.

use std::net::SocketAddrV4;
use std::thread;
use std::time::{Duration, Instant};

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::lab::OUTSIDE;
use flannel_tests::load::{CONNECTS, REQUESTS, SPACED, STREAM, traffic};
use flannel_tests::pair::{Pair, SERVICE};
use flannel_tests::pod::serve;
use flannel_tests::told::fast_share;

fn window(time: &'static str) -> Options {
    Options { window: Some(time), ..Options::ebpf() }
}

/// What kube-proxy and a strict firewall have in common.
const STRICT: &str = "table inet guard {
    chain forward {
        type filter hook forward priority 10; policy drop;
        ct state invalid counter drop
        ct state established,related accept
        ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 ct state new accept
    }
}";

#[test]
fn a_service_flow_is_translated_on_the_fast_path() {
    let pair = Pair::agents(&window("500ms"));
    pair.serve_translated();
    let before = pair.left.outcomes();
    // Many windows; an answer that is not translated back would stop it.
    let requests = pair.client.traffic(REQUESTS, SERVICE, "--seconds 8 --patience 2");
    assert_eq!(requests.error, None, "{requests:?}");
    assert!(requests.transactions > 1000, "{requests:?}");
    let spaced = pair.client.traffic(SPACED, SERVICE, "--seconds 3");
    assert_eq!(spaced.lost, 0, "{spaced:?}");
    let since = pair.left.outcomes().since(&before);
    for (fast, entered) in [
        (Outcome::FastEncap, Outcome::SeenFromPod),
        (Outcome::FastDecap, Outcome::SeenFromUnderlay),
    ] {
        assert!(since.get(fast) * 10 > since.get(entered) * 9, "{since:?}");
    }
    assert!(since.get(Outcome::ConfirmedTranslated) > 10, "{since:?}");
    // A direct flow keeps working beside it, and so do new connections; in this
    // order, because a source port that a service connection has used is
    // translated in a direct one.
    pair.traffic(REQUESTS, "--seconds 1 --patience 2");
    assert!(pair.left.outcomes().since(&before).fast() > 100);
    let connects = pair.client.traffic(CONNECTS, SERVICE, "--seconds 1");
    assert!(connects.transactions > 50, "{connects:?}");
}

#[test]
fn pods_reach_the_outside_masqueraded() {
    let pair = Pair::agents(&Options { ip_masq: true, ..Options::ebpf() });
    let outside = pair.lab.outside();
    let log = pair.lab.dir().join("outside.log");
    let _server = serve(&outside, &log, &[]);
    // The outside has no route to the overlay: an answer proves masquerading.
    pair.client.ping(OUTSIDE, "-c 3 -i 0.1 -W 2");
    let requests =
        traffic(&pair.client.netns, REQUESTS, SocketAddrV4::new(OUTSIDE, 7000), "--seconds 1");
    assert!(requests.transactions > 100, "{requests:?}");
    // Between pods nothing is masqueraded: the server sees the pod's address.
    pair.server.netns.nft(&format!(
        "table ip seen {{ chain input {{ type filter hook input priority 0;
            ip saddr {} counter accept; tcp dport 7000 counter drop; }}; }}",
        pair.client.address
    ));
    let requests = pair.traffic(REQUESTS, "--seconds 1 --patience 1");
    assert_eq!(requests.error, None, "{requests:?}");
}

#[test]
fn strict_forward_policy_over_many_windows() {
    let pair = Pair::agents(&window("500ms"));
    for node in [&pair.left, &pair.right] {
        node.netns.nft(STRICT);
    }
    let before = pair.left.counted(&pair.right);
    let requests = pair.traffic(REQUESTS, "--seconds 6 --patience 2");
    assert_eq!(requests.error, None, "{requests:?}");
    let share = fast_share(&before, &pair.left.counted(&pair.right));
    assert!(share > 0.99, "{share}");
    let spaced = pair.traffic(SPACED, "--seconds 3");
    assert_eq!(spaced.lost, 0, "{spaced:?}");
    let stream = pair.traffic(STREAM, "--seconds 3");
    assert!(stream.bytes > 50_000_000, "{stream:?}");
    let connects = pair.traffic(CONNECTS, "--seconds 2");
    assert!(connects.transactions > 100, "{connects:?}");
    for node in [&pair.left, &pair.right] {
        let rules = node.netns.sh("nft list table inet guard");
        assert!(rules.contains("ct state invalid counter packets 0 "), "{rules}");
    }
}

#[test]
fn a_refused_flow_is_never_confirmed() {
    let pair = Pair::agents(&Options::ebpf());
    pair.left.netns.nft(&format!(
        "table inet deny {{ chain forward {{ type filter hook forward priority 10;
            ip daddr {} udp dport 7000 drop; }}; }}",
        pair.server.address
    ));
    let before = pair.left.outcomes();
    let spaced = pair.traffic(SPACED, "--seconds 1");
    assert_eq!(spaced.lost, spaced.sent, "{spaced:?}");
    let since = pair.left.outcomes().since(&before);
    assert_eq!((since.fast(), since.get(Outcome::ConfirmedOut)), (0, 0), "{since:?}");
}

#[test]
fn a_drop_rule_stops_running_flows_within_the_window() {
    let pair = Pair::agents(&window("2s"));
    pair.right
        .netns
        .nft("table inet late { chain forward { type filter hook forward priority 10; }; }");
    let target = pair.server.target();
    let start = Instant::now();
    let tcp = pair.client.start_traffic(REQUESTS, target, "--seconds 12 --patience 5");
    let udp = pair.client.start_traffic(SPACED, target, "--seconds 9");
    thread::sleep(Duration::from_secs(3));
    let inserted = start.elapsed();
    pair.right.netns.sh(&format!("nft add rule inet late forward ip daddr {} drop", target.ip()));
    // The window, and half a second for two processes to be scheduled.
    let limit = (inserted + Duration::from_millis(2500)).as_millis();
    for (name, last) in [("tcp", tcp.finish().last_ms), ("udp", udp.finish().last_ms)] {
        assert!(last > 2000, "{name} did not run before, but until {last} ms");
        assert!(u128::from(last) < limit, "{name} ran until {last} ms, rule at {inserted:?}");
    }
}
