//! Routes to peers in the real kernel: through the tunnel, and without it.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::netns::vxlan::{desired, peer, reconcile, settled, underlay};
use crate::netns::{in_netns, json, run};
use flannel_agent::kernel::netlink::RealKernel;
use flannel_agent::kernel::{Kernel, PROTOCOL, UNMARKED};
use flannel_core::desired::Desired;
use flannel_core::observed::DirectRoute;
use flannel_core::op::Op;
use flannel_core::peer::Peer;
use flannel_core::reach::NextHop;

/// The kernel would walk one list of all of them for each that is new. Whoever replaces
/// or deletes one as flanneld does finds it.
#[test]
fn routes_of_many_peers_are_spread_and_are_still_flannels() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let eth0 = underlay();
        let network = "10.0.0.0/12".parse().unwrap();
        let want = Desired { network, ..desired(eth0, (1..=1200).map(peer)) };
        reconcile(&kernel, &want).await;
        settled(&kernel, &want).await;
        let routes = json("ip -j route show dev flannel.1");
        let others = |routes: &serde_json::Value| -> Vec<String> {
            let routes = routes.as_array().unwrap().iter();
            let others = routes.filter(|route| !route["protocol"].is_null());
            others.map(|route| route["dst"].as_str().unwrap().to_owned()).collect()
        };
        let spread = others(&routes);
        assert!((1..=200).contains(&spread.len()), "{} of 1,200 routes", spread.len());

        let (replaced, deleted) = (&spread[0], &spread[1]);
        let gateway = replaced.trim_end_matches("/24");
        run(&format!("ip route replace {replaced} via {gateway} dev flannel.1 onlink"));
        let one = run(&format!("ip route show {replaced}"));
        assert_eq!(one.trim(), format!("{replaced} via {gateway} dev flannel.1 onlink"));
        run(&format!(
            "ip route del {deleted} via {} dev flannel.1",
            deleted.trim_end_matches("/24")
        ));
        let ops = reconcile(&kernel, &want).await;
        assert_eq!(ops.len(), 1, "only the deleted one is put back: {ops:?}");
        settled(&kernel, &want).await;

        let few = Desired { network, ..desired(eth0, [peer(1)]) };
        reconcile(&kernel, &few).await;
        settled(&kernel, &few).await;
        assert_eq!(others(&json("ip -j route show dev flannel.1")), Vec::<String>::new());
    });
}

/// A peer that is on the link of the underlay 192.0.2.1/24.
fn neighbour_peer(n: u16) -> Peer {
    Peer { public_ip: Ipv4Addr::new(192, 0, 2, 10 + n as u8), ..peer(n) }
}

fn direct_route(underlay: u32, peer: Peer) -> DirectRoute {
    DirectRoute::to_peer(peer.subnet, peer.public_ip, underlay)
}

#[test]
fn direct_routes_come_move_and_go_with_our_mark() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let underlay = underlay();
        let peers = [neighbour_peer(1), neighbour_peer(2)];
        let host_gw = |peers: &[Peer]| Desired {
            device: None,
            direct: peers.iter().map(|peer| peer.subnet).collect(),
            ..desired(underlay, peers.iter().copied())
        };
        // As flannel makes them, the second to where the peer is no more.
        run("ip route add 10.5.1.0/24 via 192.0.2.11 dev eth0");
        run("ip route add 10.5.2.0/24 via 192.0.2.99 dev eth0");
        let unmarked = kernel.direct_routes(UNMARKED).await.unwrap();
        assert!(unmarked.contains(&direct_route(underlay, peers[0])), "{unmarked:?}");
        assert_eq!(kernel.direct_routes(PROTOCOL).await.unwrap().len(), 0);
        reconcile(&kernel, &host_gw(&peers)).await;
        settled(&kernel, &host_gw(&peers)).await;
        let shown = run("ip -4 route show root 10.5.0.0/16");
        for line in [
            "10.5.1.0/24 via 192.0.2.11 dev eth0 proto 241",
            "10.5.2.0/24 via 192.0.2.12 dev eth0 proto 241",
        ] {
            assert!(shown.contains(line), "{shown}");
        }
        assert_eq!(shown.lines().count(), 2, "nothing is left beside them: {shown}");
        reconcile(&kernel, &host_gw(&peers[..1])).await;
        settled(&kernel, &host_gw(&peers[..1])).await;
        reconcile(&kernel, &host_gw(&[])).await;
        assert_eq!(run("ip -4 route show root 10.5.0.0/16"), "");
        let gone = Op::RemoveDirect(direct_route(underlay, peers[0]));
        assert!(kernel.apply("", &[gone]).await[0].is_ok(), "once more is no error");
    });
}

/// Replaced by one of that kind, or with it beside ours.
#[test]
fn a_route_with_a_source_or_an_mtu_of_somebody_elses_is_put_right() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let underlay = underlay();
        run("ip address add 192.0.2.5/24 dev eth0");
        let peer = neighbour_peer(1);
        let direct = Desired { direct: [peer.subnet].into(), ..desired(underlay, [peer]) };
        for want in [direct, desired(underlay, [peer])] {
            reconcile(&kernel, &want).await;
            let show = || run("ip -4 route show 10.5.1.0/24");
            let (ours, way) = match want.direct.is_empty() {
                true => (show(), "via 10.5.1.0 dev flannel.1 onlink"),
                false => (show(), "via 192.0.2.11 dev eth0 proto 241"),
            };
            for verb in ["replace", "append"] {
                for extra in ["src 192.0.2.5", "mtu 600", "mtu lock 600 advmss 500"] {
                    run(&format!("ip route {verb} 10.5.1.0/24 {way} {extra}"));
                    assert_ne!(show(), ours);
                    reconcile(&kernel, &want).await;
                    assert_eq!(show(), ours, "{verb} {extra}");
                    settled(&kernel, &want).await;
                }
            }
        }
    });
}

