//! Tickets: whose they are, and what they prove.

use proptest::prelude::*;

use crate::abi::{CARRIED, Outcome, Ticket};
use crate::path::Lookups as _;
use crate::path::fake::*;
use crate::path::hook::{from_overlay, from_pod, from_underlay, to_overlay, to_pod};
use crate::path::{Verdict, ticket};
use crate::wire::ETH_LEN;

/// Lets a pod's packet into the kernel's path of node 1.
fn enter(a: &Node, mut packet: Packet) -> Packet {
    assert_eq!(from_pod::run(&mut packet, a), Verdict::Pass);
    packet
}

fn come_out(a: &Node, packet: Packet) {
    leave(a, packet.forwarded(vtep(2), vtep(1)), 1, 2);
}

fn flow(port: u8) -> Packet {
    let mut packet = Packet::udp(1, 2, b"x");
    packet.bytes[ETH_LEN + 21] = port;
    packet
}

#[test]
fn a_number_from_outside_is_overwritten_at_every_entry() {
    let (a, b) = (Node::new(1), Node::new(2));
    let packets = [Packet::udp(1, 2, b"x"), Packet::udp(1, 2, b"x").edit(ETH_LEN, |ip| ip[9] = 1)];
    for packet in packets {
        let mut out = Packet { ticket: 7, ..packet.clone() };
        from_pod::run(&mut out, &a);
        assert_ne!(out.ticket, 7);
        let mut inwards = Packet { ticket: 7, ..packet.encapsulated(1, 2) };
        from_underlay::run(&mut inwards, &b);
        assert_ne!(inwards.ticket, 7);
    }
    let mut arp = Packet { ticket: 7, ..Packet::udp(1, 2, b"x") };
    arp.bytes[13] = 6;
    from_pod::run(&mut arp, &a);
    assert_eq!(arp.ticket, 0);
}

#[test]
fn another_packets_ticket_proves_nothing() {
    let a = Node::new(1);
    let first = enter(&a, flow(1));
    let second = enter(&a, flow(2).edit(ETH_LEN, |ip| ip[5] = 9));
    assert_ne!(first.ticket, second.ticket);
    come_out(&a, Packet { ticket: first.ticket, ..second });
    for number in [0, 16, first.ticket ^ 32, CARRIED] {
        come_out(&a, Packet { ticket: number, ..first.clone() });
    }
    assert_eq!(a.counted(Outcome::ConfirmedOut), 0);
}

#[test]
fn a_slot_that_was_given_out_again_proves_nothing() {
    let a = Node::new(1);
    let first = enter(&a, flow(1));
    for _ in 1..SLOTS {
        enter(&a, flow(2));
    }
    come_out(&a, first.clone());
    assert_eq!(a.counted(Outcome::ConfirmedOut), 0);
    // When the numbers have come round as well, the flow's hash tells.
    for _ in 1..32 * SLOTS {
        if enter(&a, flow(2)).ticket == first.ticket {
            break;
        }
    }
    come_out(&a, first);
    assert_eq!(a.counted(Outcome::ConfirmedOut), 0);
}

#[test]
fn a_flow_waits_until_its_last_packet_is_out() {
    let a = Node::new(1);
    let burst: Vec<Packet> = (0..3).map(|_| enter(&a, flow(1))).collect();
    let other = enter(&a, flow(2));
    for (number, packet) in burst.into_iter().enumerate() {
        come_out(&a, packet);
        assert_eq!(a.counted(Outcome::RefusedOrder), [1, 2, 2][number]);
    }
    assert_eq!(a.counted(Outcome::ConfirmedOut), 1);
    come_out(&a, other);
    assert_eq!(a.counted(Outcome::ConfirmedOut), 2);
}

#[test]
fn a_known_flow_waits_for_packets_of_other_cpus() {
    let a = Node::new(1);
    kernel(send(&a, flow(1), 1, 2));
    fast(send(&a, flow(1), 1, 2));
    a.pass_time(a.config.window_ns);
    let first = enter(&a, flow(1));
    a.cpu.set(1);
    let second = enter(&a, flow(1));
    come_out(&a, first);
    assert_eq!(a.counted(Outcome::RefusedOrder), 1);
    // The sender moves back: its last packet that comes out confirms the flow.
    a.cpu.set(0);
    let third = enter(&a, flow(1));
    come_out(&a, second);
    assert_eq!(a.counted(Outcome::RefusedOrder), 2);
    come_out(&a, third);
    fast(send(&a, flow(1), 1, 2));
}

