//! Readers of what others write, and the packet path, over any bytes. No reader
//! panics, and what it takes it can tell. Packets pass their exits as they are.
//!
//! `cargo xtask fuzz` lets libFuzzer look for bytes that a target fails on. Samples are
//! in `flannel-agent/corpus/<target>/`; those of which the name begins with `hostile`
//! are there to be refused or to be odd. Bytes that a target failed on once are put
//! there, too. The unit tests read them all, and edits of them.

use std::time::Instant;

use flannel_core::config::NetworkConfig;
use flannel_core::firewall::names::Mine;
use flannel_core::firewall::packet_rules::iptables;
use flannel_core::firewall::packet_rules::nft::Listing;
use flannel_core::firewall::packet_rules::walk::{Overlay, findings};
use flannel_core::firewall::{chains, saved};
use flannel_core::lease::Lease;
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::lease::free::{fits, pick};
use flannel_core::lease::key::SubnetKey;
use flannel_core::lease::v2::LeaseChange;
use flannel_core::state;
use flannel_core::subnet_env::SubnetEnv;
use flannel_ebpf::path::fake::any_packets;

#[cfg(test)]
mod tests;

/// What reads bytes.
pub type Target = fn(&[u8]);

/// All targets, by the folder of their samples.
pub const TARGETS: &[(&str, Target)] = &[
    ("config", config),
    ("etcd2", etcd2),
    ("iptables-save", iptables_save),
    ("lease", lease),
    ("nft", nft),
    ("packets", any_packets),
    ("state", state_file),
    ("subnet-env", subnet_env),
    ("subnet-key", subnet_key),
];

const OVERLAY: &str = "10.5.0.0/16";
const SUBNETS: &str = "/coreos.com/network/subnets/";

/// Makes a program of a target: for libFuzzer, or to read files again.
#[macro_export]
macro_rules! program {
    ($name:literal) => {
        fn read(bytes: &[u8]) {
            let target = $crate::TARGETS.iter().find(|(name, _)| *name == $name);
            target.expect("a target").1(bytes);
        }

        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| read(bytes));

        #[cfg(not(fuzzing))]
        fn main() {
            for file in std::env::args_os().skip(1) {
                read(&std::fs::read(file).expect("a sample"));
            }
        }
    };
}

/// As the agent takes what is no UTF-8.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn overlay() -> Overlay {
    Overlay { network: OVERLAY.parse().expect("a network"), port: Some(8472) }
}

/// The network's configuration.
fn config(bytes: &[u8]) {
    match NetworkConfig::parse(&text(bytes)) {
        Ok(config) => {
            // As with flannel such a config is taken, and has no subnet to give.
            if config.subnet_min > config.subnet_max {
                assert_eq!(pick(&config, [], |_| 0), None, "{config:?}");
                return;
            }
            let first = pick(&config, [], |_| 0).expect("an empty network has room");
            let last = pick(&config, [], |free| free - 1).expect("an empty network has room");
            assert!(fits(&config, first) && fits(&config, last), "{config:?}");
            assert_eq!((first.ip(), last.ip()), (config.subnet_min, config.subnet_max));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The value of a lease.
fn lease(bytes: &[u8]) {
    let Ok(attrs) = serde_json::from_str::<LeaseAttrs>(&text(bytes)) else { return };
    if let Err(error) = attrs.vtep() {
        assert!(error.to_string().chars().count() < 1000, "a line of the log");
    }
    let written = serde_json::to_string(&attrs).expect("it is written");
    let again: LeaseAttrs = serde_json::from_str(&written).expect("it is read again");
    assert_eq!(again, attrs, "{written}");
}

/// The name of a lease.
fn subnet_key(bytes: &[u8]) {
    let Ok(key) = text(bytes).parse::<SubnetKey>() else { return };
    let again: SubnetKey = key.to_string().parse().expect("it is read again");
    assert_eq!(again.subnet(), key.subnet());
    assert_eq!(SubnetKey::new(key.subnet()).subnet(), key.subnet());
}

/// All leases in an answer of etcd's v2 API.
fn leases_of(body: &[u8]) -> Vec<Lease> {
    let Ok(change) = serde_json::from_slice::<LeaseChange>(body) else { return Vec::new() };
    let mut nodes = vec![change.node];
    let mut leases = Vec::new();
    while let Some(node) = nodes.pop() {
        leases.extend(node.lease(SUBNETS, Instant::now()));
        nodes.extend(node.nodes);
    }
    leases
}

/// An answer of etcd's v2 API.
fn etcd2(bytes: &[u8]) {
    for lease in leases_of(bytes) {
        assert_eq!(SubnetKey::new(lease.subnet).subnet(), lease.subnet);
    }
}

/// Rules as iptables-save prints them.
fn iptables_save(bytes: &[u8]) {
    let (text, overlay) = (text(bytes), overlay());
    findings(&iptables::read(&text), overlay);
    let tables = saved::parse(&text);
    let _ = saved::in_use(&tables);
    for mine in [Mine::default(), Mine::from_iter([overlay.network])] {
        let _ = chains::plan(&tables, None, &[], &mine);
    }
}

/// Rules as nft prints them in JSON.
fn nft(bytes: &[u8]) {
    let mut listing = Listing::new(Default::default());
    if listing.add(bytes).is_ok() {
        findings(&listing.finish().0, overlay());
    }
}

/// What the node remembers.
fn state_file(bytes: &[u8]) {
    let Ok(read) = state::parse(bytes) else { return };
    assert_eq!(read.subnet.ip(), read.subnet.network());
    let written = serde_json::to_vec(&read).expect("it is written");
    assert_eq!(state::parse(&written), Ok(read));
}

/// `subnet.env`.
fn subnet_env(bytes: &[u8]) {
    let Some(env) = SubnetEnv::from_text(&text(bytes)) else { return };
    assert_eq!(SubnetEnv::from_text(&env.to_text()), Some(env));
}
