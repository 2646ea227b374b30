//! Rules that no event tells of: what they forbid ends within one window,
//! whatever the fast path is allowed to do.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::beside::{Way, pairs};
use flannel_tests::load::{REQUESTS, SPACED};
use flannel_tests::pair::Pair;

/// The window, and half a second for the processes to be scheduled.
const LIMIT: Duration = Duration::from_millis(1500);

fn options(fast_path: &str, window: &'static str) -> Options {
    let extra = vec![format!("--fast-path={fast_path}")];
    Options { window: Some(window), extra, ..Options::default() }
}

/// When the last of many connections was made, counted from `start`.
fn last_connection(pair: &Pair, start: Instant, until: Duration) -> Duration {
    let at = pair.server.target().into();
    pair.client.netns.inside(|| {
        let mut last = Duration::ZERO;
        while start.elapsed() < until {
            if TcpStream::connect_timeout(&at, Duration::from_millis(200)).is_ok() {
                last = start.elapsed();
            }
            thread::sleep(Duration::from_millis(5));
        }
        last
    })
}

/// Flows that run, and new connections all the time, until a rule of `right`
/// forbids them.
fn stops(fast_path: &str, before: impl Fn(&Pair), forbid: impl Fn(&Pair)) {
    stops_within(("1s", LIMIT), fast_path, before, forbid);
}

/// The same, with this window, and within this time.
fn stops_within(
    (window, ours): (&'static str, Duration),
    fast_path: &str,
    before: impl Fn(&Pair),
    forbid: impl Fn(&Pair),
) {
    pairs(&options(fast_path, window), |pair, way| {
        before(pair);
        let target = pair.server.target();
        let start = Instant::now();
        let tcp = pair.client.start_traffic(REQUESTS, target, "--seconds 5 --patience 1.5");
        let udp = pair.client.start_traffic(SPACED, target, "--seconds 5");
        let (inserted, connected) = thread::scope(|scope| {
            let connecting = scope.spawn(|| last_connection(pair, start, Duration::from_secs(5)));
            thread::sleep(Duration::from_secs(2));
            let eager = pair.left.outcomes().get(Outcome::OpenedEager);
            assert!(fast_path != "eager" || way == Way::Kernel || eager > 30, "{eager}");
            forbid(pair);
            (start.elapsed(), connecting.join().expect("the connecting thread"))
        });
        let (tcp, udp) = (tcp.finish().last_ms, udp.finish().last_ms);
        let limit = if way == Way::Kernel { Duration::from_millis(500) } else { ours };
        for (name, last) in [
            ("TCP", Duration::from_millis(tcp)),
            ("UDP", Duration::from_millis(udp)),
            ("connections", connected),
        ] {
            assert!(last > Duration::from_secs(1), "{name} until {last:?}");
            assert!(last < inserted + limit, "{name} until {last:?}, the rule at {inserted:?}");
        }
    });
}

fn forwarded(pair: &Pair) {
    let to = pair.server.address;
    pair.right.netns.sh(&format!("iptables-legacy -I FORWARD -d {to} -j DROP"));
}

fn tunnelled(pair: &Pair) {
    let from = pair.left.address;
    let rule = format!("INPUT -s {from} -p udp --dport 8472 -j DROP");
    pair.right.netns.sh(&format!("iptables-legacy -I {rule}"));
}

#[test]
fn a_legacy_rule_stops_confirmed_flows() {
    stops("confirmed", |_| (), forwarded);
}

#[test]
fn a_legacy_rule_stops_eager_connections() {
    stops("eager", |_| (), forwarded);
}

#[test]
fn a_legacy_rule_about_the_tunnel_stops_confirmed_flows() {
    stops("confirmed", |_| (), tunnelled);
}

#[test]
fn a_legacy_rule_about_the_tunnel_stops_eager_connections() {
    stops("eager", |_| (), tunnelled);
}

/// The node has a table of legacy iptables already, so that no new one tells.
fn old_table(pair: &Pair) {
    pair.left.netns.sh("iptables-legacy -A FORWARD -d 203.0.113.1 -j DROP");
    thread::sleep(Duration::from_secs(2));
}

fn sent(pair: &Pair) {
    pair.left.netns.sh("iptables-legacy -I OUTPUT -p udp --dport 8472 -j DROP");
}

#[test]
fn a_legacy_rule_about_what_enters_the_tunnel_stops_all_flows() {
    let within = ("2s", Duration::from_millis(2500));
    for fast_path in ["confirmed", "eager"] {
        stops_within(within, fast_path, old_table, sent);
    }
}

/// A set of addresses that a rule has dropped from the start.
fn set(pair: &Pair) {
    pair.right.netns.sh("ipset create refused hash:ip");
    pair.right.netns.sh("iptables-legacy -I FORWARD -m set --match-set refused dst -j DROP");
}

fn refused(pair: &Pair) {
    pair.right.netns.sh(&format!("ipset add refused {}", pair.server.address));
}

#[test]
fn an_address_in_a_set_stops_confirmed_flows() {
    stops("confirmed", set, refused);
}

#[test]
fn an_address_in_a_set_stops_eager_connections() {
    stops("eager", set, refused);
}