#[test]
fn a_tunnel_waits_until_its_last_packet_is_out() {
    let b = Node::new(2);
    let enter = |port| {
        let mut packet = flow(port).forwarded(vtep(2), vtep(1)).encapsulated(1, 2);
        assert_eq!(from_underlay::run(&mut packet, &b), Verdict::Pass);
        packet.decapsulated()
    };
    let (first, second) = (enter(1), enter(2));
    let come_out = |mut packet: Packet| {
        from_overlay::run(&mut packet, &b);
    };
    come_out(first);
    assert_eq!(b.counted(Outcome::ConfirmedTunnel), 0);
    come_out(second);
    assert_eq!(b.counted(Outcome::ConfirmedTunnel), 1);
}

#[test]
fn the_window_counts_from_the_entry() {
    let a = Node::new(1);
    let packet = enter(&a, flow(1));
    a.pass_time(ticket::LIFE_NS - 1);
    come_out(&a, packet);
    a.pass_time(a.config.window_ns - ticket::LIFE_NS);
    fast(send(&a, flow(1), 1, 2));
    a.pass_time(1);
    kernel(send(&a, flow(1), 1, 2));
}

#[test]
fn udp_has_a_window_of_its_own() {
    let mut a = Node::new(1);
    a.config.udp_window_ns = SECOND;
    let tcp = Packet::tcp(1, 2, 0, b"x");
    for packet in [flow(1), tcp.clone()] {
        kernel(send(&a, packet, 1, 2));
    }
    a.pass_time(SECOND);
    kernel(send(&a, flow(1), 1, 2));
    fast(send(&a, tcp, 1, 2));
}

#[test]
fn a_spoofing_pod_neither_takes_a_flow_over_nor_holds_it_off() {
    let mut a = Node::new(1);
    a.veths.insert(VETH + 1, a.veths[&VETH]);
    kernel(send(&a, Packet::tcp(1, 2, 0, b"x"), 1, 2));
    // Every kind of packet, each delivered by the kernel.
    for flags in [0, crate::wire::TCP_SYN, crate::wire::TCP_RST, crate::wire::TCP_FIN] {
        let mut spoofed = Packet::tcp(1, 2, flags, b"x").at(VETH + 1);
        assert_eq!(from_pod::run(&mut spoofed, &a), Verdict::Pass);
        let mut spoofed = spoofed.forwarded(vtep(2), vtep(1)).at(OVERLAY);
        to_overlay::run(&mut spoofed, &a);
        fast(send(&a, Packet::tcp(1, 2, 0, b"x"), 1, 2));
    }
    assert_eq!(a.counted(Outcome::RefusedSender), 1);
    assert_eq!(a.counted(Outcome::ConfirmedOut), 1);
}

#[test]
fn a_moved_pod_is_confirmed_at_its_new_place_after_the_window() {
    let mut a = Node::new(1);
    a.veths.insert(VETH + 1, a.veths[&VETH]);
    kernel(send(&a, flow(1), 1, 2));
    a.pass_time(a.config.window_ns);
    let mut moved = flow(1).at(VETH + 1);
    from_pod::run(&mut moved, &a);
    come_out(&a, moved);
    let mut next = flow(1).at(VETH + 1);
    assert!(matches!(from_pod::run(&mut next, &a), Verdict::NextHop { .. }));
}

#[test]
fn an_exit_of_the_other_direction_is_no_exit() {
    let a = Node::new(1);
    let packet = enter(&a, flow(1)).forwarded(POD_MAC, GATEWAY_MAC);
    to_pod::run(&mut packet.at(VETH), &a);
    assert!(a.flows.borrow().is_empty());
}

#[test]
fn an_empty_slot_is_no_ticket() {
    let a = Node::new(1);
    let packet = enter(&a, flow(1));
    assert_eq!(a.ticket(u32::from(packet.ticket) + 1).copied(), Some(Ticket::default()));
    come_out(&a, Packet { ticket: packet.ticket + 1, ..packet });
    assert!(a.flows.borrow().is_empty());
}

/// Single bytes of a packet, most of them of its headers.
fn edits() -> impl Strategy<Value = Vec<(usize, u8)>> {
    proptest::collection::vec((prop_oneof![4 => 0..60_usize, 1 => 0..400_usize], any::<u8>()), 0..5)
}

proptest! {
    #[test]
    fn exits_let_everything_through(
        steps in proptest::collection::vec(
            (any::<bool>(), edits(), edits(), 0..200_usize, 0..3_u16, 0..6_000_u64, any::<u16>()),
            1..20,
        ),
    ) {
        walk(steps.into_iter().map(|(inwards, before, after, length, number, stays, other)| Step {
            inwards,
            flags: Some(0),
            before,
            after,
            length: if length < 150 { usize::MAX } else { length - 150 },
            stays: stays * 1_000_000,
            wrong_by: if number == 0 { other } else { number - 1 },
        }));
    }
}
