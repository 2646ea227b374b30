//! What the eBPF path makes of packets is what the kernel path makes of them.
//! `cargo xtask difftest` compares more.
//!
//! Each run compares another sequence; the seed is in the report.

use flannel_difftest::mode::Mode;
use flannel_difftest::run::Differential;
use flannel_tests::rules::Rules;

#[track_caller]
fn compare(mode: Mode, rules: Rules, packets: usize) {
    let report = Differential::new(mode, rules).run(packets, rand::random(), |_| ());
    assert!(report.good(), "{}", report.text());
}

#[test]
fn odd_packets_meet_the_same_fate_on_both_paths() {
    compare(Mode::Confirmed, Rules::None, 10_000);
}

#[test]
fn rules_against_invalid_packets_hold_on_both_paths() {
    compare(Mode::Confirmed, Rules::Iptables, 6_000);
}

#[test]
fn connections_that_begin_on_the_fast_path_meet_the_same_fate() {
    compare(Mode::Eager, Rules::Nftables, 8_000);
}

#[test]
fn services_of_nftables_are_translated_alike() {
    compare(Mode::Services, Rules::Nftables, 8_000);
}

#[test]
fn services_of_iptables_are_translated_alike() {
    compare(Mode::Services, Rules::Iptables, 8_000);
}

#[test]
fn routed_packets_meet_the_same_fate_without_a_tunnel() {
    compare(Mode::HostGw, Rules::Nftables, 8_000);
}
