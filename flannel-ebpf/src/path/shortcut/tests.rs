use super::super::fake::*;
use super::super::hook::{from_overlay, from_underlay};
use super::super::{Traffic, Verdict};
use crate::abi::Outcome;
use crate::wire::{self, ENCAP_LEN, ETH_LEN};

/// Node 2, to which the kernel has delivered a packet through node 1's tunnel.
fn receiver() -> Node {
    let node = Node::new(2);
    assert!(matches!(receive(&node, wire_packet(b"first")), Way::Kernel(_)));
    assert_eq!(node.counted(Outcome::ConfirmedTunnel), 1);
    node
}

/// A packet of node 1's pod as it comes to node 2.
fn wire_packet(payload: &[u8]) -> Packet {
    Packet::udp(1, 2, payload).forwarded(vtep(2), vtep(1)).encapsulated(1, 2)
}

/// The same of another flow.
fn other_flow() -> Packet {
    let mut packet = Packet::udp(1, 2, b"other").forwarded(vtep(2), vtep(1));
    packet.bytes[ETH_LEN + 20] ^= 1;
    packet.encapsulated(1, 2)
}

#[test]
fn what_the_kernel_routes_leaves_like_the_devices_packets() {
    let node = Node::new(1);
    let packet = Packet::udp(1, 2, b"first").forwarded(vtep(2), vtep(1));
    let Way::Shortcut(carried) = leave(&node, packet.clone(), 1, 2) else { panic!() };
    let device = packet.encapsulated(1, 2);
    // All but the MACs, the identification with its checksum, and the port.
    let comparable = |bytes: &[u8]| {
        let mut bytes = bytes[ETH_LEN..].to_vec();
        bytes[4..6].fill(0);
        bytes[10..12].fill(0);
        bytes[20..22].fill(0);
        bytes
    };
    assert_eq!(comparable(&carried.bytes), comparable(&device.bytes));
    assert_eq!(node.counted(Outcome::ShortcutEncap), 1);
    assert_eq!(node.peer_counted(2, Traffic::TxKernel), 1);
}

#[test]
fn the_device_keeps_what_the_programs_would_do_otherwise() {
    let good = Packet::udp(1, 2, b"x").forwarded(vtep(2), vtep(1));
    let mut wrong_vtep = good.clone();
    wrong_vtep.bytes[5] ^= 1;
    let mut foreign_source = good.clone();
    foreign_source.bytes[11] ^= 1;
    let rigid = Packet { rigid: true, ..good.clone() };
    let large = Packet::udp(1, 2, &[0; 1450]).forwarded(vtep(2), vtep(1));
    let fragment = good.clone().edit(ETH_LEN, |ip| ip[6] = 0x20);
    for packet in [wrong_vtep, foreign_source, rigid, large, fragment] {
        let node = Node::new(1);
        assert_eq!(leave(&node, packet.clone(), 1, 2), Way::Kernel(packet.encapsulated(1, 2)));
    }
    let node = Node::new(1);
    node.resolved.set(false);
    assert!(matches!(leave(&node, good, 1, 2), Way::Kernel(_)));
    assert_eq!(node.counted(Outcome::UnresolvedNextHop), 1);
}

#[test]
fn a_new_flow_of_a_confirmed_tunnel_is_received_as_by_the_device() {
    let node = receiver();
    let mut packet = other_flow().at(UNDERLAY);
    assert_eq!(from_underlay::run(&mut packet, &node), Verdict::Ingress { ifindex: OVERLAY });
    assert_eq!(packet.bytes, other_flow().decapsulated().bytes);
    assert_eq!(node.counted(Outcome::ShortcutDecap), 1);
    // It confirms its own flow on its further way.
    assert!(matches!(receive(&node, other_flow()), Way::Shortcut(_)));
    let (_, verdict) = fast(receive(&node, other_flow()));
    assert_eq!(verdict, Verdict::Peer { ifindex: VETH });
}

#[test]
fn a_tunnel_is_confirmed_by_what_comes_out_of_the_device() {
    // The node's firewall drops the outer packets: nothing comes out.
    let node = Node::new(2);
    for _ in 0..3 {
        let mut packet = wire_packet(b"x").at(UNDERLAY);
        assert_eq!(from_underlay::run(&mut packet, &node), Verdict::Pass);
        node.pass_time(10_000_000);
    }
    // Another packet does, from elsewhere.
    let mut other = other_flow().decapsulated().edit(ETH_LEN, |ip| ip[4] ^= 1);
    assert_eq!(from_overlay::run(&mut other, &node), Verdict::Pass);
    assert_eq!(node.counted(Outcome::ConfirmedTunnel), 0);
}

#[test]
fn a_tunnels_confirmation_ends_with_window_and_generation() {
    let node = receiver();
    node.pass_time(node.config.window_ns);
    assert!(matches!(receive(&node, other_flow()), Way::Kernel(_)));
    assert_eq!(node.counted(Outcome::ConfirmedTunnel), 2);
    let mut node = node;
    node.config.generation += 1;
    assert!(matches!(receive(&node, other_flow()), Way::Kernel(_)));
}

#[test]
fn another_peers_tunnel_is_not_this_ones() {
    let node = receiver();
    let mut packet = Packet::udp(3, 2, b"x").forwarded(vtep(2), vtep(3)).encapsulated(3, 2);
    assert_eq!(from_underlay::run(&mut packet.clone().at(UNDERLAY), &node), Verdict::Pass);
    packet = packet.edit(ETH_LEN, |ip| ip[15] = 1);
    // Node 1's address with an inner source of node 3.
    assert_eq!(receive(&node, packet), Way::Dropped);
}

#[test]
fn aggregates_and_what_follows_them_go_through_the_device() {
    let node = receiver();
    let aggregate = Packet { gso_size: 1000, ..other_flow() };
    assert!(matches!(receive(&node, aggregate), Way::Kernel(_)));
    // A confirmed flow with aggregates is sticky; when the kernel has to see it
    // again, in order.
    let flow = wire_packet(b"first");
    receive(&node, Packet { gso_size: 1000, ..flow.clone() });
    let fin = flow.edit(ETH_LEN + ENCAP_LEN, |ip| ip[1] = 0);
    let mut fin = fin.at(UNDERLAY);
    assert_eq!(from_underlay::run(&mut fin, &node), Verdict::Pass);
    assert_eq!(node.counted(Outcome::ShortcutDecap), 0);
}

#[test]
fn handshakes_are_carried_past_the_device() {
    let node = receiver();
    for flags in [wire::TCP_SYN, wire::TCP_FIN, wire::TCP_RST] {
        let packet = Packet::tcp(1, 2, flags, b"").forwarded(vtep(2), vtep(1)).encapsulated(1, 2);
        assert!(matches!(receive(&node, packet), Way::Shortcut(_)));
    }
    assert_eq!(node.counted(Outcome::KernelTcpState), 3);
}
