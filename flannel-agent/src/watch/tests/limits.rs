//! What the programs are told of routes with limits of their own, and when.

use std::net::Ipv4Addr;

use flannel_core::limits::{LimitedRoute, Limits};
use flannel_core::mac::MacAddr;
use flannel_core::peer::Peer;
use ipnetwork::Ipv4Network;

use super::*;

const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);

fn subnet() -> Ipv4Network {
    "10.5.7.0/24".parse().unwrap()
}

/// With one peer.
fn bench() -> Bench {
    let bench = Bench::empty();
    let peer = Peer { subnet: subnet(), vtep_mac: MacAddr([2; 6]), public_ip: PEER };
    bench.datapath.state().peers.insert(subnet(), peer);
    bench
}

fn set(bench: &Bench, limits: Option<Limits>) {
    let mut kernel = bench.kernel.state();
    let destination = "192.0.2.0/24".parse().unwrap();
    let route = |limits| LimitedRoute { destination, main: true, limits };
    kernel.limited = limits.map(route).into_iter().collect();
    kernel.limits = limits.map(|limits| (PEER, limits)).into_iter().collect();
}

fn mtu(mtu: u32) -> Limits {
    Limits { mtu: Some(mtu), hop_limit: false }
}

fn bound(bench: &Bench) -> Option<u16> {
    bench.datapath.state().bounds.get(&subnet()).copied()
}

#[tokio::test(start_paused = true)]
async fn limited_routes_count_from_the_start_and_from_their_change_on() {
    let mut bench = bench();
    set(&bench, Some(mtu(1300)));
    bench.settle();
    assert_eq!(bound(&bench), Some(1300));
    let (events, _loop) = bench.start();
    pause(2000).await;
    let before = bench.generation();
    set(&bench, Some(mtu(1200)));
    events.send(KernelEvent::LimitedRoute).await.unwrap();
    pause(1).await;
    assert_eq!(bound(&bench), Some(1200));
    assert!(bench.generation() > before);
    pause(100).await;
    // A TTL of its own is the kernel's to write.
    set(&bench, Some(Limits { mtu: Some(1300), hop_limit: true }));
    events.send(KernelEvent::LimitedRoute).await.unwrap();
    pause(1).await;
    assert_eq!(bound(&bench), Some(0));
    pause(100).await;
    // What takes the place of a route does not tell what that said.
    set(&bench, None);
    events.send(KernelEvent::Decision).await.unwrap();
    pause(1).await;
    assert_eq!(bound(&bench), None);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_where_no_route_has_limits() {
    let mut bench = bench();
    bench.settle();
    let (events, _loop) = bench.start();
    for _ in 0..5 {
        events.send(KernelEvent::Decision).await.unwrap();
        pause(100).await;
        bench.watch.look_at_new_peers();
        bench.settle();
    }
    assert_eq!((bound(&bench), bench.kernel.state().asked.len()), (None, 0));
    // Only that the routes were read can be known so.
    set(&bench, Some(mtu(1300)));
    events.send(KernelEvent::Decision).await.unwrap();
    pause(100).await;
    assert_eq!(bound(&bench), None);
}

#[tokio::test(start_paused = true)]
async fn new_peers_are_asked_for() {
    let mut bench = bench();
    let peer = bench.datapath.state().peers.remove(&subnet()).unwrap();
    set(&bench, Some(mtu(1300)));
    bench.settle();
    bench.datapath.state().peers.insert(subnet(), peer);
    bench.watch.look_at_new_peers();
    assert_eq!(bound(&bench), Some(1300));
    assert_eq!(bench.kernel.state().asked.len(), 1);
    bench.watch.look_at_new_peers();
    assert_eq!(bench.kernel.state().asked.len(), 1);
}
