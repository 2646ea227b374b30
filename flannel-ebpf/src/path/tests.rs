//! The life of flows over two nodes, and what must never be taken for one.

mod ends;
mod guards;
mod tickets;
mod treatments;
mod ways;
mod wrong;

use proptest::prelude::*;

use super::fake::*;
use super::hook::{from_overlay, from_pod, from_underlay, to_overlay, to_pod};
use super::{NextHop, Traffic, Verdict};
use crate::abi::{Outcome, flag};
use crate::wire::{self, ENCAP_LEN, ETH_LEN};

/// Inner IPv4 header in a tunnel packet.
const INNER: usize = ETH_LEN + ENCAP_LEN;

/// Two nodes between which the flow of `packet` is confirmed both at its
/// sender and its receiver.
fn confirmed(packet: &Packet) -> (Node, Node) {
    let (a, b) = (Node::new(1), Node::new(2));
    let wire = kernel(send(&a, packet.clone(), 1, 2));
    kernel(receive(&b, wire));
    assert_eq!(a.counted(Outcome::ConfirmedOut), 1);
    assert_eq!(b.counted(Outcome::ConfirmedIn), 1);
    (a, b)
}

#[test]
fn second_packet_takes_the_fast_path_and_arrives_like_the_first() {
    let first = Packet::udp(1, 2, b"hello");
    let (a, b) = (Node::new(1), Node::new(2));
    let slow_wire = kernel(send(&a, first.clone(), 1, 2));
    let delivered = kernel(receive(&b, slow_wire.clone()));
    let (fast_wire, verdict) = fast(send(&a, first, 1, 2));
    assert_eq!(
        verdict,
        Verdict::NextHop { ifindex: UNDERLAY, next_hop: NextHop::ipv4(underlay(2)) }
    );
    // All but the Ethernet header (the neighbour table writes it), the IP
    // identification with its checksum, and the source port.
    let comparable = |bytes: &[u8]| {
        let mut bytes = bytes[ETH_LEN..].to_vec();
        bytes[4..6].fill(0);
        bytes[10..12].fill(0);
        bytes[20..22].fill(0);
        bytes
    };
    assert_eq!(comparable(&fast_wire.bytes), comparable(&slow_wire.bytes));
    let (pod, verdict) = fast(receive(&b, fast_wire));
    assert_eq!(verdict, Verdict::Peer { ifindex: VETH });
    assert_eq!(pod.bytes, delivered.bytes);
    assert_eq!(pod.bytes[ETH_LEN + 8], 62, "TTL");
    assert_eq!(a.peer_counted(2, Traffic::TxFast), 1);
    assert_eq!(b.peer_counted(1, Traffic::RxFast), 1);
    assert_eq!(a.peer_counted(2, Traffic::TxKernel), 1);
    assert_eq!(b.peer_counted(1, Traffic::RxKernel), 1);
    assert_eq!((a.balance(), b.balance()), ((2, 2), (2, 2)));
    assert_eq!(a.counted(Outcome::FlowNew), 1);
}

#[test]
fn a_confirmation_ends_with_its_window() {
    let packet = Packet::udp(1, 2, b"x");
    let (a, b) = confirmed(&packet);
    for node in [&a, &b] {
        node.pass_time(a.config.window_ns);
    }
    let wire = kernel(send(&a, packet.clone(), 1, 2));
    assert_eq!(a.counted(Outcome::KernelExpired), 1);
    kernel(receive(&b, wire));
    assert_eq!(b.counted(Outcome::KernelExpired), 1);
    // That packet proved it again.
    let (wire, _) = fast(send(&a, packet, 1, 2));
    fast(receive(&b, wire));
}

#[test]
fn a_confirmation_ends_with_its_generation() {
    let packet = Packet::udp(1, 2, b"x");
    let (mut a, mut b) = confirmed(&packet);
    a.config.generation += 1;
    b.config.generation += 1;
    let wire = kernel(send(&a, packet, 1, 2));
    kernel(receive(&b, wire));
    assert_eq!(a.counted(Outcome::KernelGeneration), 1);
    assert_eq!(b.counted(Outcome::KernelGeneration), 1);
}

