//! The generator and the comparison, without nodes.

use std::collections::BTreeSet;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

use super::backend::Backend;
use super::compare::{
    Seen, inner_flow, innermost, key, normal, source_port, whole, without_checksum,
};
use super::generate::{Generator, KEYS, Oddities, Step, TunnelOddity};
use super::invalid::invalid;
use super::mode::Mode;
use super::oddity::Oddity;
use super::place::{Sender, Tap};
use super::ports::Ports;
use super::world::{LEFT, MTU, RIGHT, Side};

fn steps(seed: u64, count: usize) -> Vec<Step> {
    Generator::new(Mode::Confirmed, seed).take(count).collect()
}

fn by_pod(step: &Step) -> bool {
    matches!(step.sender, Sender::Pod(_))
}

fn sender(step: &Step) -> Side {
    let (Sender::Pod(side) | Sender::Wire(side)) = step.sender;
    side
}

#[test]
fn a_seed_gives_one_sequence() {
    for mode in Mode::ALL {
        let frames = |seed| {
            let steps = Generator::new(mode, seed).take(2_000);
            steps.map(|step| (step.frames, step.waits)).collect::<Vec<_>>()
        };
        assert_eq!(frames(3), frames(3));
        assert_ne!(frames(3), frames(4));
    }
}

#[test]
fn everything_odd_is_there_and_half_is_plain() {
    let steps = steps(1, 10_000);
    let inner: BTreeSet<_> = steps.iter().flat_map(|step| &step.oddities.inner).collect();
    let outer: BTreeSet<_> = steps.iter().flat_map(|step| &step.oddities.outer).collect();
    let tunnel: BTreeSet<_> = steps.iter().flat_map(|step| &step.oddities.tunnel).collect();
    assert_eq!(inner.len(), Oddity::ALL.len());
    assert_eq!(outer.len(), Oddity::ALL.len());
    assert_eq!(tunnel.len(), TunnelOddity::ALL.len());
    let plain = steps.iter().filter(|step| by_pod(step) && step.oddities.none()).count();
    assert!((4_500..5_500).contains(&plain), "{plain}");
    for sender in [LEFT, RIGHT] {
        let sent = |step: &&Step| match step.sender {
            Sender::Pod(side) | Sender::Wire(side) => side.pod() == sender.pod(),
        };
        assert!(steps.iter().filter(sent).count() > 4_000);
    }
}

#[test]
fn plain_packets_are_right_in_every_layer() {
    let steps = steps(2, 2_000);
    for step in steps.iter().filter(|step| step.oddities.none()) {
        let [frame] = &step.frames[..] else { panic!("one frame: {step:?}") };
        let packet = SlicedPacket::from_ethernet(frame).expect("a right packet");
        let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else { panic!("{step:?}") };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(header.identification, step.key);
        assert_eq!(usize::from(header.total_len) + 14, frame.len());
        if by_pod(step) {
            assert!(frame.len() <= 14 + MTU && header.time_to_live > 3);
        }
        match packet.transport.expect("TCP or UDP") {
            TransportSlice::Tcp(tcp) => {
                let sum = tcp.calc_checksum_ipv4(header.source, header.destination);
                assert_eq!(sum, Ok(tcp.checksum()));
            }
            TransportSlice::Udp(udp) if udp.checksum() != 0 => {
                let right = udp.to_header();
                let sum = right.calc_checksum_ipv4(&header, udp.payload());
                assert_eq!(sum, Ok(udp.checksum()));
            }
            // Outer headers may be without.
            TransportSlice::Udp(_) => assert!(!by_pod(step)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn frames_fit_the_devices_and_are_known_by_their_identification() {
    for (mode, wire) in Mode::ALL.map(|mode| (mode, if mode == Mode::HostGw { MTU } else { 1500 }))
    {
        for step in Generator::new(mode, 3).take(20_000) {
            assert!((1..KEYS).contains(&step.key));
            for frame in &step.frames {
                assert!(frame.len() >= 14, "{step:?}");
                let most = if by_pod(&step) { MTU + 150 } else { wire };
                assert!(frame.len() <= 14 + most, "{step:?}");
            }
        }
    }
    for step in steps(3, 20_000) {
        // Whatever pods send, but for frames that are cut or no IPv4.
        let Oddities { inner, .. } = &step.oddities;
        let hidden = [Oddity::Cut, Oddity::EtherType, Oddity::Vlan, Oddity::Version];
        // These have no identification of their own where the pod sends under
        // a node's address.
        let foreign = [Oddity::Source, Oddity::Protocol, Oddity::HeaderLength];
        let known = !inner.iter().any(|odd| hidden.contains(odd) || foreign.contains(odd));
        if by_pod(&step) && known {
            for frame in &step.frames {
                assert_eq!(key(frame), Some(step.key), "{step:?}");
            }
        }
    }
}

#[test]
fn fragments_hold_the_packet() {
    let is_whole = |step: &&Step| step.oddities.inner == [Oddity::WholeFragments] && by_pod(step);
    let mut several = 0;
    for step in steps(4, 20_000).iter().filter(is_whole) {
        let together = whole(&step.frames).expect("all of them");
        let innermost = innermost(&together).expect("a packet");
        assert_eq!(invalid(innermost), None, "{step:?}");
        let mut gap = step.frames.clone();
        if gap.len() > 2 {
            gap.remove(1);
            assert_eq!(whole(&gap), None);
        }
        let mut end = 0;
        for (index, frame) in step.frames.iter().enumerate() {
            let packet = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..]).expect("a header");
            let header = packet.to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(usize::from(header.fragment_offset.value()) * 8, end);
            assert_eq!(header.more_fragments, index + 1 < step.frames.len());
            end += frame.len() - 34;
        }
        several += usize::from(step.frames.len() > 1);
    }
    assert!(several > 50, "{several}");
}

/// A tunnel packet of `left`'s kernel for a plain packet of its pod.
fn tunnelled(inner: &[u8], id: u16, port: u16, checksum: u16) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0, 0, 1, 0];
    payload.extend(inner);
    let ip = {
        let (from, to) = (LEFT.node().octets(), RIGHT.node().octets());
        let mut ip = etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::UDP, from, to)
            .expect("no payload yet");
        ip.identification = id;
        ip
    };
    let builder = PacketBuilder::ethernet2(LEFT.node_mac(), RIGHT.node_mac())
        .ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()))
        .udp(port, 8472);
    let mut frame = Vec::new();
    builder.write(&mut frame, &payload).expect("a packet in memory");
    frame[40..42].copy_from_slice(&checksum.to_be_bytes());
    frame
}

