use proptest::prelude::*;

use super::*;
use crate::abi::{action, closing, state};
use crate::path::fake::*;
use crate::path::hook::from_underlay;

/// Node 2 with XDP.
fn node() -> Node {
    let mut node = Node::new(2);
    node.config.flags |= flag::XDP;
    node
}

/// A packet of node 1's pod as it comes to node 2.
fn arriving(packet: Packet) -> Packet {
    packet.forwarded(vtep(2), vtep(1)).encapsulated(1, 2)
}

/// Runs the XDP half; what XDP_PASS leaves.
fn at_the_wire(node: &Node, mut packet: Packet) -> Packet {
    assert_eq!(run(&mut packet, node), Verdict::Pass);
    packet
}

/// Node 2 to which the kernel has delivered `packet`; what its pod got.
fn confirmed_by(packet: &Packet) -> (Node, Packet) {
    let node = node();
    let untouched = at_the_wire(&node, packet.clone());
    assert_eq!(untouched, *packet);
    let delivered = kernel(receive(&node, untouched));
    assert_eq!(node.counted(Outcome::ConfirmedIn), 1);
    (node, delivered)
}

fn stripped(node: &Node, packet: &Packet) -> bool {
    let passed = at_the_wire(node, packet.clone());
    assert!(passed.handover.is_some() || passed == *packet, "neither stripped nor untouched");
    passed.handover.is_some()
}

fn flows(node: &Node, change: impl Fn(&mut Flow)) {
    for flow in node.flows.borrow_mut().values_mut() {
        if flow.state == state::CONFIRMED {
            change(flow);
        }
    }
}

#[test]
fn a_confirmed_packet_arrives_as_the_kernel_delivers_it() {
    for packet in [Packet::udp(1, 2, b"data"), Packet::tcp(1, 2, wire::TCP_ACK, b"data")] {
        let packet = arriving(packet);
        let (node, delivered) = confirmed_by(&packet);
        let passed = at_the_wire(&node, packet.clone());
        assert_eq!(passed.bytes, packet.clone().decapsulated().bytes, "as the device receives it");
        assert!(!passed.to_us, "the host's stack would drop it");
        let (pod, verdict) = fast(receive(&node, passed));
        assert_eq!(verdict, Verdict::Peer { ifindex: VETH });
        assert_eq!(pod.bytes, delivered.bytes);
        assert!(pod.to_us && pod.handover.is_none());
        assert_eq!(node.counted(Outcome::FastXdp), 1);
        assert_eq!(node.counted(Outcome::FastDecap), 0);
        assert_eq!(node.peer_counted(1, Traffic::RxFast), 1);
    }
}

#[test]
fn a_veth_with_a_qdisc_gets_it_through_its_egress() {
    let packet = arriving(Packet::udp(1, 2, b"data"));
    let (node, _) = confirmed_by(&packet);
    flows(&node, |flow| flow.action = action::EGRESS);
    let (_, verdict) = fast(receive(&node, at_the_wire(&node, packet)));
    assert_eq!(verdict, Verdict::Egress { ifindex: VETH });
}

#[test]
fn an_aggregate_of_stripped_packets_is_handed_on_whole() {
    let packet = arriving(Packet::tcp(1, 2, wire::TCP_ACK, &[7; 1000]));
    let (node, _) = confirmed_by(&packet);
    let mut merged = at_the_wire(&node, packet);
    merged.bytes.extend([7; 9000]);
    merged.gso_size = 1000;
    let merged = merged.edit(ETH_LEN, |ip| ip[2..4].copy_from_slice(&10_040_u16.to_be_bytes()));
    let (pod, verdict) = fast(receive(&node, merged));
    assert_eq!(verdict, Verdict::Peer { ifindex: VETH });
    assert_eq!((pod.bytes.len(), pod.bytes[ETH_LEN + 8]), (10_054, 62));
    let header: [u8; 20] = pod.bytes[ETH_LEN..ETH_LEN + 20].try_into().unwrap();
    let mut header = wire::ipv4(header);
    let check = std::mem::take(&mut header.check);
    assert_eq!(check, wire::ipv4_checksum(&header));
}

