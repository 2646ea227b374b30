use super::super::fake::*;
use super::super::hook::{from_pod, from_underlay, to_pod};
use super::super::{NextHop, Verdict};
use crate::abi::{Outcome, flag};
use crate::wire::{self, ETH_LEN};

const SYN: u8 = wire::TCP_SYN;
const SYN_ACK: u8 = wire::TCP_SYN | wire::TCP_ACK;

fn node(me: u8) -> Node {
    let mut node = Node::new(me);
    node.config.flags |= flag::EAGER;
    node
}

/// A packet of the client, in connection `number`.
fn ask(number: u8, flags: u8) -> Packet {
    let mut packet = Packet::tcp(1, 2, flags, b"");
    packet.bytes[ETH_LEN + 21] = number;
    packet
}

/// A packet of the service.
fn reply(number: u8, flags: u8) -> Packet {
    let mut packet = Packet::tcp(2, 1, flags, b"");
    packet.bytes.copy_within(ETH_LEN + 20..ETH_LEN + 22, ETH_LEN + 22);
    packet.bytes[ETH_LEN + 20..ETH_LEN + 22].copy_from_slice(&5000_u16.to_be_bytes());
    packet.bytes[ETH_LEN + 23] = number;
    packet
}

/// Two nodes between which a connection was made over the kernel path.
fn known() -> (Node, Node) {
    let (a, b) = (node(1), node(2));
    kernel(receive(&b, kernel(send(&a, ask(1, SYN), 1, 2))));
    kernel(receive(&a, kernel(send(&b, reply(1, SYN_ACK), 2, 1))));
    assert_eq!(a.counted(Outcome::ConfirmedPair), 2);
    assert_eq!(b.counted(Outcome::ConfirmedPair), 2);
    (a, b)
}

fn through(a: &Node, b: &Node, packet: Packet) {
    let (me, to) = if packet.bytes[ETH_LEN + 14] == 1 { (1, 2) } else { (2, 1) };
    let (from, at) = if me == 1 { (a, b) } else { (b, a) };
    let (wire, _) = fast(send(from, packet, me, to));
    fast(receive(at, wire));
}

#[test]
fn the_next_connection_is_carried_from_first_to_last_packet() {
    let (a, b) = known();
    for packet in [
        ask(2, SYN),
        reply(2, SYN_ACK),
        ask(2, 0),
        reply(2, 0),
        ask(2, wire::TCP_FIN),
        reply(2, wire::TCP_FIN),
        ask(2, 0),
        reply(2, wire::TCP_RST),
    ] {
        through(&a, &b, packet);
    }
    for node in [&a, &b] {
        assert_eq!(node.counted(Outcome::OpenedEager), 1);
    }
}

#[test]
fn without_the_option_each_connection_begins_with_the_kernel() {
    let (mut a, _) = known();
    a.config.flags &= !flag::EAGER;
    kernel(send(&a, ask(2, SYN), 1, 2));
    assert_eq!(a.counted(Outcome::OpenedEager), 0);
}

#[test]
fn a_pair_is_one_client_and_one_service() {
    let (a, _) = known();
    let mut other_service = ask(2, SYN);
    other_service.bytes[ETH_LEN + 23] ^= 1;
    let other_client = ask(2, SYN).edit(ETH_LEN, |ip| ip[15] = 9);
    let other_pod = ask(2, SYN).edit(ETH_LEN, |ip| ip[19] = 9);
    for packet in [other_service, other_client, other_pod] {
        kernel(send(&a, packet, 1, 2));
    }
    assert_eq!(a.counted(Outcome::OpenedEager), 0);
}

#[test]
fn a_pair_ends_with_window_and_generation() {
    let (mut a, _) = known();
    a.config.generation += 1;
    kernel(send(&a, ask(2, SYN), 1, 2));
    let (a, _) = known();
    a.pass_time(a.config.window_ns);
    kernel(send(&a, ask(2, SYN), 1, 2));
}

