//! Treatments: what the kernel did to a flow's packet is done to the next ones.

use proptest::prelude::*;

use crate::abi::{Outcome, flag};
use crate::path::fake::*;
use crate::path::hook::{from_overlay, from_pod, from_underlay, to_pod};
use crate::path::{NextHop, Verdict};
use crate::wire::{self, ENCAP_LEN, ETH_LEN};

const INNER: usize = ETH_LEN + ENCAP_LEN;

/// What a node's kernel does to a packet besides routing it.
type Kernel = dyn Fn(Packet) -> Packet;

/// A packet of node 1's pod through its node, whose kernel treats it.
fn outwards(a: &Node, packet: Packet, kernel: &Kernel) -> Way {
    let mut packet = packet.at(VETH);
    match from_pod::run(&mut packet, a) {
        Verdict::Pass => {}
        Verdict::Drop => return Way::Dropped,
        verdict => return Way::Fast(packet.at(UNDERLAY), verdict),
    }
    leave(a, kernel(packet.forwarded(vtep(2), vtep(1))), 1, 2)
}

/// A tunnel packet of node 1 into node 2's pod, likewise.
fn inwards(b: &Node, packet: Packet, kernel: &Kernel) -> Way {
    let mut packet = packet.at(UNDERLAY);
    let mut packet = match from_underlay::run(&mut packet, b) {
        Verdict::Pass => packet.decapsulated(),
        Verdict::Ingress { ifindex } => packet.at(ifindex),
        Verdict::Drop => return Way::Dropped,
        verdict => return Way::Fast(packet.at(VETH), verdict),
    };
    match from_overlay::run(&mut packet, b) {
        Verdict::Pass => {}
        verdict => return Way::Fast(packet.at(VETH), verdict),
    }
    let mut packet = kernel(packet.forwarded(POD_MAC, GATEWAY_MAC)).at(VETH);
    assert_eq!(to_pod::run(&mut packet, b), Verdict::Pass);
    Way::Kernel(packet)
}

fn to_service(packet: Packet) -> Packet {
    packet.nat(SERVICE, 80)
}

/// The inner packet without what differs by nature.
fn inner(packet: &Packet) -> Vec<u8> {
    packet.bytes[INNER..].to_vec()
}

/// Lets a translated datagram be seen a second time.
fn twice(a: &Node, packet: &Packet, kernel: &Kernel) {
    if a.counted(Outcome::ConfirmedOut) == 0 {
        assert_eq!(packet.bytes[ETH_LEN + 9], wire::UDP);
        outwards(a, packet.clone(), kernel);
    }
}

/// Sends packets outwards: the last, which goes on the fast path, has to
/// look like what the kernel made of the first.
#[track_caller]
fn same_both_ways(packet: &Packet, kernel: &Kernel) -> Packet {
    let a = Node::new(1);
    let Way::Shortcut(slow) = outwards(&a, packet.clone(), kernel) else { panic!() };
    twice(&a, packet, kernel);
    let (carried, _) = fast(outwards(&a, packet.clone(), kernel));
    assert_eq!(inner(&carried), inner(&slow));
    assert_eq!((carried.mark, carried.priority), (slow.mark, slow.priority));
    carried
}

#[test]
fn a_services_flow_is_translated_there_and_back() {
    for packet in [Packet::udp(1, 2, b"data"), Packet::tcp(1, 2, 0, b"data")] {
        let packet = to_service(packet);
        let carried = same_both_ways(&packet, &|packet| packet.nat(pod(2), 7003));
        assert_eq!(carried.bytes[INNER + 16..INNER + 20], pod(2));
        // The answer, translated back.
        let answer = carried.encapsulated_answer();
        let b = Node::new(2);
        let back: &Kernel = &|packet| packet.snat(SERVICE, 80);
        let slow = kernel(inwards(&b, answer.clone(), back));
        if b.counted(Outcome::ConfirmedIn) == 0 {
            inwards(&b, answer.clone(), back);
        }
        let (delivered, _) = fast(inwards(&b, answer, back));
        assert_eq!(delivered.bytes, slow.bytes);
        assert_eq!(b.counted(Outcome::ConfirmedTranslated), 1);
    }
}

