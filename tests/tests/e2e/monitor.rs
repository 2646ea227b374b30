//! `flannel-agent monitor` and `trace --live`: packets at the hooks, while somebody looks.

use std::process::Command;
use std::time::Duration;

use aya::programs::{ProgramInfo, loaded_programs};
use flannel_core::status::{PacketEvent, PacketVerdict};
use flannel_core::trace::TraceReport;
use flannel_ebpf::abi::{Outcome, program};
use flannel_ebpf::monitor::watcher;
use flannel_tests::agent::Options;
use flannel_tests::load::RunningLoad;
use flannel_tests::pair::Pair;
use flannel_tests::process::{Process, output, run};
use flannel_tests::told::{read, told};
use flannel_tests::traffic::client::Spaced;
use flannel_tests::wait::{self, patience};
use nix::sys::signal::Signal;

/// Hooks of the fast path, and what they count for a packet that they carry.
const WAYS: [(&str, Outcome); 2] =
    [(program::FROM_POD, Outcome::FastEncap), (program::FROM_UNDERLAY, Outcome::FastDecap)];

fn command(pair: &Pair, flags: &[&str]) -> Command {
    let mut command = pair.left.agent_command("monitor");
    command.arg("--pin-dir").arg(pair.left.pin_dir()).args(flags);
    command
}

/// Datagrams that are carried for as long as monitors come and go. An emulated machine
/// would do nothing else with one each millisecond.
fn carry(pair: &Pair) -> RunningLoad<Spaced> {
    pair.start_spaced_by(
        Duration::from_secs(30) * patience(),
        Duration::from_millis(1) * patience(),
    )
}

/// What is told in this time.
fn seen(pair: &Pair, flags: &[&str]) -> Vec<PacketEvent> {
    let lines = run(command(pair, &["--json", "--time", "2s"]).args(flags));
    lines.lines().map(|line| read(line).unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// Whether a program raised a counter for this packet.
fn has(event: &PacketEvent, hook: &str, outcome: Outcome) -> bool {
    event.hook == hook && event.outcomes.contains(&outcome)
}

/// Programs of monitors that are loaded, and all programs' names.
fn watchers() -> (usize, Vec<String>) {
    let name = |program: ProgramInfo| String::from_utf8_lossy(program.name()).into_owned();
    let names: Vec<_> = loaded_programs().filter_map(Result::ok).map(name).collect();
    let ours = |name: &&String| [watcher::ENTERED, watcher::LEFT].contains(&name.as_str());
    (names.iter().filter(ours).count(), names)
}

/// Carried packets are told at both hooks.
fn carried(pair: &Pair, client: &str) {
    let events = seen(pair, &["--pod", client, "--proto", "udp", "--rate", "20000"]);
    for (hook, outcome) in WAYS {
        let event = events.iter().find(|event| has(event, hook, outcome));
        let event = event.unwrap_or_else(|| panic!("no {outcome:?} in {events:#?}"));
        assert_eq!(event.verdict, PacketVerdict::Sent);
        assert_eq!(event.proto.as_deref(), Some("udp"));
        let inwards = outcome == Outcome::FastDecap;
        let ends = event.ends.as_ref().expect("both ends");
        let end = if inwards { ends.destination } else { ends.source };
        assert!(end.ip().to_string() == client && end.port() != 0, "{event:#?}");
        let tunnel = event.tunnel.map(|tunnel| tunnel.destination);
        assert_eq!(tunnel, inwards.then_some(pair.left.address), "{event:#?}");
    }
    let missed = events.last().map(|event| event.not_told);
    // A guest under emulation may read more slowly than packets come.
    assert!(missed < Some(events.len() as u64 / 2), "{:#?}", events.last());
}

/// What is not wanted, or too much, is not told.
fn bounds(pair: &Pair) {
    assert_eq!(seen(pair, &["--pod", "10.99.0.0/16"]), []);
    let few = seen(pair, &["--rate", "1"]);
    let missed = few.last().map(|event| event.not_told);
    assert!((1..=16).contains(&few.len()) && missed > Some(0), "{few:#?}");
}

fn live(pair: &Pair) {
    let (from, to) = (pair.client.address.to_string(), pair.server.address.to_string());
    let mut command = pair.left.agent_command("trace");
    command.arg("--pin-dir").arg(pair.left.pin_dir());
    let (code, trace) = told::<TraceReport>(command.args([&from, &to, "udp", "--live", "2s"]));
    assert_eq!(code, Some(0), "{trace:#?}");
    let (by_hook, node) = trace.live_by_hook.as_ref().zip(trace.live.as_ref()).expect("counts");
    for (hook, outcome) in WAYS {
        assert!(by_hook[hook][outcome.name()] > 0, "{hook}: {trace:#?}");
        assert!(node[outcome.name()] > 0, "{trace:#?}");
    }
    assert_eq!(trace.live_not_counted, Some(0), "{trace:#?}");
}

/// However it ends, nothing of it remains, and the fast path goes on.
fn ends(pair: &Pair) {
    let server = pair.server.address.to_string();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let log = pair.lab.dir().join(format!("monitor-{signal}.log"));
        let mut monitor = Process::start("monitor", &mut command(pair, &["--all"]), &log);
        wait::until("a packet", Duration::from_secs(10), || {
            run(pair.client.netns.command("ping").args(["-c", "1", &server]));
            monitor.log().contains("from_pod ").then_some(())
        });
        let (count, names) = watchers();
        assert!(count >= 12, "{count} watchers: {names:?}");
        monitor.signal(signal);
        let status = monitor.wait(Duration::from_secs(5));
        assert_eq!(status.success(), signal != Signal::SIGKILL, "{status}: {}", monitor.log());
        wait::until("their end", Duration::from_secs(5), || (watchers().0 == 0).then_some(()));
    }
    pair.fast_both_ways();
}

#[test]
fn packets_are_told_with_hook_and_outcome() {
    let pair = Pair::agents(&Options::default());
    let (client, server) = (pair.client.address.to_string(), pair.server.address.to_string());
    pair.fast_both_ways();
    let running = carry(&pair);
    carried(&pair, &client);
    bounds(&pair);
    live(&pair);
    drop(running);

    let ping = ["-i", "0.2", "-w", "60", &server];
    let mut ping = pair.client.netns.command("ping").args(ping).spawn().expect("ping");
    let events = seen(&pair, &["--peer", "192.0.2.12", "--outcome", "kernel"]);
    ping.kill().and_then(|()| ping.wait()).expect("ping");
    let kernel = events.iter().filter(|event| {
        has(event, program::FROM_POD, Outcome::KernelProtocol)
            && event.verdict == PacketVerdict::Passed
    });
    assert!(kernel.count() >= 3, "{events:#?}");
    assert!(events.iter().all(|event| event.proto.as_deref() == Some("icmp")), "{events:#?}");
    ends(&pair);
}

/// What another kernel may do otherwise: watch the programs, and find packets' members.
#[test]
fn carried_packets_are_told_and_counted() {
    let pair = Pair::agents(&Options::default());
    pair.fast_both_ways();
    let _running = carry(&pair);
    carried(&pair, &pair.client.address.to_string());
    live(&pair);
}

#[test]
fn without_programs_it_says_what_is_missing() {
    let pair = Pair::agents(&Options::kernel());
    let output = output(&mut command(&pair, &[]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("open pinned map") && said.contains("kernel path carries all"), "{said}");
}
