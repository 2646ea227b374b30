use std::collections::BTreeMap;

use rand::SeedableRng;

use super::*;
use crate::draft::Transport;
use crate::kind::End;

/// What a connection is known by.
type Name = (bool, End, End);

/// Where a packet stands in the sequence, how often everything had arrived before
/// it, and the packet.
type Said = (usize, usize, Word, bool);

fn sequence(mode: Mode, seed: u64, count: usize) -> BTreeMap<Name, Vec<Said>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut pool = Pool::new(mode, &mut rng);
    let mut all: BTreeMap<Name, Vec<Said>> = BTreeMap::new();
    let mut arrived = 0;
    for at in 0..count {
        let next = pool.next(&mut rng).expect("there are connections");
        arrived += usize::from(next.waits);
        let Connection { slot, ends, .. } = next.connection;
        let said = (at, arrived, next.word, next.loose);
        all.entry((slot.tcp, ends.client, ends.target)).or_default().push(said);
    }
    all
}

/// SYN, FIN, RST and ACK of a segment.
fn flags(word: &Word) -> (bool, bool, bool, bool) {
    let Transport::Tcp(tcp) = &word.transport else { panic!("{word:?}") };
    (tcp.syn, tcp.fin, tcp.rst, tcp.ack)
}

#[test]
fn nothing_is_said_before_what_it_answers_has_arrived() {
    for mode in [Mode::Services, Mode::Eager] {
        let (mut opened, mut ended) = (0, 0);
        for ((tcp, ..), said) in sequence(mode, 1, 20_000) {
            for pair in said.windows(2) {
                let [(_, before, _, was_loose), (_, now, _, loose)] = pair else { unreachable!() };
                assert!(*was_loose && *loose || before < now, "{pair:?}");
            }
            if !tcp {
                assert!(said[0].2.request && said.get(1).is_none_or(|said| !said.2.request));
                continue;
            }
            let words: Vec<_> =
                said.iter().map(|(.., word, _)| (word.request, flags(word))).collect();
            assert_eq!(words[0], (true, (true, false, false, false)));
            if let [_, answer, settle, ..] = words[..] {
                assert_eq!(answer, (false, (true, false, false, true)));
                assert_eq!(settle, (true, (false, false, false, true)));
                opened += 1;
            }
            let last = words.iter().position(|(_, (_, fin, rst, _))| *fin || *rst);
            let Some(last) = last.filter(|last| last + 2 < words.len()) else { continue };
            let (first, (_, fin, ..)) = words[last];
            if fin {
                assert_eq!(words[last + 1], (!first, (false, true, false, true)));
                assert_eq!(words[last + 2], (first, (false, false, false, true)));
            }
            ended += 1;
        }
        assert!(opened > 60 && ended > 10, "{mode}: {opened} {ended}");
    }
}

#[test]
fn sequence_numbers_go_on_with_a_gap_behind_data() {
    let all = sequence(Mode::Services, 2, 10_000);
    for said in all.iter().filter(|((tcp, ..), _)| *tcp).map(|(_, said)| said) {
        let mut expected: [Option<u32>; 2] = [None; 2];
        for (.., word, loose) in said {
            let Transport::Tcp(tcp) = &word.transport else { panic!("{word:?}") };
            if tcp.syn && !tcp.ack {
                expected = [None; 2];
            }
            let mine = &mut expected[usize::from(word.request)];
            assert!(mine.is_none_or(|mine| mine == tcp.sequence_number), "{word:?}");
            let length = u32::try_from(word.payload.len()).unwrap();
            let more = u32::from(tcp.syn || tcp.fin) + u32::from(*loose);
            *mine = Some(tcp.sequence_number.wrapping_add(length + more));
            let other = expected[usize::from(!word.request)];
            assert!(!tcp.ack || other == Some(tcp.acknowledgment_number), "{word:?}");
        }
    }
}

#[test]
fn every_slot_has_one_connection_at_a_time() {
    for mode in [Mode::Services, Mode::Eager, Mode::HostGw] {
        let mut rng = StdRng::seed_from_u64(3);
        let mut pool = Pool::new(mode, &mut rng);
        for at in 0..5_000 {
            let next = pool.next(&mut rng).expect("there are connections");
            if at % 50 == 0 {
                pool.forget(&next.connection, &mut rng);
            }
            let lives = pool.ready.iter().chain(&pool.turn).chain(&pool.waiting);
            let mut slots: Vec<_> =
                lives.map(|connection| format!("{:?}", connection.slot)).collect();
            let mut wanted: Vec<_> = mode.slots().iter().map(|slot| format!("{slot:?}")).collect();
            slots.sort();
            wanted.sort();
            assert_eq!(slots, wanted);
        }
    }
    assert!(
        Pool::new(Mode::Confirmed, &mut StdRng::seed_from_u64(3))
            .next(&mut StdRng::seed_from_u64(3))
            .is_none()
    );
}

#[test]
fn ports_come_again_at_once_or_late() {
    let mut seen: BTreeMap<(bool, End, End), usize> = BTreeMap::new();
    let mut again = 0;
    for ((tcp, client, target), said) in sequence(Mode::Services, 4, 40_000) {
        let opened =
            said.iter().filter(|(.., word, _)| tcp && flags(word) == (true, false, false, false));
        again += opened.count().saturating_sub(1);
        *seen.entry((tcp, client, target)).or_default() += 1;
    }
    assert!(again > 8, "{again}");
    assert!(seen.len() > 150, "{}", seen.len());
}