#[test]
fn one_direction_opens_nothing() {
    // The kernel delivered the SYN, and refused or translated the answer.
    let (a, b) = (node(1), node(2));
    kernel(receive(&b, kernel(send(&a, ask(1, SYN), 1, 2))));
    kernel(send(&a, ask(2, SYN), 1, 2));
    assert_eq!(a.counted(Outcome::OpenedEager), 0);
}

#[test]
fn a_syn_that_is_translated_confirms_no_pair() {
    // A service's address becomes a pod's (DNAT), or the pod's the node's (SNAT).
    type Edit = fn(&mut [u8]);
    let edits: [Edit; 3] = [|ip| ip[19] = 99, |ip| ip[15] = 99, |ip| ip[23] = 99];
    for edit in edits {
        let a = node(1);
        let mut packet = ask(1, SYN);
        assert_eq!(from_pod::run(&mut packet, &a), Verdict::Pass);
        kernel(leave(&a, packet.forwarded(vtep(2), vtep(1)).edit(ETH_LEN, edit), 1, 2));
        assert_eq!(a.counted(Outcome::ConfirmedPair), 0);
    }
}

#[test]
fn the_answer_to_a_translated_syn_is_the_kernels() {
    // The pair is known from direct connections; this one came through a
    // service's address, so that its SYN had another tuple at the entry.
    let (a, b) = known();
    let syn = ask(2, SYN).forwarded(vtep(2), vtep(1));
    let wire = kernel(leave(&a, syn, 1, 2));
    fast(receive(&b, wire));
    let (wire, _) = fast(send(&b, reply(2, SYN_ACK), 2, 1));
    // At the client's node the answer has to be translated back, by the kernel
    // first and then as the kernel did it.
    let (data, _) = fast(send(&b, reply(2, 0), 2, 1));
    let mut wire = wire.at(UNDERLAY);
    let inner = match from_underlay::run(&mut wire, &a) {
        Verdict::Pass => wire.decapsulated(),
        Verdict::Ingress { .. } => wire,
        other => panic!("not the kernel path: {other:?}"),
    };
    let delivered = inner.forwarded(POD_MAC, GATEWAY_MAC);
    let mut translated = delivered.snat(SERVICE, 80).at(VETH);
    assert_eq!(to_pod::run(&mut translated, &a), Verdict::Pass);
    let (translated, _) = fast(receive(&a, data));
    assert_eq!(translated.bytes[ETH_LEN + 12..ETH_LEN + 16], SERVICE);
}

#[test]
fn a_running_connection_is_confirmed_like_any_other() {
    let (a, b) = (node(1), node(2));
    let wire = kernel(send(&a, ask(1, 0), 1, 2));
    kernel(receive(&b, wire));
    assert_eq!(a.counted(Outcome::ConfirmedOut), 1);
    kernel(send(&a, ask(1, wire::TCP_FIN), 1, 2));
}

#[test]
fn what_outlives_its_window_meets_the_kernel_but_for_its_end() {
    let (a, b) = known();
    through(&a, &b, ask(2, SYN));
    through(&a, &b, reply(2, SYN_ACK));
    for node in [&a, &b] {
        node.pass_time(node.config.window_ns);
    }
    // The kernel would take these for invalid.
    through(&a, &b, reply(2, wire::TCP_FIN));
    through(&a, &b, ask(2, wire::TCP_FIN));
    kernel(send(&a, ask(2, 0), 1, 2));
    assert_eq!(a.counted(Outcome::KernelExpired), 1);
    // From here on it is the kernel's to end.
    kernel(send(&a, ask(2, wire::TCP_FIN), 1, 2));
}

