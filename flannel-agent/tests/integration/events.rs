//! Events of the real kernel, each test in a network namespace of its own.
//! Needs root.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::netns::vxlan::{OWN_MAC, desired, ifindex, peer, reconcile, settled, underlay};
use crate::netns::{in_netns, json, run};
use flannel_agent::kernel::events::Scope;
use flannel_agent::kernel::netlink::RealKernel;
use flannel_agent::kernel::{Kernel, KernelEvent, events};
use flannel_core::observed::ObservedRoute;
use flannel_core::plan;
use ipnetwork::Ipv4Network;
use tokio::sync::mpsc;

/// Waits for an event, skipping others.
async fn expect(events: &mut mpsc::Receiver<KernelEvent>, wanted: KernelEvent) {
    let found = async {
        loop {
            match events.recv().await {
                Some(event) if event == wanted => return,
                Some(_) => {}
                None => panic!("events ended"),
            }
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(2), found).await;
    found.unwrap_or_else(|_| panic!("no {wanted:?}"));
}

/// Everything that comes within a short time.
async fn drain(events: &mut mpsc::Receiver<KernelEvent>) -> Vec<KernelEvent> {
    let mut found = Vec::new();
    while let Ok(Some(event)) =
        tokio::time::timeout(Duration::from_millis(150), events.recv()).await
    {
        found.push(event);
    }
    found
}

fn to_peer(number: u8) -> ObservedRoute {
    ObservedRoute::to_peer(Ipv4Network::new(Ipv4Addr::new(10, 5, number, 0), 24).unwrap())
}

#[test]
fn damage_is_told_and_repaired() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let want = desired(underlay(), [peer(1), peer(2)]);
        let mut events = events::subscribe(&Scope::default()).unwrap();
        reconcile(&kernel, &want).await;
        let ifindex = ifindex("flannel.1");
        let route = KernelEvent::RouteLost { ifindex, route: to_peer(1) };
        let neighbour = KernelEvent::Neighbour { ifindex };
        for (damage, event) in [
            ("ip route flush dev flannel.1", route),
            ("ip route del 10.5.1.0/24", route),
            ("ip neigh del 10.5.1.0 dev flannel.1", neighbour),
            (
                "ip neigh change 10.5.1.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
                neighbour,
            ),
            ("bridge fdb del 02:00:00:00:00:01 dst 198.18.0.1 dev flannel.1 self", neighbour),
            ("ip link set flannel.1 address 02:00:00:00:00:99", KernelEvent::Link { ifindex }),
            ("ip link set flannel.1 down", KernelEvent::Link { ifindex }),
            ("ip address del 10.5.0.0/32 dev flannel.1", KernelEvent::Address { ifindex }),
            ("ip link del flannel.1", KernelEvent::Link { ifindex }),
        ] {
            drain(&mut events).await;
            run(damage);
            expect(&mut events, event).await;
            assert_ne!(reconcile(&kernel, &want).await, [], "{damage}");
            settled(&kernel, &want).await;
        }
        let link = &json("ip -j link show flannel.1")[0];
        assert_eq!(link["address"], OWN_MAC.to_string());
    });
}

#[test]
fn what_we_do_ourselves_is_no_event() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let scope = Scope::default();
        scope.set_own(kernel.own());
        let eth0 = underlay();
        reconcile(&kernel, &desired(eth0, [peer(1)])).await;
        let mut events = events::subscribe(&scope).unwrap();
        drain(&mut events).await;
        reconcile(&kernel, &desired(eth0, (1..=3).map(peer))).await;
        reconcile(&kernel, &desired(eth0, [peer(3)])).await;
        assert_eq!(drain(&mut events).await, []);
        let ifindex = ifindex("flannel.1");
        run("ip neigh del 10.5.3.0 dev flannel.1");
        expect(&mut events, KernelEvent::Neighbour { ifindex }).await;
        run("ip route del 10.5.3.0/24");
        expect(&mut events, KernelEvent::RouteLost { ifindex, route: to_peer(3) }).await;
    });
}

#[test]
fn resolution_is_no_event_and_a_burst_is_few() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let mut want = desired(underlay(), []);
        want.network = "10.0.0.0/8".parse().unwrap();
        reconcile(&kernel, &want).await;
        let mut events = events::subscribe(&Scope::default()).unwrap();
        run("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud reachable");
        run("ip neigh change 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud stale");
        run("ip neigh del 192.0.2.9 dev eth0");
        assert_eq!(drain(&mut events).await, []);
        want.peers = (0..2000).map(|n| (peer(n + 1).subnet, peer(n + 1))).collect();
        reconcile(&kernel, &want).await;
        let found = drain(&mut events).await;
        assert!(!found.is_empty() && found.len() < 200, "{} events", found.len());
        assert!(!found.contains(&KernelEvent::Overrun));
    });
}

#[test]
fn lost_events_are_told() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let mut want = desired(underlay(), []);
        reconcile(&kernel, &want).await;
        let mut events = events::subscribe_with_buffer(&Scope::default(), 4096).unwrap();
        want.peers = (0..100).map(|n| (peer(n + 1).subnet, peer(n + 1))).collect();
        let ops = plan::diff(&want, &kernel.observe("flannel.1").await.unwrap());
        for result in kernel.apply("flannel.1", &ops).await {
            result.unwrap();
        }
        expect(&mut events, KernelEvent::Overrun).await;
        // It goes on after that.
        drain(&mut events).await;
        run("ip link set flannel.1 down");
        expect(&mut events, KernelEvent::Link { ifindex: ifindex("flannel.1") }).await;
    });
}

#[test]
fn a_rule_set_that_changes_is_an_event() {
    in_netns(async {
        let mut events = events::subscribe(&Scope::default()).unwrap();
        run("nft add table ip something");
        expect(&mut events, KernelEvent::Ruleset).await;
        drain(&mut events).await;
        run("nft list ruleset");
        assert_eq!(drain(&mut events).await, []);
    });
}