/// What the kernel cuts off an aggregate first, before a device that cannot.
fn first_segment(mut packet: Packet) -> Packet {
    let len = 28 + packet.gso_size as u16;
    packet.gso_size = 0;
    packet.bytes.truncate(ETH_LEN + usize::from(len));
    packet.edit(ETH_LEN, |ip| {
        ip[2..4].copy_from_slice(&len.to_be_bytes());
        ip[24..26].copy_from_slice(&(len - 20).to_be_bytes());
        ip[26..28].copy_from_slice(&[0x12, 0x34]);
    })
}

#[test]
fn the_first_segment_of_an_aggregate_proves_its_flow() {
    let aggregate = |gso_size| {
        let packet = Packet::udp(1, 2, &[7; 300]).forwarded(vtep(2), vtep(1));
        Packet { gso_size, ..packet.encapsulated(1, 2) }
    };
    let other_id = |packet| first_segment(packet).edit(ETH_LEN, |ip| ip[5] ^= 1);
    let translated = |packet| first_segment(packet).nat(pod(2), 7003);
    let cases: [(u32, &Kernel, bool); 4] = [
        (100, &first_segment, true),
        (100, &other_id, false),
        (100, &translated, false),
        // No aggregate: nothing cuts it.
        (0, &|packet| first_segment(Packet { gso_size: 100, ..packet }), false),
    ];
    for (gso_size, kernel, proves) in cases {
        let b = Node::new(2);
        inwards(&b, aggregate(gso_size), kernel);
        assert_eq!(b.counted(Outcome::ConfirmedIn) == 1, proves, "{gso_size} {proves}");
        assert_eq!(b.counted(Outcome::RefusedChanged) == 1, !proves, "{gso_size} {proves}");
    }
}

#[test]
fn masquerade_and_both_at_once_are_repeated() {
    let packet = Packet::tcp(1, 2, 0, b"data");
    let node = [10, 5, 1, 0];
    same_both_ways(&packet, &move |packet| packet.snat(node, 61_000));
    same_both_ways(&packet, &move |packet| packet.snat(node, 4000));
    same_both_ways(&to_service(packet), &move |packet| packet.nat(pod(2), 7003).snat(node, 61_000));
}

#[test]
fn checksums_that_the_device_completes_and_none_are_kept_right() {
    let mut partial = to_service(Packet::tcp(1, 2, 0, b"data"));
    partial.partial = true;
    same_both_ways(&partial, &|packet| packet.nat(pod(2), 7003));
    let mut none = to_service(Packet::udp(1, 2, b"data"));
    none.bytes[ETH_LEN + 26..ETH_LEN + 28].fill(0);
    let carried = same_both_ways(&none, &|packet| packet.nat(pod(2), 7003));
    assert_eq!(carried.bytes[INNER + 26..INNER + 28], [0, 0]);
}

#[test]
fn dscp_mark_and_priority_are_repeated() {
    let packet = Packet::udp(1, 2, b"x").edit(ETH_LEN, |ip| ip[1] = 2);
    let carried = same_both_ways(&packet, &|packet| {
        let mut packet = packet.edit(ETH_LEN, |ip| ip[1] = 0xb8 | ip[1] & 3);
        (packet.mark, packet.priority) = (0x4000, 0x1_0020);
        packet
    });
    assert_eq!(carried.bytes[INNER + 1], 0xba);
    assert_eq!((carried.mark, carried.priority), (0x4000, 0x1_0020));
}

#[test]
fn another_dscp_is_the_kernels_to_treat() {
    {
        let a = Node::new(1);
        let plain = Packet::udp(1, 2, b"x");
        let other = plain.clone().edit(ETH_LEN, |ip| ip[1] = 0x10);
        kernel(send(&a, plain.clone(), 1, 2));
        kernel(send(&a, other.clone(), 1, 2));
        assert_eq!(a.counted(Outcome::KernelDiffers), 1);
        // It leaves the proof as it is; ECN makes no difference.
        fast(send(&a, plain.clone().edit(ETH_LEN, |ip| ip[1] = 2), 1, 2));
        // When it has stood for a moment, it is replaced.
        a.pass_time(SECOND / 20);
        kernel(send(&a, other.clone(), 1, 2));
        fast(send(&a, other, 1, 2));
        kernel(send(&a, plain, 1, 2));
    }
}