#[test]
fn the_end_of_a_connection_follows_the_lease_and_the_veth() {
    let (mut a, mut b) = known();
    through(&a, &b, ask(2, SYN));
    for node in [&mut a, &mut b] {
        node.config.generation += 1;
    }
    a.subnets.get_mut(&[10, 5, 2]).unwrap().public_ip = underlay(9);
    let (_, verdict) = fast(send(&a, ask(2, wire::TCP_FIN), 1, 2));
    assert_eq!(
        verdict,
        Verdict::NextHop { ifindex: UNDERLAY, next_hop: NextHop::ipv4(underlay(9)) }
    );
    b.veths.clear();
    let fin = ask(2, wire::TCP_FIN).forwarded(vtep(2), vtep(1)).encapsulated(1, 2);
    let verdict = from_underlay::run(&mut fin.at(UNDERLAY), &b);
    assert!(matches!(verdict, Verdict::Pass | Verdict::Ingress { .. }), "{verdict:?}");
}

#[test]
fn a_forged_syn_ends_nobodys_connection() {
    let (a, b) = known();
    through(&a, &b, ask(2, SYN));
    let forged = ask(2, SYN).forwarded(vtep(2), vtep(1)).encapsulated(9, 2);
    assert_eq!(receive(&b, forged), Way::Dropped);
    through(&a, &b, ask(2, 0));
}

/// A packet of the client to a service's address, which the kernel translates to
/// the pod of the pair.
fn translated(a: &Node, number: u8, flags: u8) {
    let mut packet = ask(number, flags).edit(ETH_LEN, |ip| ip[16..20].copy_from_slice(&SERVICE));
    assert_eq!(from_pod::run(&mut packet, a), Verdict::Pass);
    kernel(leave(a, packet.forwarded(vtep(2), vtep(1)).nat(pod(2), 5000), 1, 2));
}

#[test]
fn direct_connections_beside_translated_ones_begin_with_the_kernel() {
    for flags in [SYN, 0] {
        let (a, b) = known();
        through(&a, &b, ask(2, SYN));
        translated(&a, 9, flags);
        kernel(send(&a, ask(3, SYN), 1, 2));
        assert_eq!(a.counted(Outcome::OpenedEager), 1);
        // Barred while conntrack may remember the translated one.
        a.pass_time(super::BARRED_NS - 1);
        kernel(send(&a, ask(4, SYN), 1, 2));
        a.pass_time(1);
        kernel(send(&a, ask(6, SYN), 1, 2));
        assert_eq!(a.counted(Outcome::ConfirmedPair), 3, "proven again");
    }
}

#[test]
fn a_connection_lasts_no_longer_than_its_pair() {
    let (a, b) = known();
    a.pass_time(a.config.window_ns - 1);
    b.pass_time(b.config.window_ns - 1);
    through(&a, &b, ask(2, SYN));
    a.pass_time(1);
    kernel(send(&a, ask(2, 0), 1, 2));
    assert_eq!(a.counted(Outcome::KernelExpired), 1);
}

#[test]
fn another_pod_opens_nothing_with_this_ones_address() {
    let (a, b) = known();
    let mut spoofed = ask(2, SYN).at(VETH + 1);
    assert_eq!(from_pod::run(&mut spoofed, &a), Verdict::Pass);
    through(&a, &b, ask(3, SYN));
    assert_eq!(a.counted(Outcome::OpenedEager), 1);
}

#[test]
fn a_stream_of_aggregates_ends_on_the_fast_path_too() {
    let (a, b) = known();
    through(&a, &b, ask(2, SYN));
    // The last data and the FIN come as one aggregate, by the device.
    for (flags, gso_size) in [(0, 1), (wire::TCP_FIN, 1), (wire::TCP_FIN, 0)] {
        let (wire, _) = fast(send(&a, Packet { gso_size, ..ask(2, flags) }, 1, 2));
        fast(receive(&b, Packet { gso_size, ..wire }));
    }
    assert_eq!(b.counted(Outcome::FastAggregate), 3);
}

#[test]
fn the_answer_to_a_translated_syn_is_not_taken_for_a_direct_connections() {
    let (a, b) = known();
    through(&a, &b, ask(2, SYN));
    // The same client port, to a service that leads to the same pod.
    translated(&a, 2, SYN);
    let answer = reply(2, SYN_ACK).forwarded(vtep(1), vtep(2)).encapsulated(2, 1);
    kernel(receive(&a, answer));
}