#[test]
fn what_begins_or_ends_a_connection_is_left_to_tc() {
    let data = arriving(Packet::tcp(1, 2, wire::TCP_ACK, b"data"));
    for flags in [wire::TCP_SYN, wire::TCP_FIN, wire::TCP_RST, wire::TCP_SYN | wire::TCP_ACK] {
        let (node, _) = confirmed_by(&data);
        assert!(!stripped(&node, &arriving(Packet::tcp(1, 2, flags, b""))), "{flags:#x}");
        assert!(stripped(&node, &data), "{flags:#x}: XDP changes no table");
    }
    let (node, _) = confirmed_by(&data);
    let mut without_ack = data.clone();
    without_ack.bytes[INNER_L3 + IPV4_LEN + 13] = 0;
    assert!(!stripped(&node, &without_ack));
    // The answer to a FIN of the other side is the kernel's too.
    let (node, _) = confirmed_by(&data);
    flows(&node, |flow| flow.closing = closing::LAST);
    assert!(!stripped(&node, &data));
}

#[test]
fn what_is_not_confirmed_for_this_packet_passes_untouched() {
    let packet = arriving(Packet::udp(1, 2, b"data"));
    type Change = fn(&mut Flow);
    let changes: [(&str, Change); 7] = [
        ("a note", |flow| flow.state = state::KEPT),
        ("its time is over", |flow| flow.time_ns = SECOND),
        ("another generation", |flow| flow.generation += 1),
        ("another outer source", |flow| flow.peer_ip = underlay(3)),
        ("another station", |flow| flow.entry_mac = [2; 6]),
        ("aggregates are under way", |flow| flow.sticky_ns = 2 * SECOND),
        ("too large", |flow| flow.max_len = 31),
    ];
    for (name, change) in changes {
        let (node, _) = confirmed_by(&packet);
        assert!(stripped(&node, &packet), "{name}: before");
        flows(&node, change);
        assert!(!stripped(&node, &packet), "{name}");
    }
}

#[test]
fn what_the_kernel_would_not_take_as_it_is_passes_untouched() {
    let packet = arriving(Packet::udp(1, 2, b"data"));
    let (node, _) = confirmed_by(&packet);
    let outer = |edit: fn(&mut [u8])| packet.clone().edit(ETH_LEN, edit);
    let inner = |edit: fn(&mut [u8])| packet.clone().edit(INNER_L3, edit);
    let at = |offset: usize, value: u8| {
        let mut packet = packet.clone();
        packet.bytes[offset] = value;
        packet
    };
    let mut padded = packet.clone();
    padded.bytes.push(0);
    let cases = [
        ("not IPv4", at(12, 0x86)),
        ("options", outer(|ip| ip[0] = 0x46)),
        ("fragment", outer(|ip| ip[6] = 0x20)),
        ("not UDP", outer(|ip| ip[9] = 47)),
        ("not to us", outer(|ip| ip[19] = 9)),
        ("congestion", outer(|ip| ip[1] = 3)),
        ("outer length", outer(|ip| ip[3] ^= 1)),
        ("port", at(L4 + 3, 1)),
        ("no VNI", at(L4 + UDP_LEN, 0)),
        ("another VNI", at(L4 + UDP_LEN + 6, 2)),
        ("another VTEP", at(tunnel::INNER_ETH + 5, 9)),
        ("inner ARP", at(INNER_L3 - 1, 6)),
        ("inner options", inner(|ip| ip[0] = 0x46)),
        ("inner fragment", inner(|ip| ip[6] = 0x20)),
        ("inner TTL", inner(|ip| ip[8] = 1)),
        ("inner protocol", inner(|ip| ip[9] = 1)),
        ("beyond our subnet", inner(|ip| ip[18] = 9)),
        ("inner length", inner(|ip| ip[3] ^= 1)),
        ("padding", padded),
    ];
    for (name, case) in cases {
        assert!(!stripped(&node, &case), "{name}");
    }
    assert!(stripped(&node, &packet));
    // A driver without metadata.
    assert!(!stripped(&node, &Packet { rigid: true, ..packet }));
}

