//! Services: what netfilter translates is carried translated, both ways, and
//! follows what the kernel decides about it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::beside::{Carried, Way, pairs};
use flannel_tests::endpoint::Answers;
use flannel_tests::load::{
    BULK, CONNECTS, ECHOES, Load, MESSAGES, REQUESTS, SPACED, Whole, assert_whole,
};
use flannel_tests::pair::Pair;

/// Address of the service; its port is 80.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);

/// Where it answers.
const TARGET: SocketAddrV4 = SocketAddrV4::new(SERVICE, 80);

fn window() -> Options {
    Options { window: Some("500ms"), ..Options::default() }
}

/// Runs a load to the service: nearly all of it has to be fast, on both nodes.
#[track_caller]
fn is_fast<R: Whole>(pair: &Pair, way: Way, load: Load<R>, options: &str) -> R {
    let nodes = [&pair.left, &pair.right];
    let before = nodes.map(Carried::of);
    let result = pair.client.traffic(load, TARGET, options);
    assert_whole(&result);
    for (node, before) in nodes.into_iter().zip(&before) {
        let share = Carried::of(node).share_since(before);
        assert!(
            way == Way::Kernel || share > 0.9,
            "{load}: a share of {share} on the fast path of {}",
            node.address
        );
    }
    result
}

/// All loads that have to arrive whole and, where there is a fast path, on it.
#[track_caller]
fn carries(pair: &Pair, way: Way) {
    let requests = is_fast(pair, way, REQUESTS, "--seconds 2 --patience 1");
    assert!(requests.transactions > 500, "{requests:?}");
    is_fast(pair, way, SPACED, "--seconds 1.5");
    // Checksums of all sizes and of aggregates.
    for (load, options) in [
        (MESSAGES, "--from 1 --upto 1450"),
        (ECHOES, "--from 1 --upto 1450"),
        (ECHOES, "--from 20000 --upto 20009 --segment 1000"),
        (BULK, "--megabytes 16"),
    ] {
        let result = pair.client.traffic(load, TARGET, options);
        assert_whole(&result);
    }
    let connects = pair.client.traffic(CONNECTS, TARGET, "--seconds 0.5");
    assert!(connects.transactions > 30, "{connects:?}");
    // A direct flow beside it.
    assert_whole(&pair.traffic(REQUESTS, "--seconds 0.5 --patience 1"));
}

#[test]
fn of_iptables() {
    pairs(&Options::default(), |pair, way| {
        for proto in ["tcp", "udp"] {
            pair.left.netns.sh(&format!(
                "iptables -t nat -A PREROUTING -d {SERVICE} -p {proto} --dport 80 -j DNAT \
                 --to-destination {}",
                pair.server.target()
            ));
        }
        carries(pair, way);
    });
}

#[test]
fn of_legacy_iptables() {
    pairs(&Options::default(), |pair, way| {
        for proto in ["tcp", "udp"] {
            pair.left.netns.sh(&format!(
                "iptables-legacy -t nat -A PREROUTING -d {SERVICE} -p {proto} --dport 80 -j DNAT \
                 --to-destination {}",
                pair.server.target()
            ));
        }
        carries(pair, way);
    });
}

/// nftables' rules for the service, with these statements for what is sent on.
fn nft(pair: &Pair, to: &str, post: &str) {
    pair.left.netns.nft(&format!(
        "table ip service
        delete table ip service
        table ip service {{
            chain pre {{
                type nat hook prerouting priority dstnat;
                ip daddr {SERVICE} tcp dport 80 dnat to {to}
                ip daddr {SERVICE} udp dport 80 dnat to {to}
            }}
            chain post {{
                type nat hook postrouting priority srcnat;
                {post}
            }}
        }}"
    ));
}

#[test]
fn of_nftables() {
    pairs(&Options::default(), |pair, way| {
        nft(pair, &pair.server.target().to_string(), "");
        carries(pair, way);
    });
}

