//! Tunnel packets leave as the kernel's own VXLAN device would send them: by
//! the route that is the best one, whatever its next hop, interface and size.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::beside::{
    Way, beside, forged, pairs, prepared, second_link, tunnel_packets, wait_ping,
};
use flannel_tests::forger::Forger;
use flannel_tests::lab::GATEWAY;
use flannel_tests::load::{REQUESTS, SPACED, assert_whole};
use flannel_tests::node::Node;
use flannel_tests::packet::Wire;
use flannel_tests::pair::Pair;
use flannel_tests::told::{fast_share, words};
use flannel_tests::wait;

/// The link-local address of a node's `eth0`, once it may be used.
fn link_local(node: &Node) -> String {
    let what = format!("a link-local address of {}", node.address);
    let look = || {
        let text = node.netns.ip("-6 -oneline address show dev eth0 scope link -tentative");
        Some(text.split_whitespace().nth(3)?.split('/').next()?.to_owned())
    };
    wait::until(&what, Duration::from_secs(5), look).0
}

/// TCP and UDP between the pods, nothing lost.
#[track_caller]
fn speaks(pair: &Pair) {
    let requests = pair.traffic(REQUESTS, "--seconds 1 --patience 1");
    assert_whole(&requests);
    assert!(requests.transactions > 100, "{requests:?}");
    assert_whole(&pair.traffic(SPACED, "--seconds 1"));
}

/// IPv4 addresses that ARP asks for on an interface.
fn asked_for(wire: &Wire) -> Vec<Ipv4Addr> {
    let mut asked = Vec::new();
    wire.waiting(|frame| {
        if frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 1] {
            asked.push(Ipv4Addr::new(frame[38], frame[39], frame[40], frame[41]));
        }
    });
    asked
}

#[test]
fn routes_by_way_of_ipv6_neighbours_carry_the_tunnel() {
    pairs(&Options::default(), |pair, _| {
        let hop = link_local(&pair.right);
        let wire = Wire::open(&pair.left.netns, "eth0");
        pair.left
            .netns
            .ip(&format!("route replace {}/32 via inet6 {hop} dev eth0", pair.right.address));
        speaks(pair);
        // As an IPv4 address the first bytes of fe80:: would be 254.128.0.0.
        let foreign: Vec<_> =
            asked_for(&wire).into_iter().filter(|to| to.octets()[..3] != [192, 0, 2]).collect();
        assert!(foreign.is_empty(), "ARP asks for {foreign:?}");
    });
}

#[test]
fn a_running_flow_follows_to_an_ipv6_neighbour_and_back() {
    pairs(&Options::default(), |pair, _| {
        let hop = link_local(&pair.right);
        let route = format!("{}/32 via inet6 {hop} dev eth0", pair.right.address);
        let running = pair.start_spaced(Duration::from_secs(3));
        thread::sleep(Duration::from_secs(1));
        pair.left.netns.ip(&format!("route add {route}"));
        thread::sleep(Duration::from_secs(1));
        pair.left.netns.ip(&format!("route del {route}"));
        let spaced = running.finish();
        assert!(spaced.lost < 5, "{spaced:?}");
    });
}

/// Makes both nodes reach each other by their second link.
fn go_by_eth1(pair: &Pair, hops: [Ipv4Addr; 2]) {
    pair.left.netns.ip(&format!("route add {}/32 via {} dev eth1", pair.right.address, hops[1]));
    pair.right.netns.ip(&format!("route add {}/32 via {} dev eth1", pair.left.address, hops[0]));
}

#[test]
fn a_better_route_by_another_card_is_taken() {
    pairs(&Options::default(), |pair, _| {
        let hops = second_link(&pair.left, &pair.right);
        go_by_eth1(pair, hops);
        thread::sleep(Duration::from_millis(200));
        let wires = ["eth0", "eth1"].map(|link| Wire::open(&pair.left.netns, link));
        speaks(pair);
        let [old, new] = wires.each_ref().map(|wire| tunnel_packets(wire).len());
        assert_eq!(old, 0, "tunnel packets by eth0, past the second link ({new} by eth1)");
        assert!(new > 2000, "{new} tunnel packets by eth1");
    });
}

#[test]
fn running_flows_move_to_another_card_at_once() {
    pairs(&Options::default(), |pair, _| {
        let hops = second_link(&pair.left, &pair.right);
        let running = pair.start_spaced(Duration::from_secs(3));
        thread::sleep(Duration::from_secs(1));
        go_by_eth1(pair, hops);
        thread::sleep(Duration::from_millis(200));
        let wires = ["eth0", "eth1"].map(|link| Wire::open(&pair.left.netns, link));
        let spaced = running.finish();
        let [old, new] = wires.each_ref().map(|wire| tunnel_packets(wire).len());
        assert_eq!(old, 0, "tunnel packets by eth0, past the second link ({new} by eth1)");
        assert!(new > 2000, "{new} tunnel packets by eth1");
        assert!(spaced.lost < 5, "{spaced:?}");
    });
}

