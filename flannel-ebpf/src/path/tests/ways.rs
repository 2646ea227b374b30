//! What the kernel decided about one way of a packet is not repeated on another.

use super::confirmed;
use crate::abi::{Outcome, Subnet, flag};
use crate::path::Verdict;
use crate::path::fake::*;
use crate::path::hook::{from_overlay, from_pod, from_underlay};
use crate::wire::ETH_LEN;

/// Another device by which tunnel packets come.
const OTHER: u32 = 9;
const TAG: [u8; 4] = [0x81, 0, 0, 0];

/// A packet of node 1's pod as it comes to node 2, from this port.
fn wire_packet(port: u8) -> Packet {
    let mut packet = Packet::udp(1, 2, b"x").forwarded(vtep(2), vtep(1));
    packet.bytes[ETH_LEN + 21] = port;
    packet.encapsulated(1, 2)
}

#[test]
fn what_comes_by_another_device_is_the_kernels_to_let_in() {
    let (_, b) = confirmed(&Packet::udp(1, 2, b"x"));
    fast(receive(&b, wire_packet(0xa0)));
    let mut packet = wire_packet(0xa0).at(OTHER);
    assert_eq!(from_underlay::run(&mut packet, &b), Verdict::Pass);
    assert_eq!(b.counted(Outcome::KernelMoved), 1);
    // Nor does the tunnel hold for it.
    assert!(matches!(receive(&b, wire_packet(1)), Way::Shortcut(_)));
    let mut packet = wire_packet(2).at(OTHER);
    assert_eq!(from_underlay::run(&mut packet, &b), Verdict::Pass);
    assert_eq!(from_overlay::run(&mut packet.decapsulated(), &b), Verdict::Pass);
    let mut packet = wire_packet(3).at(OTHER);
    assert_eq!(from_underlay::run(&mut packet, &b), Verdict::Ingress { ifindex: OVERLAY });
}

#[test]
fn marks_of_the_tunnels_packets_keep_them_from_the_shortcut() {
    let b = Node::new(2);
    for port in 0..3 {
        let mut packet = wire_packet(port).at(UNDERLAY);
        assert_eq!(from_underlay::run(&mut packet, &b), Verdict::Pass, "{port}");
        let mut packet = Packet { mark: 7, ..packet.decapsulated() };
        assert_eq!(from_overlay::run(&mut packet, &b), Verdict::Pass);
    }
    assert_eq!(b.counted(Outcome::ConfirmedTunnel), 0);
}

#[test]
fn what_the_shortcut_brought_is_proven_no_longer_than_its_tunnel() {
    let b = Node::new(2);
    let window = b.config.window_ns;
    kernel(receive(&b, wire_packet(1)));
    b.pass_time(window * 9 / 10);
    assert!(matches!(receive(&b, wire_packet(2)), Way::Shortcut(_)));
    fast(receive(&b, wire_packet(2)));
    b.pass_time(window / 5);
    // It is proven again by the whole way, though another has proven the tunnel.
    assert!(matches!(receive(&b, wire_packet(3)), Way::Kernel(_)));
    assert!(matches!(receive(&b, wire_packet(4)), Way::Shortcut(_)));
    assert!(matches!(receive(&b, wire_packet(2)), Way::Kernel(_)));
    b.pass_time(window * 9 / 10);
    fast(receive(&b, wire_packet(2)));
}

/// Node 1 with a confirmed flow that has a small path MTU, after a moment.
fn sender(flags: u32) -> Node {
    let mut a = Node::new(1);
    a.config.flags |= flags;
    a.path_mtu.set(1400);
    assert!(matches!(send(&a, Packet::udp(1, 2, b"x"), 1, 2), Way::Shortcut(_)));
    a.pass_time(SECOND / 10);
    a
}

/// Sends a packet of that flow with another DSCP, which the kernel gives this mark.
fn sent(a: &Node, payload: &[u8], mark: u32) -> Way {
    let mut packet = Packet::udp(1, 2, payload).edit(ETH_LEN, |ip| ip[1] = 0x20).at(VETH);
    assert_eq!(from_pod::run(&mut packet, a), Verdict::Pass);
    assert_eq!(a.counted(Outcome::KernelDiffers), 1);
    leave(a, Packet { mark, ..packet.forwarded(vtep(2), vtep(1)) }, 1, 2)
}