#[test]
fn the_tunnel_carries_marks_where_it_should() {
    for (flags, flags_on_the_wire) in [(flag::GBP, [0x88, 0x08, 0x12, 0x34]), (0, [0x08, 0, 0, 0])]
    {
        let mut a = Node::new(1);
        a.config.flags |= flags;
        let mark: &Kernel = &|packet| Packet { mark: 0x0008_1234, ..packet };
        let Way::Shortcut(slow) = outwards(&a, Packet::udp(1, 2, b"x"), mark) else { panic!() };
        let (carried, _) = fast(outwards(&a, Packet::udp(1, 2, b"x"), mark));
        for packet in [slow, carried] {
            assert_eq!(packet.bytes[ETH_LEN + 28..ETH_LEN + 32], flags_on_the_wire);
        }
    }
}

#[test]
fn a_connection_to_a_service_ends_with_both_its_flows() {
    let back: &Kernel = &|packet| packet.snat(SERVICE, 80);
    // Node 2 in both roles: its pod is the client of a service on node 1.
    let b = Node::new(2);
    let ask = |flags| to_service(Packet::tcp(2, 1, flags, b""));
    let asked = |flags| {
        let mut packet = ask(flags).at(VETH);
        assert_eq!(from_pod::run(&mut packet, &b), Verdict::Pass);
        let packet = packet.forwarded(vtep(1), vtep(2)).nat(pod(1), 7003);
        leave(&b, packet, 2, 1)
    };
    let answered = |flags| {
        let reply = Packet::tcp(1, 2, flags, b"");
        let mut reply = reply.forwarded(vtep(2), vtep(1));
        reply.bytes[ETH_LEN + 20..ETH_LEN + 24].copy_from_slice(&[0x1b, 0x5b, 0x0f, 0xa0]);
        inwards(&b, reply.encapsulated(1, 2), back)
    };
    asked(0);
    kernel(answered(0));
    assert_eq!(b.counted(Outcome::ConfirmedTranslated), 2);
    asked(wire::TCP_FIN);
    kernel(answered(wire::TCP_FIN));
    asked(0);
    let left = b.flows.borrow().keys().filter(|key| key.proto == wire::TCP).count();
    assert_eq!(left, 0, "flows of a connection that has ended");
}

#[test]
fn an_unconfirmed_packet_to_the_outside_is_told_apart() {
    let a = Node::new(1);
    let mut packet = to_service(Packet::udp(1, 2, b"x"));
    assert_eq!(from_pod::run(&mut packet, &a), Verdict::Pass);
    assert_eq!(a.counted(Outcome::KernelBeyond), 1);
}

#[test]
fn another_card_and_a_smaller_path_mtu_are_the_kernels_choice() {
    let a = Node::new(1);
    a.way_out.set(9);
    a.path_mtu.set(1400);
    kernel(send_by(&a, Packet::udp(1, 2, b"x")));
    let mut next = Packet::udp(1, 2, b"x");
    let verdict = from_pod::run(&mut next, &a);
    assert_eq!(verdict, Verdict::NextHop { ifindex: 9, next_hop: NextHop::ipv4(underlay(2)) });
    let mut large = Packet::udp(1, 2, &[0; 1400 - 50 - 28 + 1]);
    assert_eq!(from_pod::run(&mut large, &a), Verdict::Pass);
    assert_eq!(a.counted(Outcome::KernelTooBig), 1);
    // ICMP tells of a router with a smaller MTU.
    a.raise();
    let mut next = Packet::udp(1, 2, b"x");
    assert_eq!(from_pod::run(&mut next, &a), Verdict::Pass);
    assert_eq!(a.counted(Outcome::KernelGeneration), 1);
}

/// Through node 1, out of whatever interface.
fn send_by(a: &Node, packet: Packet) -> Way {
    let mut packet = packet.at(VETH);
    assert_eq!(from_pod::run(&mut packet, a), Verdict::Pass);
    let mut packet = packet.forwarded(vtep(2), vtep(1)).at(OVERLAY);
    crate::path::hook::to_overlay::run(&mut packet, a);
    Way::Kernel(packet)
}