#[test]
fn nothing_is_confirmed_that_no_treatment_repeats() {
    type Edit = fn(&mut [u8]);
    let edits: [(&str, Edit); 6] = [
        ("address without its checksum", |ip| ip[19] = 99),
        ("TTL rewritten", |ip| ip[8] = 60),
        ("congestion marked", |ip| ip[1] = 3),
        ("another packet of the flow", |ip| ip[4] ^= 1),
        ("another length", |ip| ip[25] ^= 1),
        ("another payload", |ip| ip[27] ^= 1),
    ];
    for (name, edit) in edits {
        let a = Node::new(1);
        let mut packet = Packet::udp(1, 2, b"x");
        assert_eq!(from_pod::run(&mut packet, &a), Verdict::Pass);
        leave(&a, packet.forwarded(vtep(2), vtep(1)).edit(ETH_LEN, edit), 1, 2);
        assert_eq!(a.counted(Outcome::ConfirmedOut), 0, "{name}");

        let b = Node::new(2);
        let mut packet = Packet::udp(1, 2, b"x").encapsulated(1, 2);
        assert_eq!(from_underlay::run(&mut packet, &b), Verdict::Pass);
        let mut packet =
            packet.decapsulated().forwarded(POD_MAC, GATEWAY_MAC).at(VETH).edit(ETH_LEN, edit);
        assert_eq!(to_pod::run(&mut packet, &b), Verdict::Pass);
        assert_eq!(b.counted(Outcome::ConfirmedIn), 0, "{name}");
    }
}

#[test]
fn an_old_ticket_proves_nothing() {
    let a = Node::new(1);
    let mut packet = Packet::udp(1, 2, b"x");
    assert_eq!(from_pod::run(&mut packet, &a), Verdict::Pass);
    a.pass_time(super::ticket::LIFE_NS);
    leave(&a, packet.forwarded(vtep(2), vtep(1)), 1, 2);
    assert_eq!(a.counted(Outcome::ConfirmedOut), 0);
}

#[test]
fn an_unresolved_next_hop_stays_with_the_kernel() {
    let a = Node::new(1);
    a.resolved.set(false);
    kernel(send(&a, Packet::udp(1, 2, b"x"), 1, 2));
    assert_eq!(a.counted(Outcome::UnresolvedNextHop), 1);
    kernel(send(&a, Packet::udp(1, 2, b"x"), 1, 2));
}

#[test]
fn the_kernel_sees_birth_and_death_of_a_connection() {
    let data = Packet::tcp(1, 2, 0, b"data");
    let (a, b) = confirmed(&data);
    for flags in [wire::TCP_FIN, wire::TCP_SYN, wire::TCP_RST] {
        let wire = kernel(send(&a, Packet::tcp(1, 2, flags, b""), 1, 2));
        kernel(receive(&b, wire));
    }
    assert_eq!(a.counted(Outcome::KernelTcpState), 3);
    assert_eq!(b.counted(Outcome::KernelTcpState), 3);
    // SYN and RST began another connection: its handshake is the kernel's too.
    let wire = kernel(send(&a, data, 1, 2));
    kernel(receive(&b, wire));
}

#[test]
fn strict_conntrack_keeps_tcp_on_the_kernel_path() {
    let mut a = Node::new(1);
    a.config.flags &= !flag::TCP;
    for _ in 0..2 {
        kernel(send(&a, Packet::tcp(1, 2, 0, b"x"), 1, 2));
    }
    assert_eq!(a.counted(Outcome::KernelProtocol), 2);
    kernel(send(&a, Packet::udp(1, 2, b"x"), 1, 2));
    fast(send(&a, Packet::udp(1, 2, b"x"), 1, 2));
}

#[test]
fn another_veth_or_gateway_is_not_the_confirmed_one() {
    let packet = Packet::udp(1, 2, b"x");
    let (a, _) = confirmed(&packet);
    let mut other_veth = packet.clone().at(VETH + 1);
    assert_eq!(from_pod::run(&mut other_veth, &a), Verdict::Pass);
    let mut other_mac = packet;
    other_mac.bytes[5] ^= 1;
    assert_eq!(from_pod::run(&mut other_mac, &a), Verdict::Pass);
    assert_eq!(a.counted(Outcome::KernelMoved), 2);
}