fn plain() -> Step {
    let plain = |step: &Step| by_pod(step) && step.oddities.none();
    Generator::new(Mode::Confirmed, 5).find(plain).expect("the sequence is endless")
}

#[test]
fn a_tunnel_packet_may_differ_in_identification_port_and_checksum_only() {
    let step = plain();
    let inner = &step.frames[0];
    let one = tunnelled(inner, 1000, 40_000, 0x1234);
    let other = tunnelled(inner, 2000, 50_000, 0);
    assert_eq!((key(&one), key(&other)), (Some(step.key), Some(step.key)));
    assert_eq!(normal(&one), normal(&other));
    assert!(without_checksum(&other) && !without_checksum(&one));
    for at in 0..other.len() {
        let mut changed = other.clone();
        changed[at] ^= 0x40;
        let free = [18, 19, 34, 35, 40, 41].contains(&at);
        // Identification and its checksum are free together only.
        let equal = normal(&changed) == normal(&one);
        assert!(!equal || free, "byte {at}");
    }
    // A port that the kernel would not choose.
    assert_ne!(normal(&tunnelled(inner, 1000, 99, 0)), normal(&other));
}

#[test]
fn an_inner_packet_may_not_differ_at_all() {
    for step in steps(6, 200).iter().filter(|step| by_pod(step) && step.oddities.none()) {
        let frame = &step.frames[0];
        assert_eq!(&normal(frame), frame);
    }
}

/// Time exceeded, as a router sends it for a packet.
fn time_exceeded(from: [u8; 4], id: u16, quoted: &[u8]) -> Vec<u8> {
    let mut ip =
        etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::ICMP, from, LEFT.pod().octets())
            .expect("no payload yet");
    ip.identification = id;
    let builder = PacketBuilder::ethernet2(LEFT.gateway_mac(), LEFT.pod_mac())
        .ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()))
        .icmpv4_raw(11, 0, [0; 4]);
    let mut frame = Vec::new();
    builder.write(&mut frame, quoted).expect("a packet in memory");
    frame
}

#[test]
fn an_error_is_known_by_the_packet_that_it_quotes() {
    let step = plain();
    let quoted = &step.frames[0][14..];
    let gateway = LEFT.address(1).octets();
    let (one, other) = (time_exceeded(gateway, 7, quoted), time_exceeded(gateway, 8, quoted));
    assert_eq!((key(&one), key(&other)), (Some(step.key), Some(step.key)));
    assert_eq!(normal(&one), normal(&other));
    let mut changed = quoted.to_vec();
    changed[8] ^= 1;
    assert_ne!(normal(&time_exceeded(gateway, 7, &changed)), normal(&one));
    // A pod's own error is a packet like any other.
    assert_eq!(key(&time_exceeded(RIGHT.pod().octets(), 7, quoted)), Some(7));
}