#[test]
fn with_the_nodes_address_as_source() {
    pairs(&Options::default(), |pair, way| {
        let post = format!("ct original ip daddr {SERVICE} masquerade");
        nft(pair, &pair.server.target().to_string(), &post);
        // The server must never see the pod itself.
        pair.server.netns.nft(&format!(
            "table ip seen {{ chain input {{ type filter hook input priority 0;
                ip saddr {} counter
            }}; }}",
            pair.client.address
        ));
        let requests = is_fast(pair, way, REQUESTS, "--seconds 2 --patience 1");
        assert!(requests.transactions > 500, "{requests:?}");
        is_fast(pair, way, SPACED, "--seconds 1.5");
        let seen = pair.server.netns.sh("nft list table ip seen");
        assert!(seen.contains("counter packets 0 "), "{seen}");
        pair.server.netns.sh("nft delete table ip seen");
        carries(pair, way);
    });
}

#[test]
fn only_the_source_is_another() {
    pairs(&Options::default(), |pair, way| {
        pair.left.netns.nft(&format!(
            "table ip moved {{ chain post {{ type nat hook postrouting priority srcnat;
                ip saddr {} ip daddr {} masquerade
            }}; }}",
            pair.client.address, pair.server.address
        ));
        let nodes = [&pair.left, &pair.right];
        let before = nodes.map(Carried::of);
        assert_whole(&pair.traffic(REQUESTS, "--seconds 2"));
        assert_whole(&pair.traffic(SPACED, "--seconds 2"));
        for (node, before) in nodes.into_iter().zip(&before) {
            let share = Carried::of(node).share_since(before);
            assert!(way == Way::Kernel || share > 0.9, "{share} of {}", node.address);
        }
    });
}

/// As kube-proxy has it: two endpoints by chance, and whoever came to one within
/// some hours goes there again.
#[test]
fn of_kube_proxy_with_session_affinity() {
    pairs(&Options::default(), |pair, way| {
        let mut other = pair.right.pod(3);
        other.serve();
        let endpoints = [("KUBE-SEP-A", pair.server.target()), ("KUBE-SEP-B", other.target())];
        let mut rules = String::from("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-S - [0:0]\n");
        for (chain, _) in endpoints {
            rules += &format!(":{chain} - [0:0]\n");
        }
        rules += "-A PREROUTING -j KUBE-SERVICES\n";
        for proto in ["tcp", "udp"] {
            rules += &format!(
                "-A KUBE-SERVICES -d {SERVICE}/32 -p {proto} -m {proto} --dport 80 -j KUBE-SVC-S\n"
            );
        }
        for (chain, _) in endpoints {
            rules += &format!(
                "-A KUBE-SVC-S -m recent --name {chain} --rcheck --seconds 10800 --reap -j {chain}\n"
            );
        }
        rules += "-A KUBE-SVC-S -m statistic --mode random --probability 0.5 -j KUBE-SEP-A\n\
                  -A KUBE-SVC-S -j KUBE-SEP-B\n";
        for (chain, target) in endpoints {
            for proto in ["tcp", "udp"] {
                rules += &format!(
                    "-A {chain} -p {proto} -m recent --name {chain} --set -m {proto} -j DNAT \
                     --to-destination {target}\n"
                );
            }
        }
        pair.left.netns.iptables(&(rules + "COMMIT\n"));
        carries(pair, way);
    });
}

#[test]
fn a_pod_reaches_itself_and_its_neighbour() {
    pairs(&Options::default(), |pair, _| {
        let own = pair.client.serve();
        let mut neighbour = pair.left.pod(3);
        let near = neighbour.serve();
        pair.left.netns.ip(&format!("link set {} type bridge_slave hairpin on", pair.client.veth));
        for target in [own, near] {
            nft(pair, &target.to_string(), &format!("ct original ip daddr {SERVICE} masquerade"));
            // The agent hears of the rules within half a second.
            thread::sleep(Duration::from_millis(600));
            let requests = pair.client.traffic(REQUESTS, TARGET, "--seconds 1 --patience 1");
            assert_whole(&requests);
            assert_whole(&pair.client.traffic(SPACED, TARGET, "--seconds 1"));
        }
    });
}