#[test]
fn a_flooded_packet_confirms_no_veth() {
    let b = Node::new(2);
    let mut packet = Packet::udp(1, 2, b"x").encapsulated(1, 2);
    assert_eq!(from_underlay::run(&mut packet, &b), Verdict::Pass);
    let clone = packet.decapsulated().forwarded(POD_MAC, GATEWAY_MAC);
    for ifindex in [VETH, VETH + 1] {
        let mut packet = clone.clone().at(ifindex);
        assert_eq!(to_pod::run(&mut packet, &b), Verdict::Pass);
    }
    kernel(receive(&b, Packet::udp(1, 2, b"x").encapsulated(1, 2)));
}

#[test]
fn a_packet_over_the_mtu_goes_to_the_kernel() {
    let (a, b) = confirmed(&Packet::udp(1, 2, b"x"));
    let big = Packet::udp(1, 2, &[0; 1450 - 28 + 1]);
    let mut packet = big.clone();
    assert_eq!(from_pod::run(&mut packet, &a), Verdict::Pass);
    assert_eq!(packet, big, "untouched");
    assert_eq!(a.counted(Outcome::KernelTooBig), 1);
    let mut packet = big.sent().encapsulated(1, 2);
    assert_eq!(from_underlay::run(&mut packet, &b), Verdict::Pass);
    assert_eq!(b.counted(Outcome::KernelTooBig), 1);
    fast(send(&a, Packet::udp(1, 2, &[0; 1450 - 28]), 1, 2));
}

#[test]
fn a_gso_packet_counts_by_its_segments() {
    let (a, _) = confirmed(&Packet::tcp(1, 2, 0, b"x"));
    let mut aggregate = Packet::tcp(1, 2, 0, &[0; 9000]);
    aggregate.gso_size = 1410;
    fast(send(&a, aggregate.clone(), 1, 2));
    aggregate.gso_size = 1411;
    kernel(send(&a, aggregate, 1, 2));
    assert_eq!(a.counted(Outcome::KernelTooBig), 1);
}

#[test]
fn aggregates_go_through_the_device_and_what_follows_stays_behind_them() {
    let (_, b) = confirmed(&Packet::tcp(1, 2, 0, b"x"));
    let mut aggregate = Packet::tcp(1, 2, 0, &[0; 9000]).sent().encapsulated(1, 2);
    aggregate.gso_size = 1410;
    let (_, verdict) = fast(receive(&b, aggregate));
    assert_eq!(verdict, Verdict::Peer { ifindex: VETH });
    fast(receive(&b, Packet::tcp(1, 2, 0, b"x").sent().encapsulated(1, 2)));
    assert_eq!(b.counted(Outcome::KernelAggregate), 2);
    assert_eq!(b.counted(Outcome::FastAggregate), 2);
    assert_eq!(b.peer_counted(1, Traffic::RxFast), 2);
    // A window without aggregates, and the flow is an ordinary one again.
    b.pass_time(b.config.window_ns);
    kernel(receive(&b, Packet::tcp(1, 2, 0, b"x").sent().encapsulated(1, 2)));
    fast(receive(&b, Packet::tcp(1, 2, 0, b"x").sent().encapsulated(1, 2)));
    assert_eq!(b.counted(Outcome::FastDecap), 1);
}

#[test]
fn what_is_not_understood_is_left_alone_and_counted() {
    type Edit = fn(&mut [u8]);
    let edits: [(Outcome, Edit); 5] = [
        (Outcome::KernelFragment, |ip| ip[6] = 0x20),
        (Outcome::KernelFragment, |ip| ip[7] = 1),
        (Outcome::KernelTtl, |ip| ip[8] = 1),
        (Outcome::KernelProtocol, |ip| ip[9] = 1),
        (Outcome::KernelMalformed, |ip| ip[3] ^= 1),
    ];
    for (outcome, edit) in edits {
        let packet = Packet::udp(1, 2, b"x");
        let (a, b) = confirmed(&packet);
        let mut out = packet.clone().edit(ETH_LEN, edit);
        let before = out.clone();
        assert_eq!(from_pod::run(&mut out, &a), Verdict::Pass);
        assert_eq!((out, a.counted(outcome)), (before, 1), "{outcome:?}");
        let mut inwards = packet.encapsulated(1, 2).edit(INNER, edit);
        let before = inwards.clone();
        assert_eq!(from_underlay::run(&mut inwards, &b), Verdict::Pass);
        assert_eq!((inwards, b.counted(outcome)), (before, 1), "{outcome:?}");
    }
}