#[test]
fn settings_decide() {
    let udp = arriving(Packet::udp(1, 2, b"data"));
    let tcp = arriving(Packet::tcp(1, 2, wire::TCP_ACK, b"data"));
    let (mut node, _) = confirmed_by(&udp);
    kernel(receive(&node, tcp.clone()));
    let all = node.config.flags;
    for (flags, expected) in [
        (all, [true, true]),
        (all & !flag::TCP, [true, false]),
        (all & !flag::FAST_PATH, [false, false]),
        (all & !flag::XDP, [false, false]),
    ] {
        node.config.flags = flags;
        assert_eq!([stripped(&node, &udp), stripped(&node, &tcp)], expected, "{flags:#x}");
    }
    node.config.flags = all;
    node.config.port = NO_TUNNEL;
    assert!(!stripped(&node, &udp));
}

#[test]
fn the_kernel_decides_anew_about_what_was_stripped_before_a_change() {
    let packet = arriving(Packet::udp(1, 2, b"data"));
    let (mut node, _) = confirmed_by(&packet);
    let passed = at_the_wire(&node, packet.clone());
    node.config.generation += 1;
    let Way::Shortcut(delivered) = receive(&node, passed) else { panic!() };
    assert_eq!(delivered.bytes[ETH_LEN + 8], 62);
    assert_eq!(node.counted(Outcome::ShortcutDecap), 1);
    assert_eq!(node.counted(Outcome::KernelGeneration), 1);
    assert_eq!(node.counted(Outcome::FastXdp), 0);
}

#[test]
fn a_stripped_packet_with_a_vlan_tag_is_dropped_and_counted() {
    let packet = arriving(Packet::udp(1, 2, b"data"));
    let (node, _) = confirmed_by(&packet);
    let passed = Packet { tagged: true, ..at_the_wire(&node, packet) };
    assert_eq!(receive(&node, passed), Way::Dropped);
    assert_eq!(node.counted(Outcome::DropTagged), 1);
}

#[test]
fn a_stripped_packet_that_lost_its_header_is_dropped_and_counted() {
    let packet = arriving(Packet::udp(1, 2, b"data"));
    let (node, _) = confirmed_by(&packet);
    let mut passed = at_the_wire(&node, packet);
    passed.bytes.truncate(ETH_LEN);
    assert_eq!(from_underlay::run(&mut passed, &node), Verdict::Drop);
    assert_eq!(node.counted(Outcome::DropBroken), 1);
}

#[test]
fn headers_that_are_gone_without_a_word_drop_the_packet() {
    let packet = arriving(Packet::udp(1, 2, b"data"));
    let (node, _) = confirmed_by(&packet);
    let mut packet = Packet { forgetful: true, ..packet };
    assert_eq!(run(&mut packet, &node), Verdict::Drop);
    assert_eq!(node.counted(Outcome::DropBroken), 1);
}

#[test]
fn an_aggregate_keeps_its_flow_from_xdp_for_a_moment_only() {
    let packet = arriving(Packet::tcp(1, 2, wire::TCP_ACK, &[7; 100]));
    let (node, _) = confirmed_by(&packet);
    let aggregate = Packet { gso_size: 50, ..packet.clone() };
    fast(receive(&node, aggregate.clone()));
    assert_eq!(node.counted(Outcome::FastAggregate), 1);
    assert!(!stripped(&node, &packet), "it would overtake the aggregate");
    // More of them do not make it longer.
    node.pass_time(SETTLE_NS - 1);
    fast(receive(&node, aggregate.clone()));
    assert!(!stripped(&node, &packet));
    node.pass_time(1);
    assert!(stripped(&node, &packet));
    kernel(receive(&node, aggregate));
    assert!(stripped(&node, &packet));
}

proptest! {
    #[test]
    fn any_bytes_pass_untouched_or_are_stripped(
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        edits in proptest::collection::vec((0..100_usize, any::<u8>()), 0..6),
        length in 0..200_usize,
    ) {
        let good = arriving(Packet::udp(1, 2, &payload));
        let (node, _) = confirmed_by(&good);
        let mut packet = good;
        for (offset, value) in edits {
            if let Some(byte) = packet.bytes.get_mut(offset) {
                *byte = value;
            }
        }
        packet.bytes.truncate(length);
        let before = node.flows.borrow().clone();
        stripped(&node, &packet);
        prop_assert_eq!(before, node.flows.borrow().clone(), "XDP changes no table");
    }
}
