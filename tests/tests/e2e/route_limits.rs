//! What routes say of packets besides where they go (an MTU, a hop limit), and the
//! node's own TTL: packets leave as the kernel's path would send them.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use flannel_core::status::NarrowPeer;
use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::beside::{Way, beside, pairs, prepared};
use flannel_tests::lab::{GATEWAY, NETWORK};
use flannel_tests::load::{REQUESTS, SPACED, assert_whole};
use flannel_tests::packet::Wire;
use flannel_tests::pair::Pair;

/// Between a change of a route and its effect.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Length and TTL of what `left` has sent to this address by `eth0`.
fn sent(wire: &Wire, to: Ipv4Addr) -> Vec<(u16, u8)> {
    let mut found = Vec::new();
    wire.waiting_both_ways(|leaves, frame| {
        if leaves && frame.len() > 42 && frame[12..14] == [8, 0] && frame[30..34] == to.octets() {
            found.push((u16::from_be_bytes([frame[16], frame[17]]), frame[22]));
        }
    });
    found
}

/// What `left` sends to this address within a second, of a running flow of large and
/// of another one of small packets.
fn of_a_second(pair: &Pair, to: Ipv4Addr, act: impl FnOnce()) -> Vec<(u16, u8)> {
    let target = pair.server.target();
    let options = "--seconds 3 --interval-us 2000 --size 1350";
    let large = pair.client.start_traffic(SPACED, target, options);
    let small = pair.start_spaced(Duration::from_secs(3));
    thread::sleep(Duration::from_secs(1));
    act();
    thread::sleep(AT_ONCE);
    let wire = Wire::open(&pair.left.netns, "eth0");
    thread::sleep(Duration::from_secs(1));
    let found = sent(&wire, to);
    for spaced in [large.finish(), small.finish()] {
        assert!(spaced.lost < 5, "{spaced:?}");
    }
    assert!(found.len() > 600, "{} packets", found.len());
    found
}

/// The longest of these packets.
fn longest(found: &[(u16, u8)]) -> u16 {
    found.iter().map(|(length, _)| *length).max().unwrap_or(0)
}

/// What status tells of narrow routes.
fn told(pair: &Pair) -> Vec<NarrowPeer> {
    pair.left.status().narrow_peers
}

/// Small packets are carried fast beside a narrow route.
fn is_fast(pair: &Pair, way: Way, outcome: Outcome) {
    let before = pair.left.outcomes();
    assert_whole(&pair.traffic(REQUESTS, "--seconds 1 --patience 1"));
    let since = pair.left.outcomes().since(&before);
    assert!(way == Way::Kernel || since.get(outcome) > 100, "{since:?}");
}

#[test]
fn the_mtu_of_a_route_holds_from_its_change_on() {
    pairs(&Options::default(), |pair, way| {
        let peer = pair.right.address;
        let ip = |command: &str| pair.left.netns.ip(command);
        let narrow = |act: &dyn Fn()| longest(&of_a_second(pair, peer, act));
        ip(&format!("route add {peer}/32 dev eth0"));
        assert_eq!(narrow(&|| ()), 1350 + 28 + 50);
        assert!(narrow(&|| drop(ip(&format!("route change {peer}/32 dev eth0 mtu 1300")))) <= 1300);
        is_fast(pair, way, Outcome::FastEncap);
        let bounded = NarrowPeer { subnet: pair.right.subnet(), largest: 1300 };
        let bounded = if way == Way::Kernel { vec![] } else { vec![bounded] };
        assert_eq!(told(pair), bounded);
        assert!(narrow(&|| drop(ip(&format!("route change {peer}/32 dev eth0 mtu 900")))) <= 900);
        // Paths to pods that the kernel has learnt meanwhile are no longer true.
        let wide = || {
            ip(&format!("route change {peer}/32 dev eth0"));
        };
        wide();
        ip("route flush cache");
        is_fast(pair, way, Outcome::FastEncap);
        assert_eq!(told(pair), []);
    });
}

#[test]
fn a_default_route_and_one_of_another_table_count() {
    pairs(&Options::default(), |pair, way| {
        let peer = pair.right.address;
        let ip = |command: &str| pair.left.netns.ip(command);
        let router = pair.lab.underlay();
        for name in ["all", "default", "br0"] {
            router.sysctl(&format!("net.ipv4.conf.{name}.send_redirects=0"));
        }
        let through_router = longest(&of_a_second(pair, peer, || {
            ip(&format!("route replace default via {GATEWAY} dev eth0 onlink mtu 1300"));
            ip("route delete 192.0.2.0/24 dev eth0");
        }));
        assert!(through_router <= 1300, "{through_router}");
        is_fast(pair, way, Outcome::FastEncap);
        let by_rule = longest(&of_a_second(pair, peer, || {
            ip(&format!("route add {peer}/32 dev eth0 mtu 1200 table 77"));
            ip(&format!("rule add to {peer} lookup 77"));
        }));
        assert!(by_rule <= 1200, "{by_rule}");
        is_fast(pair, way, Outcome::FastEncap);
    });
}

/// Two nodes that reach each other's pods without a tunnel.
fn direct(way: Way) -> Pair {
    let options = way.options(&Options::default());
    prepared([&options, &options], |_, etcd, _| {
        etcd.put_config(&format!(
            r#"{{"Network":"{NETWORK}","SubnetMax":"10.244.199.0","Backend":{{"Type":"host-gw"}}}}"#
        ));
    })
}

#[test]
fn the_mtu_of_a_route_holds_without_a_tunnel() {
    beside(|way| {
        let pair = direct(way);
        let (subnet, hop) = (pair.right.subnet(), pair.right.address);
        let ip = |command: &str| pair.left.netns.ip(command);
        is_fast(&pair, way, Outcome::FastRoutedOut);
        let narrow = longest(&of_a_second(&pair, pair.server.address, || {
            ip(&format!("route add {subnet} via {hop} dev eth0 mtu 1300 table 77"));
            ip("rule add from all iif lo lookup main pref 90");
            ip("rule add lookup 77 pref 100");
        }));
        assert!(narrow <= 1300, "{narrow}");
        is_fast(&pair, way, Outcome::FastRoutedOut);
    });
}

/// The TTL of all that these packets have, if it is one.
fn ttl(found: &[(u16, u8)]) -> Option<u8> {
    let (_, first) = found.first()?;
    found.iter().all(|(_, ttl)| ttl == first).then_some(*first)
}

#[test]
fn outer_headers_have_the_nodes_ttl_or_that_of_the_route() {
    pairs(&Options::default(), |pair, way| {
        let peer = pair.right.address;
        assert_eq!(ttl(&of_a_second(pair, peer, || ())), Some(64));
        pair.left.netns.sysctl("net.ipv4.ip_default_ttl=33");
        // No event tells of a sysctl.
        thread::sleep(Duration::from_secs(1));
        assert_eq!(ttl(&of_a_second(pair, peer, || ())), Some(33));
        is_fast(pair, way, Outcome::FastEncap);
        let route = || {
            pair.left.netns.ip(&format!("route add {peer}/32 dev eth0 hoplimit 44"));
        };
        assert_eq!(ttl(&of_a_second(pair, peer, route)), Some(44));
        pair.left.netns.ip(&format!("route change {peer}/32 dev eth0"));
        is_fast(pair, way, Outcome::FastEncap);
    });
}