#[test]
fn a_refused_resize_leaves_the_packet_to_the_kernel() {
    let packet = Packet::udp(1, 2, b"x");
    let (a, b) = confirmed(&packet);
    let mut rigid = packet;
    rigid.rigid = true;
    let mut out = rigid.clone();
    assert_eq!(from_pod::run(&mut out, &a), Verdict::Pass);
    assert_eq!(out, rigid);
    let rigid = rigid.sent().encapsulated(1, 2);
    let mut inwards = rigid.clone();
    assert_eq!(from_underlay::run(&mut inwards, &b), Verdict::Pass);
    assert_eq!(inwards, rigid);
    assert_eq!(a.counted(Outcome::KernelNoRoom) + b.counted(Outcome::KernelNoRoom), 2);
}

#[test]
fn congestion_is_the_kernels_to_carry_inwards() {
    let packet = Packet::udp(1, 2, b"x");
    let (_, b) = confirmed(&packet);
    let marked = packet.sent().encapsulated(1, 2).edit(ETH_LEN, |ip| ip[1] = 3);
    let mut inwards = marked.clone();
    assert_eq!(from_underlay::run(&mut inwards, &b), Verdict::Pass);
    assert_eq!(inwards, marked);
    assert_eq!(b.counted(Outcome::KernelEcn), 1);
}

#[test]
fn forged_tunnel_packets_are_dropped_and_counted() {
    let good = || Packet::udp(1, 2, b"x").encapsulated(1, 2);
    let cases = [
        (Outcome::ForgedOuterSource, good().edit(ETH_LEN, |ip| ip[15] = 77)),
        (Outcome::ForgedInnerSource, good().edit(INNER, |ip| ip[14] = 3)),
        // Our own subnet is nobody else's to speak for.
        (Outcome::ForgedInnerSource, good().edit(INNER, |ip| ip[14] = 2)),
    ];
    for (outcome, forged) in cases {
        let (_, b) = confirmed(&Packet::udp(1, 2, b"x"));
        assert_eq!(receive(&b, forged.clone()), Way::Dropped, "{outcome:?}");
        assert_eq!(b.counted(outcome), 1, "{outcome:?}");
        for (flags, counted) in [(flag::VERIFY_COUNT, 1), (0, 0)] {
            let (_, mut b) = confirmed(&Packet::udp(1, 2, b"x"));
            b.config.flags = flag::FAST_PATH | flag::TCP | flags;
            let mut packet = forged.clone();
            assert_eq!(from_underlay::run(&mut packet, &b), Verdict::Pass);
            assert_eq!(b.counted(outcome), counted, "{outcome:?}");
        }
    }
}

#[test]
fn hiding_the_tunnel_in_options_or_fragments_does_not_help() {
    let b = Node::new(2);
    let forged = Packet::udp(3, 2, b"x").encapsulated(1, 2);
    let mut optional = forged.clone();
    optional.bytes.splice(ETH_LEN + 20..ETH_LEN + 20, [1, 1, 1, 1]);
    let optional = optional.edit(ETH_LEN, |ip| {
        ip[0] = 0x46;
        ip[3] += 4;
    });
    assert_eq!(receive(&b, optional), Way::Dropped);
    let fragment = forged.edit(ETH_LEN, |ip| ip[6] = 0x20);
    assert_eq!(receive(&b, fragment.clone()), Way::Dropped);
    assert_eq!(b.counted(Outcome::ForgedInnerSource), 2);
    let mut tiny = fragment;
    tiny.bytes.truncate(ETH_LEN + 20 + 24);
    assert_eq!(receive(&b, tiny), Way::Dropped);
    assert_eq!(b.counted(Outcome::ForgedFragment), 1);
}

