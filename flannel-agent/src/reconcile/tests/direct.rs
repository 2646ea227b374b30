//! Passes of the backends that reach peers without encapsulation, and of the
//! one that reaches none.

use flannel_core::observed::DirectRoute;

use super::*;
use crate::kernel::KernelEvent;
use flannel_core::underlay::successor::PATIENCE;

impl Bench {
    /// The kernel's way to a peer from now on.
    fn route(&self, to: Peer, gateway: Option<[u8; 4]>) {
        let gateway = gateway.map(Ipv4Addr::from);
        let route = RouteTo { ifindex: 2, source: None, gateway };
        self.reconciler.kernel.state().routes.insert(to.public_ip, route);
    }

    fn direct(&self) -> Vec<Ipv4Network> {
        self.reconciler.kernel.state().direct.iter().map(|route| route.destination).collect()
    }
}

fn direct(third: u8) -> DirectRoute {
    DirectRoute::to_peer(peer(third).subnet, peer(third).public_ip, 2)
}

#[tokio::test]
async fn a_peer_moves_between_link_and_tunnel_with_the_routes() {
    let mut bench = bench_of(vxlan(true), true);
    bench.route(peer(2), None);
    bench.route(peer(3), Some([192, 0, 2, 254]));
    bench.pass(&[peer(2), peer(3)], Wake::ALL).await;
    assert_eq!(bench.direct(), [peer(2).subnet]);
    assert_eq!(bench.observed().routes.len(), 1);
    assert_eq!(bench.datapath.state().peers.len(), 2, "both may send");
    assert_eq!(*bench.shared.lock().direct, [peer(2).subnet].into());
    bench.take_applied();
    let event = bench.reconciler.wake_for(KernelEvent::Route { ifindex: 9 });
    assert!(event.look && event.next_hops);
    bench.pass(&[peer(2), peer(3)], event).await;
    assert_eq!(bench.take_applied(), []);

    bench.route(peer(2), Some([192, 0, 2, 254]));
    bench.pass(&[peer(2), peer(3)], event).await;
    let ops = bench.take_applied();
    let at = |wanted: &Op| ops.iter().position(|op| op == wanted);
    assert!(at(&Op::PutRoute(peer(2).subnet)) < at(&Op::RemoveDirect(direct(2))), "{ops:?}");
    assert!(bench.direct().is_empty());
    assert_eq!(bench.observed().routes.len(), 2);
    bench.route(peer(2), None);
    bench.pass(&[peer(2), peer(3)], event).await;
    assert_eq!(bench.direct(), [peer(2).subnet]);
    assert_eq!((bench.observed().routes.len(), bench.observed().fdb.len()), (1, 1));
}

#[tokio::test]
async fn the_tunnel_stays_while_the_direct_route_cannot_be_put() {
    let mut bench = bench_of(vxlan(true), false);
    bench.route(peer(2), Some([192, 0, 2, 254]));
    bench.pass(&[peer(2)], Wake::ALL).await;
    let tunnel = bench.observed();
    bench.reconciler.kernel.state().failing = vec![(Op::PutDirect(direct(2)), libc::ENETUNREACH)];
    bench.route(peer(2), None);
    let outcome = bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.observed(), tunnel);
    assert_eq!(bench.complaints(), [About::peer(peer(2).subnet).to_string()]);
    assert!(outcome.retry_at.is_some());
}

#[tokio::test]
async fn host_gw_puts_routes_repairs_them_and_says_who_is_not_on_the_link() {
    let mut bench = bench_of(Backend::HostGw, false);
    let peers = [2, 3].map(|third| Peer { vtep_mac: MacAddr::default(), ..peer(third) });
    bench.route(peer(2), None);
    bench.route(peer(3), Some([192, 0, 2, 254]));
    bench.pass(&peers, Wake::ALL).await;
    assert_eq!(bench.take_applied(), [Op::PutDirect(direct(2))]);
    assert_eq!(bench.reconciler.mtu(), Some(1500));
    assert!(bench.shared.lock().device.is_none());
    let lines = bench.shared.lock().complaints();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].reason.contains("reached by the gateway 192.0.2.254"), "{lines:?}");

    bench.reconciler.kernel.state().direct.clear();
    let event = bench.reconciler.wake_for(KernelEvent::Route { ifindex: 2 });
    bench.pass(&peers, event).await;
    assert_eq!(bench.take_applied(), [Op::PutDirect(direct(2))]);
    bench.pass(&peers[1..], RENEWED).await;
    assert_eq!(bench.take_applied(), [Op::RemoveDirect(direct(2))]);
}

#[tokio::test(start_paused = true)]
async fn host_gw_complains_when_public_ip_is_no_address_of_the_interface() {
    let mut bench = bench_of(Backend::HostGw, false);
    bench.reconciler.settings.underlay.iface = vec!["eth0".to_owned()];
    bench.reconciler.settings.underlay.public_ip = Some(peer(NODE).public_ip);
    bench.pass(&[], Wake::ALL).await;
    assert_eq!(bench.complaints(), [""; 0]);
    bench.reconciler.kernel.state().links[0] = link(2, "eth0", "", Some("192.0.2.77/24"));
    bench.pass(&[], Wake::ALL).await;
    tokio::time::advance(PATIENCE).await;
    bench.pass(&[], Wake::ALL).await;
    assert_eq!(bench.complaints(), ["host-gw"]);
}

#[tokio::test]
async fn routes_of_peers_that_left_while_nobody_looked_go() {
    for (take_over, left) in [(true, false), (false, true)] {
        let mut bench = bench_of(Backend::HostGw, false);
        bench.reconciler.traces.unmarked_routes = take_over;
        let present = Peer { vtep_mac: MacAddr::default(), ..peer(2) };
        bench.route(present, None);
        // Without our mark: a gone peer's, a present peer's, and what is not
        // flannel's.
        let foreign = [
            DirectRoute { destination: net("10.5.64.0/18"), ..direct(9) },
            DirectRoute { destination: net("10.9.1.0/24"), ..direct(9) },
            DirectRoute { ifindex: 7, ..direct(8) },
        ];
        {
            let mut state = bench.reconciler.kernel.state();
            state.direct.insert(direct(5));
            state.unmarked.extend(foreign);
            state.unmarked.extend([direct(2), direct(6)]);
        }
        bench.pass(&[present], Wake::ALL).await;
        assert_eq!(bench.direct(), [peer(2).subnet], "ours of a gone peer goes");
        let unmarked = bench.reconciler.kernel.state().unmarked.clone();
        assert!(foreign.iter().all(|route| unmarked.contains(route)));
        assert_eq!(unmarked.contains(&direct(6)), left, "taken over only at first");
    }
}

#[tokio::test]
async fn alloc_touches_nothing() {
    let mut bench = bench_of(Backend::Alloc, false);
    bench.reconciler.settings.rules.masquerade = false;
    bench.pass(&[], Wake::ALL).await;
    assert_eq!(bench.take_applied(), []);
    assert_eq!(bench.reconciler.mtu(), Some(1500));
    let liberal = bench.sysctls.path().join("net/netfilter/nf_conntrack_tcp_be_liberal");
    assert_eq!(std::fs::read_to_string(liberal).unwrap().trim(), "0");
    assert_eq!(bench.complaints(), [""; 0]);
}

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}
