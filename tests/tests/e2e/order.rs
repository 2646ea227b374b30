//! The fast path never brings packets out of order that the kernel path would
//! bring in order: not when windows end, not when decisions are made anew.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::beside::{Way, pairs};
use flannel_tests::endpoint::{Arrivals, numbered};
use flannel_tests::load::{FLOOD, STREAM};
use flannel_tests::pair::Pair;
use flannel_tests::traffic::counters::tcp_ext;

const PORT: u16 = 7005;

fn window() -> Options {
    Options { window: Some("500ms"), ..Options::default() }
}

/// Numbered datagrams from `client` to this address for `server`, over many
/// windows, of which at least `least` percent have to arrive. The kernel path
/// shows what overtakes on this machine by itself.
fn never_more_than_the_kernel(
    (size, each, least): (usize, u32, u32),
    to: impl Fn(&Pair) -> SocketAddrV4,
    meanwhile: impl Fn(&Pair) + Sync,
) {
    let seen: [Arrivals; 2] = pairs(&window(), |pair, way| {
        let (at, done) = (to(pair), AtomicBool::new(false));
        let pair = &*pair;
        let arrivals = thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    meanwhile(pair);
                }
            });
            let arrivals = numbered(
                &pair.client.netns,
                (&pair.server.netns, at),
                (size, each),
                (Duration::from_micros(200), Duration::from_millis(2500)),
            );
            done.store(true, Ordering::Relaxed);
            arrivals
        });
        let least = arrivals.sent / 100 * least;
        assert!(arrivals.sent > 2000 && arrivals.received >= least, "{arrivals:?}");
        let fast = pair.left.outcomes().get(Outcome::FastEncap);
        assert!(way == Way::Kernel || fast > u64::from(least) / 2, "{fast} fast, {arrivals:?}");
        arrivals
    });
    let [kernel, ours] = seen;
    assert!(ours.late <= kernel.late, "{ours:?}, by the kernel {kernel:?}");
}

fn direct(pair: &Pair) -> SocketAddrV4 {
    SocketAddrV4::new(pair.server.address, PORT)
}

fn rest(_: &Pair) {
    thread::sleep(Duration::from_millis(50));
}

#[test]
fn when_windows_end() {
    never_more_than_the_kernel((64, 1, 99), direct, rest);
}

#[test]
fn of_trains_when_windows_end() {
    never_more_than_the_kernel((1000, 32, 99), direct, rest);
}

/// Then the kernel takes packets in batches.
#[test]
fn of_trains_beside_a_flood() {
    never_more_than_the_kernel((64, 32, 20), direct, |pair| {
        pair.client.traffic(FLOOD, pair.server.target(), "--seconds 1 --cpu 0");
    });
}

/// A card that is polled hands packets on in lists: all of one pass each stage
/// before the next stage begins.
fn polled(pair: &Pair) -> SocketAddrV4 {
    for (number, node) in [(1, &pair.left), (2, &pair.right)] {
        // Else a veth takes its packets without polling.
        let cut = "tso off gso off tx-udp-segmentation off";
        pair.lab.underlay().sh(&format!("ethtool -K p{number} {cut}"));
        node.netns.sh("ethtool -K eth0 gro on");
        // It sends several at once.
        node.netns.sh("tc qdisc replace dev eth0 root tbf rate 300mbit burst 5k limit 10m");
    }
    direct(pair)
}

#[test]
fn of_trains_from_a_polled_card() {
    never_more_than_the_kernel((64, 64, 99), polled, rest);
}

/// Marked packets are the kernel's, between others that are not.
#[test]
fn of_packets_that_met_congestion() {
    let marked = |pair: &Pair| {
        pair.client.netns.nft(&format!(
            "table ip able {{ chain output {{ type filter hook output priority 0;
                udp dport {PORT} ip ecn set ect0
            }}; }}"
        ));
        pair.lab.underlay().nft(
            "table bridge congestion { chain forward { type filter hook forward priority 0;
                udp dport 8472 ip ecn ect0 numgen inc mod 10 == 0 ip ecn set ce
            }; }",
        );
        direct(pair)
    };
    never_more_than_the_kernel((64, 8, 99), marked, rest);
}

#[test]
fn when_all_is_decided_anew() {
    never_more_than_the_kernel((64, 8, 99), direct, |pair| {
        pair.left.netns.ip("route add 203.0.113.0/24 dev eth0");
        thread::sleep(Duration::from_millis(150));
        pair.right.netns.ip("route add 203.0.113.0/24 dev eth0");
        thread::sleep(Duration::from_millis(150));
        for node in [&pair.left, &pair.right] {
            node.netns.ip("route del 203.0.113.0/24 dev eth0");
        }
    });
}

#[test]
fn when_rules_come_and_go() {
    never_more_than_the_kernel((64, 8, 99), direct, |pair| {
        for node in [&pair.left, &pair.right] {
            node.netns.nft(
                "table ip idle { chain forward { type filter hook forward priority 0; }; }
                 delete table ip idle",
            );
        }
        thread::sleep(Duration::from_millis(300));
    });
}

#[test]
fn of_a_service() {
    let service = |pair: &Pair| {
        let to = direct(pair);
        pair.left.netns.nft(&format!(
            "table ip service {{ chain pre {{ type nat hook prerouting priority dstnat;
                ip daddr 10.96.0.7 udp dport {PORT} dnat to {to}
            }}; }}"
        ));
        SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 7), PORT)
    };
    never_more_than_the_kernel((64, 8, 99), service, rest);
}

/// How often the pod `client` was told of a segment later than of ones behind it,
/// without having sent it again. What was lost does not count: a busy machine loses
/// packets on both paths.
fn overtaken(pair: &Pair) -> u64 {
    let text = pair.client.netns.sh("cat /proc/net/netstat");
    let counter = |name: &str| tcp_ext(&text, name).expect("a counter of TCP");
    counter("TCPSACKReorder") + counter("TCPTSReorder")
}

/// Sender and receiver share one CPU: a stream that is sent by two CPUs overtakes itself,
/// on both paths.
#[test]
fn of_streams() {
    const CPU: usize = 0;
    let [kernel, ours] = pairs(&window(), |pair, way| {
        pair.server.serve_on(CPU);
        let (before, outcomes) = (overtaken(pair), pair.left.outcomes());
        pair.traffic(STREAM, &format!("--seconds 4 --cpu {CPU}"));
        let fast = pair.left.outcomes().since(&outcomes).get(Outcome::FastEncap);
        assert!(way == Way::Kernel || fast > 10_000, "{fast} fast");
        overtaken(pair) - before
    });
    assert!(ours <= kernel, "{ours} overtaken, {kernel} by the kernel");
}