#[test]
fn routed_traffic_of_a_known_peer_is_legitimate() {
    let b = Node::new(2);
    let external = Packet::udp(1, 2, b"x").encapsulated(1, 2).edit(INNER, |ip| ip[12..16].fill(8));
    let mut packet = external.clone();
    assert_eq!(from_underlay::run(&mut packet, &b), Verdict::Pass);
    assert_eq!(packet, external);
}

#[test]
fn other_tunnels_on_the_port_are_the_kernels() {
    let b = Node::new(2);
    let good = Packet::udp(1, 2, b"x").encapsulated(1, 2);
    let mut other_vni = good.clone();
    other_vni.bytes[ETH_LEN + 34] = 9;
    let mut no_flag = good.clone();
    no_flag.bytes[ETH_LEN + 28] = 0;
    let mut other_mac = good;
    other_mac.bytes[ETH_LEN + 36 + 5] ^= 1;
    for packet in [&mut other_vni, &mut no_flag, &mut other_mac] {
        assert_eq!(from_underlay::run(packet, &b), Verdict::Pass);
    }
    assert_eq!(b.counted(Outcome::KernelForeignVni), 2);
    assert_eq!(b.counted(Outcome::KernelForeignMac), 1);
}

#[test]
fn a_confirmed_flow_belongs_to_its_peer() {
    let packet = Packet::udp(1, 2, b"x");
    let (_, b) = confirmed(&packet);
    let stolen = packet.encapsulated(3, 2);
    assert_eq!(receive(&b, stolen), Way::Dropped);
    assert_eq!(b.counted(Outcome::ForgedInnerSource), 1);
}

#[test]
fn a_pod_cannot_speak_to_tunnel_ends() {
    let a = Node::new(1);
    for target in [underlay(1), underlay(2)] {
        let aim = |packet: Packet| {
            packet.edit(ETH_LEN, |ip| {
                ip[16..20].copy_from_slice(&target);
                ip[22..24].copy_from_slice(&PORT.to_be_bytes());
            })
        };
        let mut packet = aim(Packet::udp(1, 2, b"forged"));
        assert_eq!(from_pod::run(&mut packet, &a), Verdict::Drop);
        let mut fragment = aim(Packet::udp(1, 2, b"forged")).edit(ETH_LEN, |ip| ip[6] = 0x20);
        assert_eq!(from_pod::run(&mut fragment, &a), Verdict::Drop);
    }
    assert_eq!(a.counted(Outcome::ForgedByPod), 4);
    // The same port elsewhere is nobody's tunnel.
    let mut elsewhere = Packet::udp(1, 2, b"x").edit(ETH_LEN, |ip| {
        ip[16..20].fill(8);
        ip[22..24].copy_from_slice(&PORT.to_be_bytes());
    });
    assert_eq!(from_pod::run(&mut elsewhere, &a), Verdict::Pass);
}

#[test]
fn switched_off_it_only_guards_and_counts() {
    let mut b = Node::new(2);
    b.config.flags = flag::VERIFY_DROP;
    for _ in 0..2 {
        kernel(receive(&b, Packet::udp(1, 2, b"x").encapsulated(1, 2)));
        kernel(send(&b, Packet::udp(2, 1, b"x"), 2, 1));
    }
    assert!(b.flows.borrow().is_empty());
    assert_eq!(receive(&b, Packet::udp(3, 2, b"x").encapsulated(1, 2)), Way::Dropped);
    assert_eq!(b.peer_counted(1, Traffic::RxKernel), 2);
    assert_eq!(b.peer_counted(1, Traffic::TxKernel), 2);
}

#[test]
fn truncation_at_any_byte_neither_panics_nor_delivers() {
    let packet = Packet::udp(1, 2, b"payload");
    let (a, b) = confirmed(&packet);
    for length in 0..packet.bytes.len() {
        let mut cut = packet.clone();
        cut.bytes.truncate(length);
        assert_eq!(from_pod::run(&mut cut, &a), Verdict::Pass, "{length}");
    }
    let wire = packet.encapsulated(1, 2);
    for length in 0..wire.bytes.len() {
        let mut cut = wire.clone();
        cut.bytes.truncate(length);
        assert_eq!(from_underlay::run(&mut cut, &b), Verdict::Pass, "{length}");
    }
}