#[test]
fn what_is_seen_is_compared_place_by_place() {
    let step = plain();
    let frame = &step.frames[0];
    let seen = |taps: &[Tap]| {
        let mut seen = Seen::default();
        taps.iter().for_each(|tap| seen.add(*tap, frame));
        seen.made_of(step.key, step.sender)
    };
    use Tap::{CableFrom, LeftPod, RightPod};
    assert_eq!(seen(&[RightPod, CableFrom(LEFT)]), seen(&[CableFrom(LEFT), RightPod]));
    assert_ne!(seen(&[CableFrom(LEFT)]), seen(&[CableFrom(RIGHT)]));
    assert_ne!(seen(&[RightPod]), seen(&[LeftPod]));
    assert_ne!(seen(&[RightPod]), seen(&[RightPod, RightPod]), "delivered twice");
    assert_ne!(seen(&[RightPod]), seen(&[]));
    // What was put on the underlay by hand is not what came of it.
    let mut both = Seen::default();
    [LEFT, RIGHT].iter().for_each(|side| both.add(CableFrom(*side), frame));
    let of = |sender| both.made_of(step.key, sender).len();
    assert_eq!((of(Sender::Pod(RIGHT)), of(Sender::Wire(RIGHT))), (2, 1));
    // ARP and IPv6 belong to no packet of ours.
    let mut arp = frame.clone();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(key(&arp), None);
}

#[test]
fn a_flow_has_one_source_port() {
    let step = plain();
    let frame = |port| tunnelled(&step.frames[0], KEYS, port, 0);
    assert_eq!(source_port(&frame(40_000)), Some(40_000));
    assert!(inner_flow(&frame(40_000)).is_some());
    let (mut steady, mut unsteady) = (Ports::default(), Ports::default());
    steady.add(&frame(40_000));
    steady.add(&frame(40_000));
    unsteady.add(&frame(40_000));
    unsteady.add(&frame(40_001));
    assert_eq!((steady.unsteady(), unsteady.unsteady()), (0, 1));
    assert_eq!((steady.compare(&steady), steady.compare(&unsteady)), ((1, 0), (1, 1)));
    // One that was put on the underlay by hand says nothing.
    let mut ours = Ports::default();
    ours.add(&tunnelled(&step.frames[0], step.key, 40_000, 0));
    assert!(ours.is_empty());
}

#[test]
fn a_connections_ports_have_to_be_equal_whoever_sends() {
    // Masquerading elsewhere may choose any port.
    let step = plain();
    let mut foreign = step.frames[0].clone();
    foreign[26..30].copy_from_slice(&LEFT.address(0).octets());
    assert_eq!(normal(&foreign)[34..36], [0, 0]);
    let translated = |step: &Step| {
        let whole = by_pod(step) && step.oddities.none();
        whole && step.part.is_some_and(|part| part.kind.translates())
    };
    for step in Generator::new(Mode::Services, 9).filter(translated).take(200) {
        let part = step.part.expect("it is a connection's");
        let mut frame = step.frames[0].clone();
        // As it comes to the other pod.
        let client = if part.request { sender(&step) } else { sender(&step).other() };
        let ends = part.kind.ends(client, 40_000, Backend::Vxlan);
        let (source, port) = if part.request { ends.source } else { ends.target };
        frame[26..30].copy_from_slice(&source.octets());
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        if part.request {
            frame[36..38].copy_from_slice(&ends.server.1.to_be_bytes());
        }
        assert_eq!(normal(&frame), frame, "{step:?}");
    }
}

#[test]
fn routed_packets_have_no_tunnel_and_tunnelled_ones_do() {
    for (mode, port) in [(Mode::Services, Some(8472)), (Mode::HostGw, None)] {
        let by_wire = |step: &Step| !by_pod(step) && step.oddities.none() && step.part.is_some();
        let mut seen = 0;
        for step in Generator::new(mode, 10).filter(by_wire).take(50) {
            let [frame] = &step.frames[..] else { panic!("one frame: {step:?}") };
            assert_eq!(source_port(frame).is_some(), port.is_some(), "{step:?}");
            assert_eq!(key(frame), Some(step.key));
            let side = sender(&step);
            assert_eq!(frame[..12], [side.other().node_mac(), side.node_mac()].concat());
            seen += 1;
        }
        assert_eq!(seen, 50);
    }
}

#[test]
fn what_shares_its_buffer_with_fragments_is_not_compared_on_the_underlay() {
    let step = plain();
    let mut frame = step.frames[0].clone();
    // A last fragment.
    frame[20..22].copy_from_slice(&[0, 8]);
    let seen = |tap: Tap, frame: &[u8]| {
        let mut seen = Seen::default();
        seen.add(tap, frame);
        seen.of(step.key).to_vec()
    };
    let whole = seen(Tap::CableFrom(LEFT), &step.frames[0]);
    for at in [0, 6, 11, 15, 22, 26, 30] {
        let mut changed = frame.clone();
        changed[at] ^= 2;
        assert_eq!(
            seen(Tap::CableFrom(LEFT), &frame),
            seen(Tap::CableFrom(LEFT), &changed),
            "byte {at}"
        );
        assert_ne!(seen(Tap::LeftPod, &frame), seen(Tap::LeftPod, &changed), "byte {at}");
        let mut changed = step.frames[0].clone();
        changed[at] ^= 2;
        assert_ne!(whole, seen(Tap::CableFrom(LEFT), &changed), "byte {at}");
    }
    let mut changed = frame.clone();
    *changed.last_mut().expect("some bytes") ^= 2;
    assert_ne!(seen(Tap::CableFrom(LEFT), &frame), seen(Tap::CableFrom(LEFT), &changed));
}
