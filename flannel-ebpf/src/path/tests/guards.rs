//! What keeps packets with the kernel, and the source check at the place where all
//! tunnel packets meet.

use crate::abi::{Attendance, Exemption, MAX_EXEMPTIONS, Outcome, action, flag};
use crate::path::fake::*;
use crate::path::hook::{from_overlay, from_pod, from_underlay};
use crate::path::{Traffic, Verdict};
use crate::wire::{self, ETH_LEN};

/// Sends three packets out and three in: how many the fast path took.
fn carried(a: &Node, b: &Node) -> (u64, u64) {
    for _ in 0..3 {
        let wire = match send(a, Packet::udp(1, 2, b"x"), 1, 2) {
            Way::Fast(packet, _) | Way::Kernel(packet) | Way::Shortcut(packet) => packet,
            Way::Dropped => panic!(),
        };
        assert_ne!(receive(b, wire), Way::Dropped);
    }
    (a.counted(Outcome::FastEncap), b.counted(Outcome::FastDecap))
}

#[test]
fn what_acts_on_packets_on_the_way_keeps_them() {
    let (a, b) = (Node::new(1), Node::new(2));
    assert_eq!(carried(&a, &b), (2, 2));
    for (flags, outwards, inwards) in
        [(flag::KEEP_OUT, 0, 2), (flag::KEEP_IN, 2, 0), (flag::KEEP_TUNNEL, 2, 2)]
    {
        let (mut a, mut b) = (Node::new(1), Node::new(2));
        a.config.flags |= flags;
        b.config.flags |= flags;
        assert_eq!(carried(&a, &b), (outwards, inwards), "{flags}");
        if flags == flag::KEEP_OUT {
            assert_eq!(a.counted(Outcome::ShortcutEncap), 0);
        }
        if flags == flag::KEEP_TUNNEL {
            let other = Packet::udp(1, 2, b"y").edit(ETH_LEN, |ip| ip[15] = 9);
            kernel(receive(&b, other.forwarded(vtep(2), vtep(1)).encapsulated(1, 2)));
            assert_eq!(b.counted(Outcome::ShortcutDecap), 0);
        }
    }
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    a.veths.get_mut(&VETH).unwrap().keep_out = 1;
    b.veths.get_mut(&VETH).unwrap().action = action::KERNEL;
    assert_eq!(carried(&a, &b), (0, 0));
    assert_eq!(a.counted(Outcome::RefusedKept), 3);
    // A veth that is not served at all.
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    a.veths.clear();
    b.veths.clear();
    assert_eq!(carried(&a, &b), (0, 0));
}

#[test]
fn flows_that_a_rule_judges_packet_by_packet_are_the_kernels() {
    let plain = Exemption::default();
    let covered = [
        plain,
        Exemption { proto: wire::UDP, ..plain },
        Exemption { dport_min: 5000, dport_max: 5000, ..plain },
        Exemption { source: pod(1), source_mask: [255; 4], ..plain },
        Exemption { sport_min: 5000, sport_max: 5000, both_ways: 1, ..plain },
        Exemption { destination: [10, 5, 2, 0], destination_mask: [255, 255, 255, 0], ..plain },
    ];
    let others = [
        Exemption { proto: wire::TCP, ..plain },
        Exemption { dport_min: 5001, ..plain },
        Exemption { sport_max: 3999, ..plain },
        Exemption { sport_min: 5000, sport_max: 5000, ..plain },
        Exemption { source: pod(2), source_mask: [255; 4], ..plain },
    ];
    for (rules, taken) in [(covered.as_slice(), 0), (others.as_slice(), 2)] {
        for rule in rules {
            let (mut a, mut b) = (Node::new(1), Node::new(2));
            for node in [&mut a, &mut b] {
                node.exemptions = vec![*rule];
                node.config.exemptions = 1;
            }
            assert_eq!(carried(&a, &b), (taken, taken), "{rule:?}");
            if taken == 0 {
                assert_eq!(a.counted(Outcome::RefusedRule), 1, "noted once");
                assert_eq!(a.counted(Outcome::KernelRule), 2);
                a.pass_time(a.config.window_ns);
                a.config.exemptions = 0;
                kernel(send(&a, Packet::udp(1, 2, b"x"), 1, 2));
                fast(send(&a, Packet::udp(1, 2, b"x"), 1, 2));
            }
        }
    }
}

#[test]
fn a_rule_sees_a_service_before_and_behind_its_translation() {
    for (port, kept) in [(80, true), (5000, true), (81, false)] {
        let mut a = Node::new(1);
        a.exemptions = vec![Exemption { dport_min: port, dport_max: port, ..Exemption::default() }];
        a.config.exemptions = 1;
        let mut packet = Packet::udp(1, 2, b"x").nat(SERVICE, 80);
        assert_eq!(from_pod::run(&mut packet, &a), Verdict::Pass);
        leave(&a, packet.forwarded(vtep(2), vtep(1)).nat(pod(2), 5000), 1, 2);
        assert_eq!(a.counted(Outcome::RefusedRule) == 1, kept, "{port}");
    }
}

