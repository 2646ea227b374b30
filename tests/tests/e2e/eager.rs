//! `--fast-path=eager`: connections begin on the fast path, and address
//! translation and policy of the node hold all the same.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use flannel_core::health::Subject;
use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::lab::OUTSIDE;
use flannel_tests::load::{CONNECTS, REQUESTS, STREAM, traffic};
use flannel_tests::pair::Pair;
use flannel_tests::pod::serve;
use flannel_tests::traffic::transactions::Transactions;
use flannel_tests::wait;

fn eager() -> Options {
    Options { extra: vec!["--fast-path=eager".into()], ..Options::ebpf() }
}

/// What kube-proxy does with packets that conntrack does not know.
const INVALID: &str = "table inet guard {
    chain forward {
        type filter hook forward priority 10;
        ct state invalid counter drop
        ct state established,related accept
    }
}";

fn service(pair: &Pair, hook: &str) -> String {
    format!(
        "table ip service {{
            chain prerouting {{
                type nat hook prerouting priority -100;
                {hook} dnat to {}
            }}
        }}",
        pair.server.target()
    )
}

/// The service of [`service`] with an address of its own.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 80);

#[track_caller]
fn connected(result: &Transactions, least: u64) {
    assert!(result.transactions > least, "{result:?}");
}

#[test]
fn connections_after_the_first_bypass_the_kernel_whole() {
    let pair = Pair::agents(&eager());
    for node in [&pair.left, &pair.right] {
        node.netns.nft(INVALID);
    }
    connected(&pair.traffic(CONNECTS, "--seconds 0.5"), 50);
    let before = [&pair.left, &pair.right].map(|node| node.outcomes());
    let connects = pair.traffic(CONNECTS, "--seconds 2");
    connected(&connects, 200);
    let made = connects.transactions;
    for (node, before) in [&pair.left, &pair.right].into_iter().zip(&before) {
        let since = node.outcomes().since(before);
        assert!(since.get(Outcome::OpenedEager) * 10 > made * 9, "{made} connections: {since:?}");
        let rules = node.netns.sh("nft list table inet guard");
        assert!(rules.contains("ct state invalid counter packets 0 "), "{rules}");
    }
}

#[test]
fn long_connections_stay_alive_over_many_windows() {
    let options = Options { window: Some("500ms"), ..eager() };
    let pair = Pair::agents(&options);
    for node in [&pair.left, &pair.right] {
        node.netns.nft(INVALID);
    }
    connected(&pair.traffic(CONNECTS, "--seconds 0.3"), 20);
    let requests = pair.traffic(REQUESTS, "--seconds 5 --patience 2");
    assert_eq!(requests.error, None, "{requests:?}");
    connected(&requests, 1000);
    // A connection that is silent for some windows still ends as it should.
    let target = pair.server.target();
    let script = format!(
        "exec 3<>/dev/tcp/{}/{}; sleep 2; exec 3>&-; sleep 1
         ss -Htn state fin-wait-1 state last-ack state closing",
        target.ip(),
        target.port()
    );
    let idle = pair.client.netns.command("bash").args(["-c", &script]).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&idle.stdout), "");
    assert!(idle.status.success(), "{idle:?}");
    for node in [&pair.left, &pair.right] {
        let rules = node.netns.sh("nft list table inet guard");
        assert!(rules.contains("ct state invalid counter packets 0 "), "{rules}");
    }
}

#[test]
fn streams_end_when_their_data_does() {
    let pair = Pair::agents(&eager());
    for node in [&pair.left, &pair.right] {
        node.netns.nft(INVALID);
    }
    connected(&pair.traffic(CONNECTS, "--seconds 0.5"), 30);
    // Sent as aggregates; the server counts all of it before the client ends.
    let start = std::time::Instant::now();
    for _ in 0..3 {
        let stream = pair.traffic(STREAM, "--seconds 0.5 --connections 4");
        assert!(stream.bytes > 10_000_000, "{stream:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    assert!(pair.right.outcomes().get(Outcome::FastAggregate) > 100);
    for node in [&pair.left, &pair.right] {
        let rules = node.netns.sh("nft list table inet guard");
        assert!(rules.contains("ct state invalid counter packets 0 "), "{rules}");
    }
}

#[test]
fn services_are_translated_beside_direct_connections() {
    let pair = Pair::agents(&eager());
    pair.left.netns.nft(&service(&pair, "ip daddr 10.96.0.1 tcp dport 80"));
    for _ in 0..4 {
        connected(&pair.traffic(CONNECTS, "--seconds 0.4"), 30);
        connected(&pair.client.traffic(CONNECTS, SERVICE, "--seconds 0.4"), 30);
    }
    let requests = pair.client.traffic(REQUESTS, SERVICE, "--seconds 6 --patience 2");
    assert_eq!(requests.error, None, "{requests:?}");
    assert!(pair.left.outcomes().get(Outcome::OpenedEager) > 30);
}

#[test]
fn node_ports_reach_pods_of_other_nodes() {
    let pair = Pair::agents(&eager());
    let outside = pair.lab.outside();
    pair.left.netns.nft(&service(&pair, "tcp dport 30080"));
    pair.left.netns.nft(
        "table ip nodeport { chain post { type nat hook postrouting priority 100;
            ip saddr 198.51.100.0/24 masquerade; }; }",
    );
    // Direct connections to the same pod, so that their pairs are confirmed.
    connected(&pair.traffic(CONNECTS, "--seconds 0.5"), 30);
    let port = SocketAddrV4::new(pair.left.address, 30_080);
    connected(&traffic(&outside, CONNECTS, port, "--seconds 1"), 30);
    let requests = traffic(&outside, REQUESTS, port, "--seconds 6 --patience 2");
    assert_eq!(requests.error, None, "{requests:?}");
}