proptest! {
    /// Any bytes at any hook: no panic, and a packet that passes is untouched.
    #[test]
    fn a_packet_that_passes_is_untouched(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        keep in 0usize..120,
        gso_size in prop_oneof![Just(0u32), any::<u32>()],
        inwards in any::<bool>(),
    ) {
        // Starts like a real packet, so that the depths are reached.
        let udp = Packet::udp(1, 2, b"0123456789");
        let template = if inwards { udp.clone().encapsulated(1, 2) } else { udp.clone() };
        let keep = keep.min(template.bytes.len()).min(bytes.len());
        bytes[..keep].copy_from_slice(&template.bytes[..keep]);
        let (a, b) = confirmed(&udp);
        let mut packet = Packet::new(bytes, if inwards { UNDERLAY } else { VETH });
        packet.gso_size = gso_size;
        let before = packet.clone();
        for node in [&a, &b] {
            let verdicts = [
                from_pod::run(&mut packet.clone(), node),
                to_overlay::run(&mut packet.clone(), node),
                from_overlay::run(&mut packet.clone(), node),
                to_pod::run(&mut packet.clone(), node),
            ];
            prop_assert!(verdicts[1] == Verdict::Pass && verdicts[3] == Verdict::Pass);
            let verdict = if inwards {
                from_underlay::run(&mut packet, node)
            } else {
                from_pod::run(&mut packet, node)
            };
            if verdict == Verdict::Pass {
                prop_assert_eq!(&packet, &before);
            }
            packet = before.clone();
            let (seen, ended) = node.balance();
            prop_assert_eq!(seen, ended);
        }
    }

    /// Whatever a pod sends arrives byte for byte as on the kernel path.
    #[test]
    fn both_paths_deliver_the_same(
        payload in proptest::collection::vec(any::<u8>(), 0..1400),
        tos in any::<u8>(),
        ttl in 3u8..,
        id in any::<u16>(),
        tcp in any::<bool>(),
    ) {
        let packet =
            if tcp { Packet::tcp(1, 2, 0, &payload) } else { Packet::udp(1, 2, &payload) };
        let packet = packet.edit(ETH_LEN, |ip| {
            ip[1] = tos;
            ip[8] = ttl;
            ip[4..6].copy_from_slice(&id.to_be_bytes());
        });
        let (a, b) = (Node::new(1), Node::new(2));
        let slow = kernel(receive(&b, kernel(send(&a, packet.clone(), 1, 2))));
        let (wire, _) = fast(send(&a, packet, 1, 2));
        let header = wire::ipv4(wire.bytes[ETH_LEN..ETH_LEN + 20].try_into().unwrap());
        let unchecked = network_types::ip::Ipv4Hdr { check: [0; 2], ..header };
        prop_assert_eq!(wire::ipv4_checksum(&unchecked), header.check);
        let (delivered, _) = fast(receive(&b, wire));
        prop_assert_eq!(delivered.bytes, slow.bytes);
    }
}

#[test]
fn a_pod_sends_no_tunnel_packet_to_its_own_node_or_subnet() {
    let a = Node::new(1);
    for to in [[10, 5, 1, 1], [10, 5, 1, 77], SECONDARY, underlay(1)] {
        let packet = Packet::udp(1, 2, b"x").edit(ETH_LEN, |ip| {
            ip[16..20].copy_from_slice(&to);
            ip[22..24].copy_from_slice(&PORT.to_be_bytes());
        });
        assert_eq!(from_pod::run(&mut packet.clone().at(VETH), &a), Verdict::Drop, "{to:?}");
        let mut other = packet.edit(ETH_LEN, |ip| ip[23] ^= 1).at(VETH);
        assert_eq!(from_pod::run(&mut other, &a), Verdict::Pass, "{to:?}");
    }
    assert_eq!(a.counted(Outcome::ForgedByPod), 4);
}