#[test]
fn all_places_of_exemptions_count_and_none_behind_them() {
    let only = |port| Exemption { dport_min: port, dport_max: port, ..Exemption::default() };
    let last = MAX_EXEMPTIONS - 1;
    for (count, kept) in [(MAX_EXEMPTIONS, true), (last, false)] {
        let mut a = Node::new(1);
        a.exemptions = vec![only(9); last as usize];
        a.exemptions.push(only(5000));
        a.config.exemptions = count;
        kernel(send(&a, Packet::udp(1, 2, b"x"), 1, 2));
        assert_eq!(a.counted(Outcome::RefusedRule) == 1, kept, "{count}");
    }
}

/// A packet as `flannel.<VNI>` hands it over that `from_underlay` has not seen.
fn unseen(edit: impl FnOnce(&mut [u8])) -> Packet {
    Packet::udp(1, 2, b"x")
        .forwarded(vtep(2), vtep(1))
        .encapsulated(1, 2)
        .edit(ETH_LEN, edit)
        .decapsulated()
}

#[test]
fn all_that_comes_out_of_the_tunnel_is_checked() {
    let b = Node::new(2);
    assert_eq!(from_overlay::run(&mut unseen(|_| ()), &b), Verdict::Pass);
    assert_eq!(b.counted(Outcome::CheckedLate), 1);
    assert_eq!(b.peer_counted(1, Traffic::RxKernel), 1);
    let mut stranger = unseen(|ip| ip[15] = 77);
    assert_eq!(from_overlay::run(&mut stranger, &b), Verdict::Drop);
    let mut wrong_peer = unseen(|ip| ip[15] = 3);
    assert_eq!(from_overlay::run(&mut wrong_peer, &b), Verdict::Drop);
    assert_eq!(b.counted(Outcome::ForgedOuterSource), 1);
    assert_eq!(b.counted(Outcome::ForgedInnerSource), 1);
    // No header of our tunnel in front of it.
    let mut hidden = unseen(|_| ());
    hidden.outer = None;
    assert_eq!(from_overlay::run(&mut hidden.clone(), &b), Verdict::Drop);
    hidden.outer = Some([0; 36]);
    assert_eq!(from_overlay::run(&mut hidden, &b), Verdict::Drop);
    // A number that it was not given does not help.
    let mut seen = Packet::udp(1, 2, b"another").encapsulated(1, 2);
    assert_eq!(from_underlay::run(&mut seen, &b), Verdict::Pass);
    let mut replayed = Packet { ticket: seen.ticket, ..unseen(|ip| ip[15] = 77) };
    assert_eq!(from_overlay::run(&mut replayed, &b), Verdict::Drop);
    for (flags, counted) in [(flag::VERIFY_COUNT, 5), (0, 4)] {
        let mut b = Node::new(2);
        b.config.flags = flags;
        assert_eq!(from_overlay::run(&mut unseen(|ip| ip[15] = 77), &b), Verdict::Pass);
        assert_eq!(4 + b.counted(Outcome::ForgedOuterSource), counted);
    }
}

#[test]
fn packets_that_were_checked_are_not_checked_again() {
    let b = Node::new(2);
    // Of any kind: a fragment, another protocol.
    for edit in [|_: &mut [u8]| (), |ip: &mut [u8]| ip[6] = 0x20, |ip: &mut [u8]| ip[9] = 1] {
        let packet = Packet::udp(1, 2, b"x").edit(ETH_LEN, edit).encapsulated(1, 2);
        kernel(receive(&b, packet));
    }
    assert_eq!(b.counted(Outcome::SeenLate), 0);
}

#[test]
fn a_peer_that_speaks_from_another_address_is_remembered() {
    let b = Node::new(2);
    for _ in 0..2 {
        let packet = Packet::udp(1, 2, b"x").encapsulated(1, 2).edit(ETH_LEN, |ip| ip[15] = 77);
        assert_eq!(receive(&b, packet), Way::Dropped);
    }
    let strangers = b.strangers.borrow();
    let stranger = strangers[&underlay(77)];
    assert_eq!((stranger.packets, stranger.peer_id), (2, 1));
    assert_eq!(stranger.inner_source, pod(1));
}

#[test]
fn an_address_in_no_lease_is_a_routers_to_use() {
    let b = Node::new(2);
    let packet = Packet::udp(1, 2, b"x").edit(ETH_LEN, |ip| ip[14] = 200).encapsulated(1, 2);
    kernel(receive(&b, packet));
    assert_eq!(b.counted(Outcome::ForgedInnerSource), 0);
}

#[test]
fn peers_that_did_not_fit_are_not_dropped() {
    let mut b = Node::new(2);
    b.config.flags |= flag::MORE_PEERS;
    let packet = Packet::udp(1, 2, b"x").edit(ETH_LEN, |ip| ip[14] = 9).encapsulated(9, 2);
    kernel(receive(&b, packet));
    assert_eq!(b.counted(Outcome::ForgedOuterSource), 1);
    let forged = Packet::udp(3, 2, b"x").encapsulated(1, 2);
    assert_eq!(receive(&b, forged), Way::Dropped);
}