#[test]
fn routers_words_end_what_was_confirmed_before() {
    let a = Node::new(1);
    let before = a.epoch.get();
    for (kind, code, heard) in [(3, 4, true), (5, 1, true), (3, 3, false), (8, 0, false)] {
        let heard_before = a.epoch.get();
        let mut icmp = Packet::udp(2, 1, b"xxxx").edit(ETH_LEN, |ip| {
            ip[9] = 1;
            ip[16..20].copy_from_slice(&underlay(1));
            ip[20] = kind;
            ip[21] = code;
        });
        icmp.ifindex = UNDERLAY;
        assert_eq!(from_underlay::run(&mut icmp, &a), Verdict::Pass);
        assert_eq!(a.epoch.get() != heard_before, heard, "{kind}/{code}");
    }
    assert_eq!(a.epoch.get(), before + 2);
}

proptest! {
    /// Whatever netfilter translates, the fast path makes the same bytes of it.
    #[test]
    fn translations_are_repeated_byte_for_byte(
        payload in proptest::collection::vec(any::<u8>(), 0..1300),
        tcp in any::<bool>(),
        partial in any::<bool>(),
        source in any::<Option<(u8, u16)>>(),
        port in any::<u16>(),
        dscp in any::<Option<u8>>(),
    ) {
        let packet = if tcp { Packet::tcp(1, 2, 0, &payload) } else { Packet::udp(1, 2, &payload) };
        let packet = Packet { partial, ..to_service(packet) };
        let kernel = move |packet: Packet| {
            let packet = packet.nat(pod(2), port);
            let packet = match source {
                Some((host, port)) => packet.snat([192, 0, 2, host], port),
                None => packet,
            };
            match dscp {
                Some(dscp) => packet.edit(ETH_LEN, |ip| ip[1] = dscp & !3),
                None => packet,
            }
        };
        let carried = same_both_ways(&packet, &kernel);
        let header: [u8; 20] = carried.bytes[INNER..INNER + 20].try_into().unwrap();
        let header = wire::ipv4(header);
        prop_assert_eq!(wire::ipv4_checksum(&header), header.check);
    }
}

#[test]
fn a_translated_datagram_is_seen_twice_before_its_flow_is_confirmed() {
    let a = Node::new(1);
    let packet = to_service(Packet::udp(1, 2, b"x"));
    let to = |port: u16| move |packet: Packet| packet.nat(pod(2), port);
    for port in [7003, 7004] {
        kernel(outwards(&a, packet.clone(), &to(port)));
    }
    assert_eq!(a.counted(Outcome::ConfirmedTranslated), 0, "twice, but not the same");
    kernel(outwards(&a, packet.clone(), &to(7004)));
    fast(outwards(&a, packet.clone(), &to(7004)));
    // Once proven, one packet is enough for another window.
    a.pass_time(a.config.window_ns);
    kernel(outwards(&a, packet.clone(), &to(7004)));
    fast(outwards(&a, packet, &to(7004)));
}

#[test]
fn a_new_connection_gets_no_answer_by_the_treatment_of_an_old_one() {
    // A direct connection, both of whose flows are confirmed, is left as it is.
    let b = Node::new(2);
    let direct = |flags| Packet::tcp(2, 1, flags, b"");
    let answer = |flags| {
        let mut reply = Packet::tcp(1, 2, flags, b"").forwarded(vtep(2), vtep(1));
        reply.bytes[ETH_LEN + 20..ETH_LEN + 24].rotate_left(2);
        reply.encapsulated(1, 2)
    };
    kernel(send(&b, direct(0), 2, 1));
    kernel(receive(&b, answer(0)));
    fast(receive(&b, answer(0)));
    // The same client port, to a service that leads to the same pod. The pod still
    // knows the old connection, and answers its SYN without one.
    let mut syn = direct(wire::TCP_SYN).edit(ETH_LEN, |ip| ip[16..20].copy_from_slice(&SERVICE));
    assert_eq!(from_pod::run(&mut syn, &b), Verdict::Pass);
    leave(&b, syn.forwarded(vtep(1), vtep(2)).nat(pod(1), 5000), 2, 1);
    kernel(receive(&b, answer(0)));
}
