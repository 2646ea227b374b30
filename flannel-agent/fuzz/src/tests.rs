//! What a target has to read, what is hostile, and both with edits.

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::TARGETS;

/// What a sample becomes.
#[derive(Clone, Debug)]
enum Edit {
    Put(usize, u8),
    Insert(usize, Vec<u8>),
    Delete(usize, usize),
    /// A piece once more, somewhere else.
    Repeat(usize, usize, usize),
    /// It goes on as another sample does.
    Splice(usize, usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = || any::<usize>();
    // What syntax is made of, and what is odd in it.
    let odd = prop::sample::select(vec![
        "\"",
        "{",
        "[",
        "]}",
        ",",
        ":",
        "-",
        "/",
        "&",
        "\n",
        " ",
        "null",
        "-1",
        "1e999",
        "99999999999999999999",
        "0",
        "\\u0000",
        "\\ud800",
        "!",
        "\u{212a}",
        "'",
    ]);
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Put(at, byte)),
        (at(), prop::collection::vec(any::<u8>(), 1..8))
            .prop_map(|(at, new)| Edit::Insert(at, new)),
        (at(), odd).prop_map(|(at, text)| Edit::Insert(at, text.as_bytes().to_vec())),
        (at(), 1..40_usize).prop_map(|(at, length)| Edit::Delete(at, length)),
        (at(), 1..80_usize, at()).prop_map(|(from, length, to)| Edit::Repeat(from, length, to)),
        (at(), at(), at()).prop_map(|(at, which, from)| Edit::Splice(at, which, from)),
    ]
}

fn edited(samples: &[Vec<u8>], which: usize, edits: &[Edit]) -> Vec<u8> {
    let sample = |which: usize| &samples[which % samples.len()];
    let mut bytes = sample(which).clone();
    for edit in edits {
        let end = bytes.len();
        let at = |at: usize| at % (end + 1);
        match edit {
            Edit::Put(place, byte) => {
                if let Some(there) = bytes.get_mut(at(*place)) {
                    *there = *byte;
                }
            }
            Edit::Insert(place, new) => {
                bytes.splice(at(*place)..at(*place), new.iter().copied());
            }
            Edit::Delete(place, length) => {
                bytes.drain(at(*place)..(at(*place) + length).min(end));
            }
            Edit::Repeat(from, length, to) => {
                let piece = bytes[at(*from)..(at(*from) + length).min(end)].to_vec();
                bytes.splice(at(*to)..at(*to), piece);
            }
            Edit::Splice(place, which, from) => {
                bytes.truncate(at(*place));
                let other = sample(*which);
                bytes.extend(&other[from % (other.len() + 1)..]);
            }
        }
    }
    bytes
}

fn samples(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Runs a target over its samples, over edits of them, and over any bytes.
#[track_caller]
fn over_any_bytes(target: &str) {
    let (_, read) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    let samples = samples(target);
    assert!(samples.len() > 1, "{target}");
    samples.iter().for_each(|sample| read(sample));
    let bytes = prop_oneof![
        9 => (any::<usize>(), prop::collection::vec(edit(), 1..6))
            .prop_map(|(which, edits)| edited(&samples, which, &edits)),
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ];
    // As many as the environment says; a few hundred milliseconds by default.
    let config = Config { failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&bytes, |bytes| {
        read(&bytes);
        Ok(())
    });
    if let Err(error) = run {
        panic!("{target}: {error}");
    }
}

macro_rules! targets {
    ($($case:ident: $target:literal),+ $(,)?) => {
        $(#[test] fn $case() { over_any_bytes($target); })+

        #[test]
        fn every_target_has_a_case_a_program_and_samples() {
            let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$($target),+]);
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
            for name in names {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            }
        }
    };
}

targets!(
    network_configs: "config",
    answers_of_etcd2: "etcd2",
    iptables_rules: "iptables-save",
    leases: "lease",
    nft_rules: "nft",
    packets: "packets",
    state_files: "state",
    subnet_files: "subnet-env",
    subnet_keys: "subnet-key",
);

#[test]
fn samples_of_etcd2_hold_leases() {
    let leases = samples("etcd2").into_iter().map(|sample| super::leases_of(&sample).len());
    assert!(leases.sum::<usize>() > 0);
}