fn unattended(me: u8) -> Node {
    Node::new(me).attended(Attendance::default())
}

/// Whether senders that no lease names pass, by the programs at both places; and
/// what always is refused.
fn passes_unknown(b: &Node) -> bool {
    let newcomer = Packet::udp(1, 2, b"x").edit(ETH_LEN, |ip| ip[14] = 9).encapsulated(9, 2);
    let moved = Packet::udp(3, 2, b"x").encapsulated(1, 2);
    let late = unseen(|ip| ip[15] = 77);
    let passed = [
        receive(b, newcomer) != Way::Dropped,
        receive(b, moved) != Way::Dropped,
        from_overlay::run(&mut late.clone(), b) != Verdict::Drop,
    ];
    let mut cut = Packet::udp(3, 2, b"x").encapsulated(1, 2).edit(ETH_LEN, |ip| ip[6] = 0x20);
    cut.bytes.truncate(ETH_LEN + 36);
    assert_eq!(receive(b, cut), Way::Dropped, "whose inner source nobody sees");
    assert!(passed.iter().all(|one| *one == passed[0]), "{passed:?}");
    passed[0]
}

#[test]
fn nobody_is_refused_by_tables_that_nobody_keeps_true() {
    let given = Attendance { time_ns: SECOND, ..Attendance::default() };
    for (attendance, passed, after, refused) in [
        (given, Attendance::SILENCE_NS - 1, Attendance::SILENCE_NS, true),
        (Attendance { left: 1, ..given }, 0, Attendance::SILENCE_NS, false),
        (Attendance::default(), 0, Attendance::SILENCE_NS, false),
    ] {
        let b = Node::new(2).attended(attendance);
        b.pass_time(passed);
        assert_eq!(passes_unknown(&b), !refused, "{attendance:?}");
        b.pass_time(after - passed);
        let before = b.counted(Outcome::Unattended);
        assert!(passes_unknown(&b), "{attendance:?}");
        assert_eq!(b.counted(Outcome::Unattended) - before, 3);
    }
    // The check is off: nothing is counted.
    let mut b = unattended(2);
    b.config.flags &= !flag::VERIFY_DROP;
    let newcomer = Packet::udp(1, 2, b"x").edit(ETH_LEN, |ip| ip[14] = 9).encapsulated(9, 2);
    assert_ne!(receive(&b, newcomer), Way::Dropped);
    assert_eq!(b.counted(Outcome::Unattended), 0);
}

#[test]
fn a_pod_forges_nothing_while_the_agent_is_away() {
    let a = unattended(1);
    let mut packet = Packet::udp(1, 2, b"x").edit(ETH_LEN, |ip| {
        ip[16..20].copy_from_slice(&underlay(2));
        ip[22..24].copy_from_slice(&PORT.to_be_bytes());
    });
    assert_eq!(from_pod::run(&mut packet, &a), Verdict::Drop);
    assert_eq!(a.counted(Outcome::ForgedByPod), 1);
}

#[test]
fn after_a_long_silence_the_kernel_finds_the_way_to_peers() {
    let attendance = Attendance { time_ns: SECOND, left: 1, reserved: 0 };
    let (a, b) = (Node::new(1).attended(attendance), Node::new(2));
    assert_eq!(carried(&a, &b).0, 2, "a stop for a moment costs nothing");
    a.pass_time(Attendance::SILENCE_NS);
    for _ in 0..3 {
        kernel(send(&a, Packet::udp(1, 2, b"x"), 1, 2));
    }
    assert_eq!(a.counted(Outcome::ConfirmedOut), 1);
}

#[test]
fn the_smallest_frames_come_with_padding() {
    let (a, b) = (Node::new(1), Node::new(2));
    let small = Packet::udp(1, 2, b"x");
    let mut padded = small.clone();
    padded.bytes.resize(60, 0);
    kernel(send(&a, padded.clone(), 1, 2));
    let (wire, _) = fast(send(&a, padded, 1, 2));
    let (whole, _) = fast(send(&a, small, 1, 2));
    assert_eq!(wire.bytes.len(), whole.bytes.len());
    kernel(receive(&b, wire.clone()));
    fast(receive(&b, wire));
    let mut longer = Packet::udp(1, 2, &[0; 40]);
    longer.bytes.push(0);
    kernel(send(&a, longer, 1, 2));
    assert_eq!(a.counted(Outcome::KernelMalformed), 1);
}

#[test]
fn a_rule_about_all_that_comes_in_keeps_the_tunnel_with_the_device() {
    let mut b = Node::new(2);
    b.exemptions = vec![Exemption { direction: crate::abi::direction::IN, ..Exemption::default() }];
    b.config.exemptions = 1;
    for _ in 0..3 {
        kernel(receive(&b, Packet::udp(1, 2, b"x").encapsulated(1, 2)));
    }
    assert_eq!(b.counted(Outcome::ConfirmedTunnel), 0);
    assert_eq!(b.counted(Outcome::ShortcutDecap), 0);
}