#[test]
fn a_known_way_is_not_that_of_what_is_larger_or_marked() {
    assert!(matches!(sent(&sender(0), b"x", 0), Way::Shortcut(_)));
    assert!(matches!(sent(&sender(0), &[0; 1400 - 50 - 28], 0), Way::Shortcut(_)));
    assert!(matches!(sent(&sender(0), &[0; 1400 - 50 - 28 + 1], 0), Way::Kernel(_)));
    assert!(matches!(sent(&sender(0), b"x", 5), Way::Shortcut(_)));
    assert!(matches!(sent(&sender(flag::MARKED_ROUTES), b"x", 0), Way::Shortcut(_)));
    assert!(matches!(sent(&sender(flag::MARKED_ROUTES), b"x", 5), Way::Kernel(_)));
}

#[test]
fn what_a_route_says_of_sizes_is_kept() {
    let mut a = Node::new(1);
    let bound = |node: &mut Node, largest| {
        for subnet in node.subnets.values_mut() {
            subnet.flags = Subnet::flags(false, largest);
        }
        node.config.generation += 1;
    };
    let [small, fits, large] = [1, 1300 - 50 - 28, 1300 - 50 - 28 + 1].map(|len| vec![0; len]);
    let sent = |node: &Node, payload: &[u8]| send(node, Packet::udp(1, 2, payload), 1, 2);
    bound(&mut a, Some(1300));
    assert!(matches!(sent(&a, &large), Way::Kernel(_)));
    assert_eq!(a.counted(Outcome::UnresolvedNextHop), 1, "nor by the shortcut");
    assert!(matches!(sent(&a, &small), Way::Shortcut(_)));
    fast(sent(&a, &fits));
    assert!(matches!(sent(&a, &large), Way::Kernel(_)));
    assert_eq!(a.counted(Outcome::KernelTooBig), 1);
    // Nothing fits: the kernel sends all of it.
    bound(&mut a, Some(0));
    assert!(matches!(sent(&a, &small), Way::Kernel(_)));
    assert!(matches!(sent(&a, &small), Way::Kernel(_)));
    bound(&mut a, None);
    assert!(matches!(sent(&a, &large), Way::Shortcut(_)));
    fast(sent(&a, &large));
}

#[test]
fn the_nodes_ttl_is_that_of_outer_headers() {
    let mut a = Node::new(1);
    for (above, ttl) in [(0, 64), (191, 255), (1_u8.wrapping_sub(64), 1)] {
        a.config.ttl_above_64 = above;
        let Way::Shortcut(packet) = send(&a, Packet::udp(1, 2, b"x"), 1, 2) else {
            panic!("not by the shortcut");
        };
        assert_eq!(packet.bytes[ETH_LEN + 8], ttl);
        assert_eq!(fast(send(&a, Packet::udp(1, 2, b"x"), 1, 2)).0.bytes[ETH_LEN + 8], ttl);
        a.config.generation += 1;
    }
}

/// What becomes of a pod's frame of UDP to an address and port, with one tag in the
/// metadata and others in the frame.
fn tagged(node: &Node, to: [u8; 4], port: u16, tags: usize) -> Verdict {
    let mut packet = Packet::udp(1, 2, b"x").nat(to, port);
    packet.tagged = true;
    for _ in 0..tags {
        packet.bytes.splice(12..12, TAG);
    }
    from_pod::run(&mut packet, node)
}

#[test]
fn vlan_tags_do_not_hide_what_pods_may_not_send() {
    let a = Node::new(1);
    for (tags, counted) in [(0, 1), (1, 2), (2, 3), (9, 4)] {
        assert_eq!(tagged(&a, underlay(2), PORT, tags), Verdict::Drop, "{tags}");
        assert_eq!(a.counted(Outcome::ForgedByPod), counted);
    }
    for tags in 0..2 {
        assert_eq!(tagged(&a, underlay(2), PORT + 1, tags), Verdict::Pass, "{tags}");
        assert_eq!(tagged(&a, [198, 51, 100, 2], PORT, tags), Verdict::Pass, "{tags}");
    }
    assert_eq!(a.counted(Outcome::ForgedByPod), 4);
}