#[test]
fn a_peer_changes_between_tunnel_and_link_by_replacement() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let underlay = underlay();
        let peers = [neighbour_peer(1), neighbour_peer(2)];
        let tunnel = desired(underlay, peers);
        let direct = Desired { direct: [peers[0].subnet].into(), ..desired(underlay, peers) };
        for want in [&tunnel, &direct, &tunnel, &direct] {
            reconcile(&kernel, want).await;
            settled(&kernel, want).await;
            let shown = run("ip -4 route show 10.5.1.0/24");
            let through = if want.direct.is_empty() { "flannel.1" } else { "eth0" };
            assert!(shown.contains(through) && shown.lines().count() == 1, "{shown}");
            let fdb = run("bridge fdb show dev flannel.1");
            assert_eq!(fdb.contains("192.0.2.11"), want.direct.is_empty(), "{fdb}");
            assert!(fdb.contains("192.0.2.12"), "{fdb}");
        }
    });
}

#[test]
fn a_direct_route_to_nowhere_is_refused_with_its_object() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let route = direct_route(underlay(), peer(1));
        let refused = kernel.apply("", &[Op::PutDirect(route)]).await.remove(0).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("RTM_NEWROUTE 10.5.1.0/24 via 198.18.0.1 dev"), "{text}");
    });
}

#[test]
fn five_thousand_ways_are_asked_for_fast() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let underlay = underlay();
        run("ip route add 198.18.0.0/15 via 192.0.2.254");
        let start = Instant::now();
        for n in 1..=5000 {
            let route = kernel.route_to(peer(n).public_ip).await.unwrap();
            let hop = NextHop::of(route, underlay);
            assert_eq!(hop, NextHop::Gateway(Ipv4Addr::new(192, 0, 2, 254)));
        }
        let asked = start.elapsed();
        let near = kernel.route_to(neighbour_peer(1).public_ip).await.unwrap();
        assert_eq!(NextHop::of(near, underlay), NextHop::OnLink);
        assert!(asked < Duration::from_secs(2), "{asked:?}");
        println!("5000 ways: {asked:?}");
    });
}

#[test]
fn our_address_is_first_in_the_local_table() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let want = desired(underlay(), []);
        reconcile(&kernel, &want).await;
        settled(&kernel, &want).await;
        let first = || {
            let routes = run("ip route show table local 10.5.0.0/32");
            let mut all = routes.lines().filter(|route| !route.contains("tos"));
            all.next().unwrap_or_default().trim().to_owned()
        };
        let ours = "local 10.5.0.0 dev flannel.1 proto kernel scope host src 10.5.0.0";
        assert_eq!(first(), ours);
        // What comes behind ours, or for other packets, does no harm.
        run("ip route append table local prohibit 10.5.0.0");
        run("ip route add table local blackhole 10.5.0.0 tos 0x10");
        settled(&kernel, &want).await;
        for route in ["local 10.5.0.0 dev eth0", "blackhole 10.5.0.0", "unreachable 10.5.0.0"] {
            run(&format!("ip route prepend table local {route}"));
            assert_ne!(first(), ours);
            let put = [Op::PutLocal(Ipv4Addr::new(10, 5, 0, 0))];
            assert_eq!(reconcile(&kernel, &want).await, put, "{route}");
            assert_eq!(first(), ours, "{route}");
            settled(&kernel, &want).await;
        }
        // Rules answer first, and are no reason to write the table again.
        run("ip rule add pref 0 to 10.5.0.0 blackhole");
        run("ip rule add pref 1 lookup local");
        run("ip rule del pref 0 lookup local");
        settled(&kernel, &want).await;
    });
}

#[test]
fn our_routes_to_peers_are_first_in_the_main_table() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let peers = [neighbour_peer(1), neighbour_peer(2)];
        let want = Desired { direct: [peers[1].subnet].into(), ..desired(underlay(), peers) };
        reconcile(&kernel, &want).await;
        settled(&kernel, &want).await;
        for (subnet, ours) in [
            ("10.5.1.0/24", "10.5.1.0/24 via 10.5.1.0 dev flannel.1 onlink"),
            ("10.5.2.0/24", "10.5.2.0/24 via 192.0.2.12 dev eth0 proto 241"),
        ] {
            let shown = || run(&format!("ip route show {subnet}"));
            let first = || shown().lines().next().unwrap_or_default().trim().to_owned();
            // Others are behind ours, for some packets only, or for a part.
            run(&format!("ip route append prohibit {subnet}"));
            run(&format!("ip route add {subnet} dev eth0 metric 5"));
            run(&format!("ip route add blackhole {subnet} tos 0x10"));
            run(&format!("ip route add {} dev eth0", subnet.replace(".0/24", ".128/25")));
            settled(&kernel, &want).await;
            let all = shown().lines().count();
            for route in ["blackhole", "unreachable", "throw", "dev eth0", "via 192.0.2.9"] {
                let (kind, way) = match route.contains(' ') {
                    true => ("", route),
                    false => (route, ""),
                };
                run(&format!("ip route prepend {kind} {subnet} {way}"));
                let ops = reconcile(&kernel, &want).await;
                assert_eq!(ops.len(), 2, "{route}: {ops:?}");
                assert!(shown().lines().any(|line| line.trim() == ours), "{route}: {}", shown());
                assert_eq!(shown().lines().count(), all, "{route}: {}", shown());
                settled(&kernel, &want).await;
            }
            run(&format!("ip route del blackhole {subnet} tos 0x10"));
            assert_eq!(first(), ours);
        }
    });
}
