//! Whichever way a forged tunnel packet comes, it does not get to a pod, and is
//! counted. Each case sends ten; on the kernel path all of them arrive.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::beside::{Way, beside, forged, pairs, prepared, wait_ping};
use flannel_tests::forge::mac;
use flannel_tests::forger::{Forger, fragments, link_mac, with_options, with_tag};
use flannel_tests::load::{REQUESTS, assert_whole};
use flannel_tests::pair::Pair;
use flannel_tests::told::words;
use flannel_tests::wait;

/// Time in which the agent takes note of an address or a device.
const SETTLED: Duration = Duration::from_millis(500);

fn refused(send: impl Fn(&mut Pair, &mut Forger) -> usize) {
    refused_with(&Options::default(), send);
}

/// Ten packets: all of them arrive on the kernel path; on ours none, and each is
/// counted by the node that saw it.
fn refused_with(options: &Options, send: impl Fn(&mut Pair, &mut Forger) -> usize) {
    pairs(options, |pair, way| {
        let mut forger = Forger::new(pair);
        let before = [&pair.left, &pair.right].map(|node| node.outcomes());
        let delivered = send(pair, &mut forger);
        let after = [&pair.left, &pair.right].map(|node| node.outcomes());
        let counted: u64 =
            after.iter().zip(&before).map(|(after, before)| forged(&after.since(before))).sum();
        let expected = if way == Way::Kernel { (10, 0) } else { (0, 10) };
        assert_eq!((delivered, counted), expected, "(delivered, counted)");
        // Whoever is honest is not hurt.
        assert_whole(&pair.traffic(REQUESTS, "--seconds 0.3 --patience 1"));
    });
}

#[test]
fn to_a_secondary_address() {
    refused(|pair, forger| {
        pair.left.netns.ip("address add 192.0.2.111/24 dev eth0");
        thread::sleep(SETTLED);
        forger.packet.outer.1 = Ipv4Addr::new(192, 0, 2, 111);
        forger.ten(&forger.stranger, "eth0")
    });
}

/// Joins the stranger and `left` by a second link.
fn by_a_second_card(pair: &Pair, forger: &mut Forger) {
    forger
        .stranger
        .ip(&format!("link add eth1 type veth peer name eth1 netns {}", pair.left.netns.name()));
    for (netns, number) in [(&forger.stranger, 250), (&pair.left.netns, 11)] {
        netns.ip_batch(&[
            format!("address add 10.98.0.{number}/24 dev eth1"),
            "link set eth1 up".to_owned(),
        ]);
    }
    thread::sleep(SETTLED);
    forger.packet.outer_mac =
        (link_mac(&forger.stranger, "eth1"), link_mac(&pair.left.netns, "eth1"));
    forger.packet.outer.0 = Ipv4Addr::new(10, 98, 0, 250);
}

#[test]
fn by_a_second_card_to_the_first_ones_address() {
    refused(|pair, forger| {
        by_a_second_card(pair, forger);
        forger.ten(&forger.stranger, "eth1")
    });
}

#[test]
fn by_a_second_card_to_its_address() {
    refused(|pair, forger| {
        by_a_second_card(pair, forger);
        forger.packet.outer.1 = Ipv4Addr::new(10, 98, 0, 11);
        forger.ten(&forger.stranger, "eth1")
    });
}

#[test]
fn in_a_broadcast_frame() {
    refused(|_, forger| {
        forger.packet.outer_mac.1 = [0xff; 6];
        forger.ten(&forger.stranger, "eth0")
    });
}

#[test]
fn to_the_broadcast_address() {
    refused(|_, forger| {
        forger.packet.outer_mac.1 = [0xff; 6];
        forger.packet.outer.1 = Ipv4Addr::new(192, 0, 2, 255);
        forger.ten(&forger.stranger, "eth0")
    });
}

#[test]
fn with_a_priority_tag() {
    refused(|_, forger| {
        forger.ten_frames(&forger.stranger, "eth0", |frame| vec![with_tag(&frame, 5 << 13)])
    });
}

#[test]
fn with_outer_options() {
    refused(|_, forger| {
        forger.ten_frames(&forger.stranger, "eth0", |frame| vec![with_options(&frame)])
    });
}

#[test]
fn in_outer_fragments() {
    refused(|_, forger| forger.ten_frames(&forger.stranger, "eth0", |frame| fragments(&frame)));
}

/// A second pod beside `client` is the one that is deceived; `client` sends with
/// a plain socket.
fn a_pod_sends(to: impl Fn(&Pair) -> Ipv4Addr) {
    refused(|pair, forger| {
        let victim = pair.left.pod(3);
        let to = to(pair);
        thread::sleep(SETTLED);
        forger.watch(&victim.netns, victim.address);
        forger.ten_datagrams(&pair.client.netns, to)
    });
}

