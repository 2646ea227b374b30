//! Direct peers: the life of flows that leave and arrive without a tunnel.

use proptest::prelude::*;

use super::super::fake::*;
use super::super::hook::{from_pod, from_underlay, to_pod, to_underlay};
use super::super::{NextHop, Traffic, Verdict};

use crate::abi::{Outcome, Subnet, flag, subnet_flag};
use crate::wire::{self, ETH_LEN};

const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// Node `me`, all of whose peers are direct.
fn node(me: u8) -> Node {
    let mut node = Node::new(me);
    node.config.flags |= flag::DIRECT;
    for subnet in node.subnets.values_mut() {
        subnet.flags = subnet_flag::DIRECT;
    }
    node
}

/// A pod's packet through its node: on the fast path, or by the kernel.
fn leave(node: &Node, packet: Packet) -> Way {
    leave_changed(node, packet, |_| ())
}

fn leave_changed(node: &Node, packet: Packet, change: impl FnOnce(&mut [u8])) -> Way {
    let mut packet = packet.at(VETH);
    match from_pod::run(&mut packet, node) {
        Verdict::Pass => {}
        Verdict::Drop => return Way::Dropped,
        verdict => {
            // The kernel runs the device's egress for redirected packets too.
            let mut packet = packet.at(UNDERLAY);
            assert_eq!(to_underlay::run(&mut packet, node), Verdict::Pass);
            return Way::Fast(packet, verdict);
        }
    }
    let mut packet = packet.forwarded(NODE_MAC, NODE_MAC).edit(ETH_LEN, change).at(UNDERLAY);
    assert_eq!(to_underlay::run(&mut packet, node), Verdict::Pass);
    Way::Kernel(packet)
}

/// A packet from the underlay to a pod.
fn come(node: &Node, packet: Packet) -> Way {
    let mut packet = packet.at(UNDERLAY);
    match from_underlay::run(&mut packet, node) {
        Verdict::Pass => {}
        Verdict::Drop => return Way::Dropped,
        verdict => return Way::Fast(packet.at(VETH), verdict),
    }
    let mut packet = packet.forwarded(POD_MAC, GATEWAY_MAC).at(VETH);
    assert_eq!(to_pod::run(&mut packet, node), Verdict::Pass);
    Way::Kernel(packet)
}

#[test]
fn second_packet_is_sent_and_handed_on_like_the_first() {
    let (a, b) = (node(1), node(2));
    let packet = Packet::tcp(1, 2, 0, b"hello");
    let slow_wire = kernel(leave(&a, packet.clone()));
    let delivered = kernel(come(&b, slow_wire.clone()));
    let (wire, verdict) = fast(leave(&a, packet));
    assert_eq!(
        verdict,
        Verdict::NextHop { ifindex: UNDERLAY, next_hop: NextHop::ipv4(underlay(2)) }
    );
    assert_eq!(wire.bytes[ETH_LEN..], slow_wire.bytes[ETH_LEN..]);
    let (pod, verdict) = fast(come(&b, wire));
    assert_eq!(verdict, Verdict::Peer { ifindex: VETH });
    assert_eq!(pod.bytes, delivered.bytes);
    assert_eq!(pod.bytes[ETH_LEN + 8], 62, "TTL");
    for (node, peer, sent) in [(&a, 2, true), (&b, 1, false)] {
        let (slow, fast) = if sent {
            (Traffic::TxKernel, Traffic::TxFast)
        } else {
            (Traffic::RxKernel, Traffic::RxFast)
        };
        assert_eq!(node.peer_counted(peer, slow), 1);
        assert_eq!(node.peer_counted(peer, fast), 1);
    }
}

#[test]
fn confirmations_end_with_window_generation_and_syn() {
    let (mut a, mut b) = (node(1), node(2));
    let packet = Packet::tcp(1, 2, 0, b"x");
    let confirm = |a: &Node, b: &Node| {
        let wire = kernel(leave(a, packet.clone()));
        kernel(come(b, wire));
        let (wire, _) = fast(leave(a, packet.clone()));
        fast(come(b, wire));
    };
    confirm(&a, &b);
    for node in [&a, &b] {
        node.pass_time(node.config.window_ns);
    }
    confirm(&a, &b);
    for node in [&mut a, &mut b] {
        node.config.generation += 1;
    }
    confirm(&a, &b);
    let syn = kernel(leave(&a, Packet::tcp(1, 2, wire::TCP_SYN, b"")));
    kernel(come(&b, syn));
    confirm(&a, &b);
}

#[test]
fn what_the_kernel_changed_is_not_confirmed() {
    type Edit = fn(&mut [u8]);
    let edits: [(&str, Edit); 4] = [
        ("another length", |ip| ip[3] ^= 1),
        ("another identification", |ip| ip[4] ^= 1),
        ("source translated", |ip| ip[15] = 99),
        ("another hop", |ip| ip[8] -= 1),
    ];
    for (what, edit) in edits {
        let a = node(1);
        for _ in 0..3 {
            let way = leave_changed(&a, Packet::udp(1, 2, b"x"), edit);
            assert!(matches!(way, Way::Kernel(_)), "{what}");
            a.pass_time(SECOND);
        }
        assert_eq!(a.counted(Outcome::ConfirmedOut), 0, "{what}");
    }
}

