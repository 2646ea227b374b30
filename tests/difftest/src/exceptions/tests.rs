use std::net::Ipv4Addr;

use super::*;
use crate::generate::{Generator, Oddities, TunnelOddity};
use crate::kind::Kind;
use crate::world::LEFT;

fn memory(rules: Rules) -> Memory {
    Memory::new(Mode::Confirmed, rules)
}

fn step(wanted: impl Fn(&Oddities) -> bool) -> Step {
    let sent = |step: &Step| matches!(step.sender, Sender::Wire(_)) && wanted(&step.oddities);
    Generator::new(Mode::Confirmed, 7).find(sent).expect("the sequence is endless")
}

/// A packet of a pod in this mode.
fn of_pod(mode: Mode, wanted: impl Fn(&Step) -> bool) -> Step {
    let sent = |step: &Step| {
        matches!(step.sender, Sender::Pod(_)) && step.frames.len() == 1 && wanted(step)
    };
    Generator::new(mode, 8).find(sent).expect("the sequence is endless")
}

fn at(tap: Tap, frame: &[u8]) -> Vec<(Tap, Vec<u8>)> {
    vec![(tap, frame.to_vec())]
}

/// The frame under another source.
fn from(frame: &[u8], source: Ipv4Addr) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[26..30].copy_from_slice(&source.octets());
    frame
}

#[test]
fn a_wrong_outer_checksum_may_be_delivered_and_nothing_else() {
    let delivered = [(Tap::LeftPod, vec![1])];
    let wrong = |oddities: &Oddities| oddities.outer == [Oddity::TransportChecksum];
    let covers = |step: &Step, kernel: &Made, ebpf: &Made| {
        Exception::OuterUdpChecksum.covers(step, kernel, ebpf, &memory(Rules::None))
    };
    assert!(covers(&step(wrong), &[], &delivered));
    // Dropped by ours alone, or delivered by both in different forms.
    assert!(!covers(&step(wrong), &delivered, &[]));
    assert!(!covers(&step(wrong), &delivered, &[(Tap::LeftPod, vec![2])]));
    for _ in 0..50 {
        assert!(!covers(&step(Oddities::none), &[], &delivered));
    }
    let vni = |oddities: &Oddities| oddities.tunnel == [TunnelOddity::Vni];
    assert!(!covers(&step(vni), &[], &delivered));
}

#[test]
fn a_wrong_checksum_may_be_delivered_where_rules_drop_it() {
    let exception = Exception::Checksum;
    let is_wrong = |step: &Step| wrong(step) == Some(Invalid::Checksum);
    let bad = of_pod(Mode::Confirmed, is_wrong);
    let delivered = at(Tap::RightPod, &bad.frames[0]);
    assert!(exception.covers(&bad, &[], &delivered, &memory(Rules::Iptables)));
    assert!(!exception.covers(&bad, &[], &delivered, &memory(Rules::None)));
    assert!(!exception.covers(&bad, &delivered, &[], &memory(Rules::Iptables)));
    let good = of_pod(Mode::Confirmed, |step| step.oddities.none());
    let delivered = at(Tap::RightPod, &good.frames[0]);
    assert!(!exception.covers(&good, &[], &delivered, &memory(Rules::Iptables)));
}

#[test]
fn a_wrong_checksum_may_be_translated_where_nothing_drops_it() {
    let exception = Exception::Checksum;
    let of_service =
        |step: &Step| step.part.is_some_and(|part| part.kind == Kind::Service && part.request);
    let bad =
        of_pod(Mode::Services, |step| of_service(step) && wrong(step) == Some(Invalid::Checksum));
    let untouched = at(Tap::RightPod, &bad.frames[0]);
    let translated = at(Tap::RightPod, &from(&bad.frames[0], LEFT.address(0)));
    let memory = memory(Rules::None);
    assert!(exception.covers(&bad, &untouched, &translated, &memory));
    assert!(exception.covers(&bad, &[], &translated, &memory));
    // The other way round the fast path has not done what the kernel does.
    assert!(!exception.covers(&bad, &translated, &untouched, &memory));
    let good = of_pod(Mode::Services, |step| of_service(step) && step.oddities.none());
    assert!(!exception.covers(&good, &untouched, &translated, &memory));
}

#[test]
fn foreign_sources_are_excused_for_a_while_after_an_invalid_packet_of_the_flow() {
    let exception = Exception::AfterInvalid;
    let foreign = |step: &Step| {
        let strange = !is_between_pods(step.sender, &step.frames[0]);
        step.oddities.inner == [Oddity::Source] && strange && flow(&step.frames[0]).is_some()
    };
    let step = of_pod(Mode::Confirmed, foreign);
    let masqueraded = at(Tap::RightPod, &from(&step.frames[0], LEFT.address(0)));
    let untouched = at(Tap::RightPod, &step.frames[0]);
    let mut invalid = step.clone();
    let last = invalid.frames[0].len() - 1;
    invalid.frames[0][last] ^= 1;
    let mut memory = memory(Rules::None);
    assert!(!exception.covers(&step, &masqueraded, &untouched, &memory));
    memory.note(&step);
    assert!(!exception.covers(&step, &masqueraded, &untouched, &memory));
    memory.note(&invalid);
    assert!(exception.covers(&step, &masqueraded, &untouched, &memory));
    assert!(!exception.covers(&step, &untouched, &masqueraded, &memory));
    assert!(!exception.covers(&step, &masqueraded, &[], &memory));
    for when in memory.invalid.values_mut() {
        *when = when.checked_sub(HOLDS).expect("the clock started long ago");
    }
    assert!(!exception.covers(&step, &masqueraded, &untouched, &memory), "too long ago");
}