#[test]
fn what_the_node_masquerades_stays_masqueraded() {
    let pair = Pair::agents(&Options { ip_masq: true, ..eager() });
    let outside = pair.lab.outside();
    let _server = serve(&outside, &pair.lab.dir().join("outside.log"), &[]);
    // A first packet that is lost costs a second, which is all that there is.
    wait::holds("outside", Duration::from_secs(5), || {
        pair.client.netns.ping(OUTSIDE, "-c 1 -W 1").0
    });
    connected(
        &traffic(&pair.client.netns, CONNECTS, SocketAddrV4::new(OUTSIDE, 7000), "--seconds 1"),
        30,
    );
    // A rule of the administrator's for traffic between pods: the server must
    // never see the pod's own address.
    connected(&pair.traffic(CONNECTS, "--seconds 0.5"), 30);
    pair.left.netns.nft(&format!(
        "table ip moved {{ chain post {{ type nat hook postrouting priority 90;
            ip saddr {} ip daddr {} snat to {}; }}; }}",
        pair.client.address,
        pair.server.address,
        pair.left.subnet().network()
    ));
    // The agent hears of the rules within half a second.
    std::thread::sleep(Duration::from_secs(1));
    pair.server.netns.nft(&format!(
        "table ip seen {{ chain input {{ type filter hook input priority 0;
            ip saddr {} counter drop; }}; }}",
        pair.client.address
    ));
    connected(&pair.traffic(CONNECTS, "--seconds 2"), 50);
    let seen = pair.server.netns.sh("nft list table ip seen");
    assert!(seen.contains("counter packets 0 "), "{seen}");
}

#[test]
fn new_rules_hold_for_new_connections() {
    let pair = Pair::agents(&eager());
    pair.right
        .netns
        .nft("table inet late { chain forward { type filter hook forward priority 10; }; }");
    connected(&pair.traffic(CONNECTS, "--seconds 0.5"), 30);
    let target = pair.server.target();
    pair.right.netns.sh(&format!("nft add rule inet late forward ip daddr {} drop", target.ip()));
    std::thread::sleep(Duration::from_secs(1));
    let script = format!("exec 3<>/dev/tcp/{}/{}", target.ip(), target.port());
    let mut command = pair.client.netns.command("timeout");
    let refused = command.args(["2", "bash", "-c", &script]).output().expect("bash");
    assert_eq!(refused.status.code(), Some(124), "{refused:?}");
}

#[test]
fn connections_that_run_when_the_programs_come_go_on() {
    let mut pair = Pair::agents(&Options::kernel());
    pair.left.netns.nft(&service(&pair, "ip daddr 10.96.0.1 tcp dport 80"));
    for node in [&pair.left, &pair.right] {
        node.netns.nft(INVALID);
    }
    let translated = pair.client.start_traffic(REQUESTS, SERVICE, "--seconds 12 --patience 2");
    let direct =
        pair.client.start_traffic(REQUESTS, pair.server.target(), "--seconds 12 --patience 2");
    std::thread::sleep(Duration::from_secs(1));
    for node in [&mut pair.left, &mut pair.right] {
        node.stop_agent();
        node.start(&pair.etcd, &eager());
    }
    // New ones beside them.
    connected(&pair.traffic(CONNECTS, "--seconds 1"), 30);
    connected(&pair.client.traffic(CONNECTS, SERVICE, "--seconds 1"), 30);
    for (name, running) in [("translated", translated), ("direct", direct)] {
        let result = running.finish();
        assert_eq!(result.error, None, "{name}: {result:?}");
        connected(&result, 1000);
    }
    assert!(pair.left.outcomes().fast() > 1000);
}

#[test]
fn where_conntrack_is_strict_about_beginnings_it_is_not_used() {
    let mut pair = Pair::agents(&Options::kernel());
    // Makes conntrack's settings appear.
    pair.left.netns.nft(INVALID);
    pair.left.netns.sysctl("net.netfilter.nf_conntrack_tcp_loose=0");
    pair.left.stop_agent();
    pair.left.start(&pair.etcd, &eager());
    connected(&pair.traffic(CONNECTS, "--seconds 0.5"), 30);
    assert_eq!(pair.left.outcomes().get(Outcome::OpenedEager), 0);
    let reason = pair.left.complaint(Subject::Eager).expect("a complaint");
    assert!(reason.contains("nf_conntrack_tcp_loose"), "{reason}");
}