/// Between the nodes there is a router now, whose link to `right` carries
/// packets of 1300 bytes.
fn narrow(pair: &Pair) {
    let router = pair.lab.underlay();
    for name in ["all", "default", "br0"] {
        router.sysctl(&format!("net.ipv4.conf.{name}.send_redirects=0"));
    }
    router.ip(&format!("route add {}/32 dev br0 mtu 1300", pair.right.address));
    pair.left.netns.ip(&format!("route add {}/32 via {GATEWAY} dev eth0", pair.right.address));
}

#[test]
fn a_learnt_path_mtu_holds_from_the_next_packet_on() {
    pairs(&Options::default(), |pair, way| {
        narrow(pair);
        let target = pair.server.target();
        let options = "--seconds 3 --interval-us 2000 --size 1350";
        let running = pair.client.start_traffic(SPACED, target, options);
        thread::sleep(Duration::from_secs(1));
        // The router tells the node, as it would tell any of its connections.
        let (answered, text) =
            pair.left.netns.ping(pair.right.address, "-c 2 -i 0.2 -W 1 -M do -s 1400");
        assert!(!answered && text.contains("mtu = 1300"), "{text}");
        let wire = Wire::open(&pair.left.netns, "eth0");
        thread::sleep(Duration::from_secs(1));
        let lengths = outgoing(&wire, pair);
        assert!(lengths.len() > 300, "{} tunnel packets", lengths.len());
        let longest = lengths.iter().max().copied().unwrap_or(0);
        assert!(longest <= 1300, "{longest} bytes on a path of 1300");
        let spaced = running.finish();
        assert!(spaced.lost < 5, "{spaced:?}");

        // What does not fit is cut by the kernel; what fits is served as ever.
        let before = pair.left.outcomes();
        assert_whole(&pair.traffic(REQUESTS, "--seconds 1 --patience 1"));
        let since = pair.left.outcomes().since(&before);
        assert!(way == Way::Kernel || since.get(Outcome::FastEncap) > 100, "{since:?}");
    });
}

/// Lengths of tunnel packets that `left` sends to `right`.
fn outgoing(wire: &Wire, pair: &Pair) -> Vec<u16> {
    let to = pair.right.address.octets();
    let mut lengths = Vec::new();
    wire.waiting(|frame| {
        if frame.len() > 42 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[30..34] == to {
            lengths.push(u16::from_be_bytes([frame[16], frame[17]]));
        }
    });
    lengths
}

/// Nodes whose address stands on an interface without a wire, as routing
/// protocols have it; packets go by `eth0`.
fn wireless(way: Way) -> Pair {
    let options = Options {
        extra: vec!["--iface=".into(), "--iface=stub0".into()],
        ..way.options(&Options::default())
    };
    let pair = prepared([&options, &options], |_, _, nodes| {
        let uplinks = nodes.each_ref().map(|node| node.address);
        for (index, node) in nodes.into_iter().enumerate() {
            let other = 1 - index;
            node.address = Ipv4Addr::new(10, 255, 0, 11 + index as u8);
            node.netns.ip_batch(&[
                "link add stub0 type veth peer name stub1".to_owned(),
                format!("address add {}/32 dev stub0", node.address),
                "link set stub0 up".to_owned(),
                "link set stub1 up".to_owned(),
                format!("route add 10.255.0.{}/32 via {} dev eth0", 11 + other, uplinks[other]),
            ]);
        }
    });
    wait_ping(&pair);
    pair
}

#[test]
fn status_knows_an_address_on_an_interface_without_a_wire() {
    beside(|way| {
        let pair = wireless(way);
        let before = pair.left.counted(&pair.right);
        speaks(&pair);
        if way == Way::Ebpf {
            let share = fast_share(&before, &pair.left.counted(&pair.right));
            // Carried, or said why not.
            let status = pair.left.status();
            assert!(share > 0.9 || words(&status).contains("stub0"), "{share}: {status:?}");
        }
    });
}

#[test]
fn sources_are_checked_beside_an_interface_without_a_wire() {
    beside(|way| {
        let pair = wireless(way);
        let forger = Forger::new(&pair);
        let before = pair.left.outcomes();
        let delivered = forger.ten(&forger.stranger, "eth0");
        let counted = forged(&pair.left.outcomes().since(&before));
        let expected = if way == Way::Kernel { (10, 0) } else { (0, 10) };
        assert_eq!((delivered, counted), expected);
    });
}