#[test]
fn a_pods_own_flow_is_never_excused_by_what_came_before() {
    let plain = of_pod(Mode::Confirmed, |step| step.oddities.none());
    let service = of_pod(Mode::Services, |step| {
        step.part.is_some_and(|part| part.kind.translates()) && step.oddities.none()
    });
    for step in [plain, service] {
        let mut invalid = step.clone();
        let last = invalid.frames[0].len() - 1;
        invalid.frames[0][last] ^= 1;
        let mut memory = memory(Rules::None);
        memory.note(&invalid);
        let masqueraded = at(Tap::RightPod, &from(&step.frames[0], LEFT.address(0)));
        let untouched = at(Tap::RightPod, &step.frames[0]);
        for exception in Exception::ALL {
            assert!(!exception.covers(&step, &masqueraded, &untouched, &memory), "{exception:?}");
            assert!(!exception.covers(&step, &[], &untouched, &memory), "{exception:?}");
        }
    }
}

#[test]
fn an_invalid_packet_is_to_blame_for_the_flow_that_it_belongs_to() {
    let translated = |step: &Step| {
        let whole = step.oddities.none() && flow(&step.frames[0]).is_some();
        whole && step.part.is_some_and(|part| part.kind.translates())
    };
    let step = of_pod(Mode::Services, translated);
    let mut invalid = step.clone();
    let last = invalid.frames[0].len() - 1;
    invalid.frames[0][last] ^= 1;
    let untouched = at(Tap::RightPod, &step.frames[0]);
    let changed = at(Tap::RightPod, &from(&step.frames[0], LEFT.address(0)));
    for (rules, blamed) in [(Rules::None, true), (Rules::Nftables, false)] {
        let mut memory = Memory::new(Mode::Services, rules);
        assert!(!repeats_invalid(&step, &untouched, &memory));
        memory.note(&invalid);
        assert_eq!(repeats_invalid(&step, &untouched, &memory), blamed);
        assert!(!repeats_invalid(&step, &changed, &memory));
    }
}

#[test]
fn what_conntrack_does_not_know_may_be_dropped_in_eager_only() {
    let exception = Exception::Unknown;
    let eager = Memory::new(Mode::Eager, Rules::Nftables);
    let tcp = |step: &Step| step.part.is_some() && step.frames[0].get(23) == Some(&TCP);
    let plain = of_pod(Mode::Eager, |step| tcp(step) && step.oddities.none());
    let flags = of_pod(Mode::Eager, |step| tcp(step) && step.oddities.inner == [Oddity::TcpFlags]);
    let error = {
        // Time exceeded, by the other node, as it begins.
        let mut frame = plain.frames[0].clone();
        frame[23] = 1;
        frame[26..30].copy_from_slice(&LEFT.address(1).octets());
        frame[34] = 11;
        (Tap::LeftPod, frame)
    };
    let delivered = at(Tap::RightPod, &plain.frames[0]);
    let with_error = [delivered.clone(), vec![error]].concat();
    assert!(exception.covers(&plain, &with_error, &delivered, &eager));
    assert!(!exception.covers(&plain, &delivered, &with_error, &eager));
    assert!(!exception.covers(&plain, &delivered, &[], &eager));
    assert!(exception.covers(&flags, &delivered, &[], &eager));
    assert!(exception.covers(&flags, &[], &delivered, &eager));
    for (mode, rules) in [(Mode::Services, Rules::Nftables), (Mode::Eager, Rules::None)] {
        let memory = Memory::new(mode, rules);
        assert!(!exception.covers(&plain, &with_error, &delivered, &memory));
        assert!(!exception.covers(&flags, &delivered, &[], &memory));
    }
}

#[test]
fn checksums_are_judged_as_receivers_do() {
    let right = step(|oddities| oddities.outer == [Oddity::Ttl]).frames.swap_remove(0);
    assert!(!has_wrong_udp_checksum(&right));
    let mut padded = right.clone();
    padded.extend([9; 3]);
    assert!(!has_wrong_udp_checksum(&padded));
    for length in 0..right.len() {
        assert!(!has_wrong_udp_checksum(&right[..length]), "{length}");
    }
}

#[test]
fn what_belongs_to_no_connection_may_be_remembered_otherwise() {
    let exception = Exception::Remembered;
    let memory = memory(Rules::Nftables);
    let lone = of_pod(Mode::Services, |step| step.part.is_none() && step.oddities.none());
    let sent = at(Tap::RightPod, &lone.frames[0]);
    let masqueraded = at(Tap::RightPod, &from(&lone.frames[0], LEFT.address(0)));
    assert!(exception.covers(&lone, &[], &sent, &memory));
    assert!(!exception.covers(&lone, &sent, &masqueraded, &memory), "it is a pod's own");
    let spoofed = of_pod(Mode::Services, |step| {
        step.part.is_none() && step.oddities.inner == [Oddity::Source]
    });
    let sent = at(Tap::RightPod, &spoofed.frames[0]);
    let masqueraded = at(Tap::RightPod, &from(&spoofed.frames[0], LEFT.address(0)));
    assert!(exception.covers(&spoofed, &sent, &masqueraded, &memory));
    // It may have another port, and what follows from that. All else is the same.
    let mut other = spoofed.frames[0].clone();
    let end = other.len();
    other[end - 7..].iter_mut().for_each(|byte| *byte ^= 1);
    assert!(exception.covers(&spoofed, &sent, &at(Tap::RightPod, &other), &memory));
    other[end - 8] ^= 1;
    assert!(!exception.covers(&spoofed, &sent, &at(Tap::RightPod, &other), &memory));
    // And of a connection everything.
    let of_connection = of_pod(Mode::Services, |step| step.part.is_some());
    assert!(!exception.covers(&of_connection, &[], &at(Tap::RightPod, &[1]), &memory));
}