/// A UDP flow moves to another endpoint when conntrack forgets it, and not later
/// than a window after that.
fn moves(
    (pair, way): (&Pair, Way),
    rules: impl Fn(&Pair, [Ipv4Addr; 2]),
    change: impl Fn(&Pair, Ipv4Addr),
) {
    let other = pair.right.pod(3);
    let answers = [&pair.server, &other].map(|pod| Answers::open(&pod.netns, 7001));
    let addresses = [pair.server.address, other.address];
    rules(pair, addresses);
    let carried = Carried::of(&pair.left);
    let running =
        pair.client.start_traffic(SPACED, SocketAddrV4::new(SERVICE, 7001), "--seconds 4");
    thread::sleep(Duration::from_millis(1500));
    let early = answers.each_ref().map(Answers::count);
    assert!(early[0] > 500 && early[1] == 0, "{early:?} datagrams before");
    let share = Carried::of(&pair.left).share_since(&carried);
    assert!(way == Way::Kernel || share > 0.8, "a share of {share} on the fast path");
    change(pair, other.address);
    pair.left.netns.sh(&format!("conntrack -D -p udp --orig-dst {SERVICE}"));
    thread::sleep(Duration::from_millis(800));
    let moved = answers.each_ref().map(Answers::count);
    let spaced = running.finish();
    let late = answers.each_ref().map(Answers::count);
    assert_eq!(late[0], moved[0], "datagrams to the old endpoint a window later");
    assert!(late[1] > moved[1] + 500, "{moved:?} then {late:?} datagrams");
    assert!(spaced.lost < 20, "{spaced:?}");
}

fn one_endpoint(pair: &Pair, to: Ipv4Addr) {
    pair.left.netns.nft(&format!(
        "table ip service
        delete table ip service
        table ip service {{ chain pre {{ type nat hook prerouting priority dstnat;
            ip daddr {SERVICE} udp dport 7001 dnat to {to}
        }}; }}"
    ));
}

#[test]
fn an_endpoint_goes_and_another_comes() {
    pairs(&window(), |pair, way| {
        moves((pair, way), |pair, [first, _]| one_endpoint(pair, first), one_endpoint);
    });
}

/// Nothing but conntrack tells of it.
#[test]
fn a_forgotten_flow_is_decided_anew() {
    pairs(&window(), |pair, way| {
        moves(
            (pair, way),
            |pair, [first, second]| {
                pair.left.netns.nft(&format!(
                    "table ip service {{ chain pre {{ type nat hook prerouting priority dstnat;
                        ip daddr {SERVICE} udp dport 7001 dnat to numgen inc mod 2 map \
                            {{ 0 : {first}, 1 : {second} }}
                    }}; }}"
                ));
            },
            |_, _| (),
        );
    });
}

#[test]
fn connections_outlive_their_endpoints_rule() {
    pairs(&window(), |pair, way| {
        let mut other = pair.right.pod(3);
        other.serve();
        other.netns.nft(
            "table ip seen { chain input { type filter hook input priority 0;
                tcp dport 7000 tcp flags syn counter
            }; }",
        );
        nft(pair, &pair.server.target().to_string(), "");
        let before = Carried::of(&pair.left);
        let running = pair.client.start_traffic(REQUESTS, TARGET, "--seconds 4 --patience 1");
        thread::sleep(Duration::from_secs(1));
        nft(pair, &other.target().to_string(), "");
        thread::sleep(Duration::from_secs(1));
        let connects = pair.client.traffic(CONNECTS, TARGET, "--seconds 0.5");
        assert!(connects.transactions > 30, "{connects:?}");
        let seen = other.netns.sh("nft list table ip seen");
        assert!(!seen.contains("counter packets 0 "), "new connections: {seen}");
        assert_whole(&running.finish());
        let share = Carried::of(&pair.left).share_since(&before);
        assert!(way == Way::Kernel || share > 0.8, "a share of {share} on the fast path");
    });
}
