//! The agent dies, stops, comes back: traffic does not notice.

use std::fs;
use std::thread;
use std::time::Duration;

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::load::SPACED;
use flannel_tests::pair::Pair;

const SECOND: Duration = Duration::from_secs(1);

fn clsact() -> Options {
    Options { attach: Some("clsact"), ..Options::ebpf() }
}

/// Runs `act` one second into a stream of one packet per millisecond; none
/// may be lost.
#[track_caller]
fn nothing_lost_while(pair: &mut Pair, act: impl FnOnce(&mut Pair)) {
    // Confirmed before, so that both paths are in it.
    pair.traffic(SPACED, "--seconds 0.5");
    pair.nothing_lost(6 * SECOND, act);
}

fn kill_and_start(options: &Options) {
    let mut pair = Pair::agents(options);
    let (subnet, mac) = (pair.left.subnet(), pair.left.vtep_mac());
    let before = pair.left.outcomes();
    nothing_lost_while(&mut pair, |pair| {
        pair.left.kill_agent();
        thread::sleep(SECOND);
        pair.left.start(&pair.etcd, options);
    });
    assert_eq!((pair.left.subnet(), pair.left.vtep_mac()), (subnet, mac));
    // Maps live on: the counters go on from where they were.
    let after = pair.left.outcomes();
    assert!(
        after.get(Outcome::FastEncap) > before.get(Outcome::FastEncap) + 5000,
        "{before:?} {after:?}"
    );
    assert_eq!(pair.etcd.subnets().len(), 2, "{:?}", pair.etcd.subnets());
}

#[test]
fn killed_and_started() {
    kill_and_start(&Options::ebpf());
}

#[test]
fn killed_and_started_with_clsact_filters() {
    kill_and_start(&clsact());
}

#[test]
fn killed_and_started_on_the_kernel_path() {
    let options = Options::kernel();
    let mut pair = Pair::agents(&options);
    nothing_lost_while(&mut pair, |pair| {
        pair.left.kill_agent();
        pair.left.start(&pair.etcd, &options);
    });
}

#[test]
fn killed_five_times() {
    let options = Options::ebpf();
    let mut pair = Pair::agents(&options);
    nothing_lost_while(&mut pair, |pair| {
        for _ in 0..5 {
            pair.left.kill_agent();
            pair.left.start(&pair.etcd, &options);
        }
    });
}

fn stop(options: &Options) {
    let mut pair = Pair::agents(options);
    nothing_lost_while(&mut pair, |pair| {
        let status = pair.left.stop_agent();
        assert!(status.success(), "{status}");
        let status = pair.right.stop_agent();
        assert!(status.success(), "{status}");
    });
    // Without any agent flows are confirmed and carried as before.
    let spaced = pair.traffic(SPACED, "--seconds 2");
    assert_eq!(spaced.lost, 0, "{spaced:?}");
    pair.check_integrity(20);
    let before_start = pair.left.netns.ip("-s -s link show flannel.1");
    pair.left.start(&pair.etcd, options);
    assert!(pair.left.outcomes().get(Outcome::FastEncap) > 5000, "{before_start}");
}

#[test]
fn stopped() {
    stop(&Options::ebpf());
}

#[test]
fn stopped_with_clsact_filters() {
    stop(&clsact());
}

#[test]
fn another_build_of_the_programs_takes_over() {
    let mut pair = Pair::agents(&Options::ebpf());
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../flannel-ebpf/prebuilt");
    let mut object = fs::read(format!("{committed}/flannel-ebpf.bpf.o")).expect("the object");
    // Another licence text that is GPL-compatible makes it another object.
    let place = object.windows(12).position(|text| text == b"Dual MIT/GPL").expect("a licence");
    object[place..place + 12].copy_from_slice(b"Dual BSD/GPL");
    let path = pair.lab.dir().join("other.bpf.o");
    fs::write(&path, object).expect("write the object");
    let environment = vec![("FLANNEL_EBPF_OBJECT".to_owned(), path.display().to_string())];
    let other = Options { environment, ..Options::ebpf() };
    nothing_lost_while(&mut pair, |pair| {
        pair.left.kill_agent();
        pair.left.start(&pair.etcd, &other);
    });
    let before = pair.left.outcomes();
    pair.traffic(SPACED, "--seconds 1");
    assert!(pair.left.outcomes().since(&before).fast() > 900);
}

#[test]
fn another_window_takes_effect_by_a_restart() {
    let mut pair = Pair::agents(&Options::ebpf());
    let short = Options { window: Some("200ms"), ..Options::ebpf() };
    nothing_lost_while(&mut pair, |pair| {
        pair.left.stop_agent();
        pair.left.start(&pair.etcd, &short);
    });
    let before = pair.left.outcomes();
    pair.traffic(SPACED, "--seconds 3");
    let expired = pair.left.outcomes().since(&before).get(Outcome::KernelExpired);
    assert!(expired >= 10, "{expired} proofs in 3 s");
}

#[test]
fn from_ebpf_to_kernel_and_back() {
    let mut pair = Pair::agents(&Options::ebpf());
    nothing_lost_while(&mut pair, |pair| {
        pair.left.stop_agent();
        pair.left.start(&pair.etcd, &Options::kernel());
        thread::sleep(SECOND);
        pair.left.stop_agent();
        pair.left.start(&pair.etcd, &Options::ebpf());
    });
}