#[test]
fn a_confirmation_holds_for_its_own_way_in_only() {
    let a = Node::new(1);
    // By the tunnel first, then without it.
    let mut b = Node::new(2);
    b.config.flags |= flag::DIRECT;
    b.subnets.values_mut().for_each(|subnet| subnet.flags = subnet_flag::DIRECT);
    let packet = Packet::udp(1, 2, b"x");
    let tunnelled = kernel(send(&a, packet.clone(), 1, 2));
    kernel(receive(&b, tunnelled.clone()));
    fast(receive(&b, tunnelled.clone()));
    b.pass_time(b.config.window_ns);
    let plain = packet.forwarded(NODE_MAC, NODE_MAC);
    kernel(come(&b, plain.clone()));
    fast(come(&b, plain));
    kernel(receive(&b, tunnelled));
}

#[test]
fn sizes_are_those_of_the_ways_devices() {
    let mut a = node(1);
    kernel(leave(&a, Packet::udp(1, 2, &[7; 100])));
    let packet = Packet::udp(1, 2, &[7; 1600]);
    kernel(leave(&a, packet.clone()));
    assert_eq!(a.counted(Outcome::KernelTooBig), 1);
    // A GSO packet counts by its segments.
    fast(leave(&a, Packet { gso_size: 1400, ..packet.clone() }));
    a.path_mtu.set(9000);
    a.config.generation += 1;
    kernel(leave(&a, packet.clone()));
    fast(leave(&a, packet.clone()));
    // The route has an MTU of its own.
    for subnet in a.subnets.values_mut() {
        subnet.flags = Subnet::flags(true, Some(1600));
    }
    a.config.generation += 1;
    kernel(leave(&a, packet.clone()));
    kernel(leave(&a, packet.clone()));
    fast(leave(&a, Packet { gso_size: 1400, ..packet }));
}

#[test]
fn peers_behind_the_tunnel_are_left_alone() {
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    let packet = Packet::udp(1, 2, b"x");
    for node in [&mut a, &mut b] {
        for direct in [0, flag::DIRECT] {
            node.config.flags |= direct;
            for _ in 0..3 {
                kernel(come(node, packet.clone()));
            }
        }
    }
    kernel(leave(&a, packet.clone()));
    kernel(leave(&a, packet));
    for node in [&a, &b] {
        assert_eq!(node.counted(Outcome::ConfirmedOut) + node.counted(Outcome::ConfirmedIn), 0);
        assert_eq!(node.peer_counted(1, Traffic::RxKernel), 0);
        assert_eq!(node.peer_counted(2, Traffic::TxKernel), 0);
    }
}

#[test]
fn without_a_tunnel_port_zero_is_no_tunnel() {
    let mut b = node(2);
    b.config.port = super::NO_TUNNEL;
    b.config.flags |= flag::VERIFY_DROP;
    let stranger = Packet::udp(1, 2, &[0; 60]).edit(ETH_LEN, |ip| {
        ip[16..20].copy_from_slice(&underlay(2));
        ip[22..24].fill(0);
    });
    let mut packet = stranger.at(UNDERLAY);
    assert_eq!(from_underlay::run(&mut packet, &b), Verdict::Pass);
    assert_eq!(b.counted(Outcome::ForgedOuterSource), 0);
}

#[test]
fn unresolved_next_hops_are_not_confirmed() {
    let a = node(1);
    a.resolved.set(false);
    kernel(leave(&a, Packet::udp(1, 2, b"x")));
    a.pass_time(SECOND);
    kernel(leave(&a, Packet::udp(1, 2, b"x")));
    assert_eq!(a.counted(Outcome::UnresolvedNextHop), 2);
}

proptest! {
    /// Whatever comes, nothing panics and nothing is dropped.
    #[test]
    fn nothing_is_dropped(bytes in prop::collection::vec(any::<u8>(), 0..100), gso in 0..2_000_u32) {
        let mut bytes = bytes;
        if bytes.len() > 34 {
            bytes[12..14].copy_from_slice(&wire::ETHERTYPE_IPV4);
            bytes[26..30].copy_from_slice(&pod(2));
            bytes[30..34].copy_from_slice(&pod(1));
        }
        let a = node(1);
        let packet = Packet { gso_size: gso, ..Packet::new(bytes, UNDERLAY) };
        prop_assert_ne!(from_underlay::run(&mut packet.clone(), &a), Verdict::Drop);
        prop_assert_eq!(to_underlay::run(&mut packet.clone(), &node(2)), Verdict::Pass);
    }
}
