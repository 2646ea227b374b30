//! What the eBPF path makes of packets is what the kernel path makes of them.
//! `cargo xtask difftest` compares more.

use flannel_tests::differential::run::Differential;
use flannel_tests::rules::Rules;

/// Each run compares another sequence; the seed is in the report.
#[test]
fn odd_packets_meet_the_same_fate_on_both_paths() {
    let report = Differential::new(Rules::None).run(10_000, rand::random(), |_| ());
    assert!(report.good(), "{}", report.text());
}