#[test]
fn from_a_pod_to_its_gateway() {
    a_pod_sends(|pair| pair.left.subnet().nth(1).expect("an address"));
}

#[test]
fn from_a_pod_to_the_address_of_the_vxlan_device() {
    a_pod_sends(|pair| pair.left.subnet().network());
}

#[test]
fn from_a_pod_to_its_nodes_underlay_address() {
    a_pod_sends(|pair| pair.left.address);
}

#[test]
fn from_a_pod_to_another_local_address() {
    a_pod_sends(|pair| {
        pair.left.netns.ip("address add 10.255.255.1/32 dev lo");
        Ipv4Addr::new(10, 255, 255, 1)
    });
}

#[test]
fn from_a_pod_to_the_gateway_of_another_node() {
    refused(|pair, forger| {
        let gateway = pair.left.subnet().nth(1).expect("an address");
        forger.ten_datagrams(&pair.server.netns, gateway)
    });
}

#[test]
fn from_a_pod_through_a_service_on_the_tunnels_port() {
    a_pod_sends(|pair| {
        pair.left.netns.nft(&format!(
            "table ip service {{ chain pre {{ type nat hook prerouting priority dstnat;
                ip daddr 10.96.0.9 udp dport 8472 dnat to {}
            }}; }}",
            pair.left.address
        ));
        Ipv4Addr::new(10, 96, 0, 9)
    });
}

/// `client` sends to the node of `server` what only another pod of its own node may
/// send, in frames with VLAN tags: the kernel takes any number of those of VLAN 0 off.
fn a_pod_sends_tagged(tags: usize) {
    // Masqueraded, it looks like a packet of the node's own.
    let options = Options { ip_masq: true, ..Options::default() };
    refused_with(&options, |pair, forger| {
        let gateway = link_mac(&pair.left.netns, "cni0");
        let packet = &mut forger.packet;
        packet.outer_mac = (link_mac(&pair.client.netns, "eth0"), gateway);
        packet.outer = (pair.client.address, pair.right.address);
        let vteps = [&pair.left, &pair.right].map(|node| mac(&node.vtep_mac()));
        packet.inner_mac = (vteps[0], vteps[1]);
        packet.inner.0 = pair.left.subnet().nth(77).expect("an address");
        forger.watch(&pair.server.netns, pair.server.address);
        forger.ten_frames(&pair.client.netns, "eth0", |frame| {
            vec![(0..tags).fold(frame, |frame, _| with_tag(&frame, 0))]
        })
    });
}

#[test]
fn from_a_pod_with_a_priority_tag() {
    a_pod_sends_tagged(1);
}

#[test]
fn from_a_pod_with_two_priority_tags() {
    a_pod_sends_tagged(2);
}

#[test]
fn from_a_pod_with_many_priority_tags() {
    a_pod_sends_tagged(6);
}

/// The other side of the check: a peer that is refused is named.
#[test]
fn a_peer_that_sends_from_another_address_is_named() {
    beside(|way| {
        let options = way.options(&Options::default());
        // Something between the nodes gives its packets their primary address.
        let plain = Options { datapath: Some("kernel"), ..options.clone() };
        let lease = Options { extra: vec!["--public-ip=192.0.2.112".into()], ..plain.clone() };
        let mut pair = prepared([&options, &lease], |_, _, [_, right]| {
            right.netns.ip("address add 192.0.2.112/24 dev eth0");
            right.netns.nft(
                "table ip way { chain out { type nat hook postrouting priority srcnat;
                    ip saddr 192.0.2.112 udp dport 8472 snat to 192.0.2.12; }; }",
            );
        });
        assert_eq!(pair.left.not_well(), []);
        if way == Way::Kernel {
            wait_ping(&pair);
            return;
        }
        // It sends, whatever comes of it.
        wait::holds("the peer and its address in status", Duration::from_secs(10), || {
            let _ = pair.server.netns.ping(pair.client.address, "-c 2 -i 0.2 -W 0.1");
            let said = words(&pair.left.status());
            // Its address, and which peer it is.
            said.contains("192.0.2.12")
                && (said.contains("192.0.2.112") || said.contains(&pair.right.subnet().to_string()))
        });
        pair.right.stop_agent();
        pair.right.start(&pair.etcd, &plain);
        wait_ping(&pair);
        wait::holds("it is well again", Duration::from_secs(10), || {
            pair.left.not_well().is_empty()
        });
    });
}
