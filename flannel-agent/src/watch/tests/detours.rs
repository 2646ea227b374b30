//! When rules and routes that lead elsewhere are looked for, and what is told.

use flannel_core::detours::{Fate, Here, MAIN, TableRoute};
use flannel_core::health::Part;
use flannel_core::mac::MacAddr;
use flannel_core::peer::Peer;
use ipnetwork::Ipv4Network;

use super::*;

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

/// A node without anything odd.
fn bench() -> Bench {
    let bench = Bench::empty();
    bench.watch.set_here(here());
    bench
}

fn here() -> Option<Here> {
    Some(Here {
        network: net("10.5.0.0/16"),
        subnet: net("10.5.1.0/24"),
        overlay: Some(FLANNEL),
        inputs: BTreeSet::new(),
    })
}

fn put_peers(bench: &Bench, subnets: &[&str]) {
    let peer = |subnet: Ipv4Network| {
        let public_ip = "192.0.2.12".parse().unwrap();
        (subnet, Peer { subnet, vtep_mac: MacAddr([2; 6]), public_ip })
    };
    bench.shared.lock().peers = Arc::new(subnets.iter().map(|text| peer(net(text))).collect());
    bench.watch.peers_changed();
}

fn put_black_hole(bench: &Bench) {
    let destination = net("10.5.7.128/25");
    let route = TableRoute { table: MAIN, destination, fate: Fate::Lost("blackhole") };
    bench.kernel.state().detours.routes = vec![route];
}

fn told(bench: &Bench) -> Option<String> {
    let part = Part::Name("blackhole 10.5.7.128/25 table main".to_owned());
    bench.complaint(About { subject: Subject::Detour, part })
}

fn looks(bench: &Bench) -> u32 {
    bench.kernel.state().detour_looks
}

#[tokio::test(start_paused = true)]
async fn it_is_looked_for_once_and_after_what_may_make_one() {
    let bench = bench();
    put_peers(&bench, &["10.5.7.0/24"]);
    let (events, _loop) = bench.start();
    pause(1).await;
    assert_eq!((looks(&bench), told(&bench)), (1, None));
    // Neither time, nor peers, nor what is about other ways.
    pause(200_000).await;
    put_peers(&bench, &["10.5.7.0/24", "10.5.8.0/24"]);
    bench.watch.set_here(here());
    for event in [KernelEvent::Decision, KernelEvent::Link { ifindex: 40 }, KernelEvent::Ruleset] {
        events.send(event).await.unwrap();
    }
    pause(1000).await;
    assert_eq!(looks(&bench), 1);
    put_black_hole(&bench);
    events.send(KernelEvent::OverlayRoute).await.unwrap();
    pause(1).await;
    assert!(told(&bench).unwrap().contains("peer 10.5.7.0/24"));
    for event in [KernelEvent::Rule, KernelEvent::LimitedRoute, KernelEvent::Overrun] {
        let before = looks(&bench);
        events.send(event).await.unwrap();
        pause(100).await;
        assert!(looks(&bench) > before, "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_there_before_its_peer_is_told_with_it() {
    let bench = bench();
    put_black_hole(&bench);
    let (_events, _loop) = bench.start();
    pause(100).await;
    assert_eq!(told(&bench), None);
    put_peers(&bench, &["10.5.7.0/24"]);
    pause(100).await;
    assert!(told(&bench).is_some());
    put_peers(&bench, &["10.5.8.0/24"]);
    pause(100).await;
    assert_eq!(told(&bench), None);
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_device_and_with_our_ways() {
    let bench = bench();
    put_peers(&bench, &["10.5.7.0/24"]);
    put_black_hole(&bench);
    let (events, _loop) = bench.start();
    pause(1).await;
    assert!(told(&bench).is_some());
    bench.kernel.state().detours.routes.clear();
    events.send(KernelEvent::Link { ifindex: 40 }).await.unwrap();
    pause(100).await;
    assert_eq!(told(&bench), None);
    put_black_hole(&bench);
    events.send(KernelEvent::OverlayRoute).await.unwrap();
    pause(100).await;
    assert!(told(&bench).is_some());
    bench.watch.set_here(None);
    pause(100).await;
    assert_eq!(told(&bench), None, "nothing of ours is there that it could lead away from");
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_changes_costs_a_part_of_the_time_only() {
    let bench = bench();
    let (events, _loop) = bench.start();
    pause(100).await;
    let before = looks(&bench);
    for _ in 0..1000 {
        events.send(KernelEvent::OverlayRoute).await.unwrap();
        pause(1).await;
    }
    assert!((2..=22).contains(&(looks(&bench) - before)), "{}", looks(&bench));
}
