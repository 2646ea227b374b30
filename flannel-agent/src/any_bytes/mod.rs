//! Readers of what others write, over any bytes: what they have to read, what is
//! hostile, and both with edits. No reader panics, and what it takes it can tell.
//!
//! Samples are in `corpus/<reader>/`; those of which the name begins with
//! `hostile` are there to be refused or to be odd. Bytes that a reader failed on
//! once are put there, too.

use std::path::Path;

use flannel_core::config::NetworkConfig;
use flannel_core::firewall::names::Mine;
use flannel_core::firewall::packet_rules::iptables;
use flannel_core::firewall::packet_rules::nft::Listing;
use flannel_core::firewall::packet_rules::walk::{Overlay, findings};
use flannel_core::firewall::{chains, saved};
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::lease::free::{fits, pick};
use flannel_core::lease::key::SubnetKey;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::files::state;
use crate::files::subnet_env::SubnetEnv;
use crate::source::etcd2::{self, Etcd2};
use crate::source::options::EtcdOptions;

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

fn samples(reader: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(reader);
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Runs a reader over its samples, over edits of them, and over any bytes.
fn over_any_bytes(reader: &str, read: impl Fn(&[u8])) {
    let samples = samples(reader);
    assert!(samples.len() > 1, "{reader}");
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
        panic!("{reader}: {error}");
    }
}

/// As the agent takes what is no UTF-8.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn network_configs() {
    over_any_bytes("config", |bytes| match NetworkConfig::parse(&text(bytes)) {
        Ok(config) => {
            let first = pick(&config, [], |_| 0).expect("an empty network has room");
            let last = pick(&config, [], |free| free - 1).expect("an empty network has room");
            assert!(fits(&config, first) && fits(&config, last), "{config:?}");
            assert_eq!((first.ip(), last.ip()), (config.subnet_min, config.subnet_max));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    });
}

#[test]
fn leases() {
    over_any_bytes("lease", |bytes| {
        let Ok(attrs) = serde_json::from_str::<LeaseAttrs>(&text(bytes)) else { return };
        if let Err(error) = attrs.vtep() {
            assert!(error.to_string().len() < 1000, "a line of the log");
        }
        let written = serde_json::to_string(&attrs).unwrap();
        assert_eq!(serde_json::from_str::<LeaseAttrs>(&written).unwrap(), attrs, "{written}");
    });
}

#[test]
fn subnet_keys() {
    over_any_bytes("subnet-key", |bytes| {
        let Ok(key) = text(bytes).parse::<SubnetKey>() else { return };
        assert_eq!(key.to_string().parse::<SubnetKey>().unwrap().subnet(), key.subnet());
        assert_eq!(SubnetKey::new(key.subnet()).subnet(), key.subnet());
    });
}

#[test]
fn answers_of_etcd2() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let options = EtcdOptions {
        endpoints: vec!["http://127.0.0.1:2379".to_owned()],
        prefix: "/coreos.com/network".to_owned(),
        ..EtcdOptions::default()
    };
    // It connects with its first call, of which there is none.
    let etcd = runtime.block_on(Etcd2::connect(options)).unwrap();
    let known = samples("etcd2").into_iter().map(|sample| etcd2::leases_of(&etcd, &sample).len());
    assert!(known.sum::<usize>() > 0, "the samples hold leases");
    over_any_bytes("etcd2", |bytes| {
        for lease in etcd2::leases_of(&etcd, bytes) {
            assert_eq!(SubnetKey::new(lease.subnet).subnet(), lease.subnet);
        }
    });
}

const OVERLAY: &str = "10.5.0.0/16";

#[test]
fn iptables_rules() {
    let overlay = Overlay { network: OVERLAY.parse().unwrap(), port: Some(8472) };
    over_any_bytes("iptables-save", |bytes| {
        let text = text(bytes);
        findings(&iptables::read(&text), overlay);
        let tables = saved::parse(&text);
        let _ = saved::in_use(&tables);
        for mine in [Mine::default(), Mine::from_iter([overlay.network])] {
            let _ = chains::plan(&tables, None, &[], &mine);
        }
    });
}

#[test]
fn nft_rules() {
    let overlay = Overlay { network: OVERLAY.parse().unwrap(), port: Some(8472) };
    over_any_bytes("nft", |bytes| {
        let mut listing = Listing::new(Default::default());
        if listing.add(bytes).is_ok() {
            findings(&listing.finish().0, overlay);
        }
    });
}

#[test]
fn state_files() {
    over_any_bytes("state", |bytes| {
        let Ok(state) = state::parse(bytes) else { return };
        assert_eq!(state.subnet.ip(), state.subnet.network());
        let written = serde_json::to_vec(&state).unwrap();
        assert_eq!(state::parse(&written), Ok(state));
    });
}

#[test]
fn subnet_files() {
    over_any_bytes("subnet-env", |bytes| {
        let Some(env) = SubnetEnv::from_text(&text(bytes)) else { return };
        assert_eq!(SubnetEnv::from_text(&env.to_text()), Some(env));
    });
}
