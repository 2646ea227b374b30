//! The kernel path against the real kernel, each test in a network namespace
//! of its own. Needs root.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::netns::vxlan::{
    OWN_MAC, desired, device_name, ifindex, peer, reconcile, settled, underlay,
};
use crate::netns::{Namespace, in_netns, json, run, try_run};
use flannel_agent::kernel::netlink::RealKernel;
use flannel_agent::kernel::{Kernel, KernelError};
use flannel_core::desired::{Desired, Device};
use flannel_core::mac::MacAddr;
use flannel_core::op::Op;
use flannel_core::peer::Peer;
use flannel_core::plan;
use flannel_core::underlay;
use flannel_core::underlay::{UnderlayRoutes, Wish};

#[test]
fn the_device_is_flannels() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let want = desired(underlay(), []);
        reconcile(&kernel, &want).await;
        settled(&kernel, &want).await;
        let link = &json("ip -d -j link show flannel.1")[0];
        assert_eq!(link["mtu"], 1450);
        assert_eq!(link["address"], OWN_MAC.to_string());
        assert!(link["flags"].as_array().unwrap().contains(&"UP".into()), "{link}");
        assert_eq!(link["qdisc"], "noqueue");
        let data = &link["linkinfo"]["info_data"];
        for (name, value) in [
            ("id", serde_json::json!(1)),
            ("local", "192.0.2.1".into()),
            ("link", "eth0".into()),
            ("port", 8472.into()),
            ("learning", false.into()),
            ("ageing", 300.into()),
            ("udp_csum", true.into()),
            ("port_range", serde_json::json!({"low": 0, "high": 0})),
        ] {
            assert_eq!(data[name], value, "{name} in {data}");
        }
        assert!(data["gbp"].is_null(), "{data}");
        let text = run("ip -d link show flannel.1");
        let line = "vxlan id 1 local 192.0.2.1 dev eth0 srcport 0 0 dstport 8472 nolearning ttl \
                    auto ageing 300 udpcsum";
        assert!(text.contains(line), "{text}");
        let addresses = &json("ip -j -4 address show flannel.1")[0]["addr_info"];
        assert_eq!(addresses.as_array().unwrap().len(), 1);
        assert_eq!(
            (&addresses[0]["local"], &addresses[0]["prefixlen"]),
            (&"10.5.0.0".into(), &32.into())
        );
        let accept_ra = run("cat /proc/sys/net/ipv6/conf/flannel.1/accept_ra");
        assert_eq!(accept_ra.trim(), "0");
    });
}

#[test]
fn gbp_learning_vni_and_port_are_honoured() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let mut want = desired(underlay(), []);
        want.device = want.device.map(|device| Device {
            name: "flannel.77".to_owned(),
            vni: 77,
            port: 4789,
            gbp: true,
            learning: true,
            ..device
        });
        reconcile(&kernel, &want).await;
        settled(&kernel, &want).await;
        let text = run("ip -d link show flannel.77");
        assert!(text.contains("vxlan id 77") && text.contains("dstport 4789"), "{text}");
        assert!(text.contains(" gbp") && !text.contains("nolearning"), "{text}");
    });
}

#[test]
fn a_device_that_fits_is_kept_and_corrected_in_place() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let want = desired(underlay(), [peer(1)]);
        reconcile(&kernel, &want).await;
        let before = ifindex("flannel.1");
        run("ip link set flannel.1 mtu 1200");
        run("ip link set flannel.1 address 02:11:22:33:44:55");
        run("ip address add 10.5.9.0/32 dev flannel.1");
        let ops = reconcile(&kernel, &want).await;
        assert!(ops.contains(&Op::SetMac(OWN_MAC)) && ops.contains(&Op::SetMtu(1450)), "{ops:?}");
        settled(&kernel, &want).await;
        assert_eq!(ifindex("flannel.1"), before);
        run("ip link set flannel.1 down");
        reconcile(&kernel, &want).await;
        let observed = settled(&kernel, &want).await;
        assert_eq!(observed.neighbours.len(), 1);
    });
}

#[test]
fn a_link_that_does_not_fit_is_made_again() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let want = desired(underlay(), [peer(1)]);
        for other in [
            "ip link add flannel.1 type bridge",
            "ip link add flannel.1 type vxlan id 9 local 192.0.2.1 dev eth0 dstport 8472",
            "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning",
            "ip link set flannel.1 type vxlan ttl 1",
            "ip link set flannel.1 type vxlan df set",
            "ip link set flannel.1 type vxlan remote 192.0.2.9",
        ] {
            if other.contains(" add ") {
                let _ = try_run("ip link del flannel.1");
            }
            run(other);
            let ops = reconcile(&kernel, &want).await;
            assert!(matches!(&ops[0], Op::DeleteDevice { .. }), "{other}: {ops:?}");
            settled(&kernel, &want).await;
        }
    });
}

#[test]
fn a_device_that_was_moved_to_another_namespace_is_made_again() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let want = desired(underlay(), [peer(1)]);
        reconcile(&kernel, &want).await;
        let other = Namespace::new();
        // A device of its own, which looks like ours, is left alone.
        let like_ours =
            format!("ip link add flannel.1 address {OWN_MAC} type vxlan id 1 dstport 8472");
        other.run(move || run(&like_ours));
        run(&format!("ip link set flannel.1 netns {} name lent0", other.id()));
        reconcile(&kernel, &want).await;
        settled(&kernel, &want).await;
        let left = other.sh("ip -o link show type vxlan");
        assert!(left.contains("flannel.1") && !left.contains("lent0"), "{left}");
    });
}

#[test]
fn peers_come_move_and_go() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let eth0 = underlay();
        reconcile(&kernel, &desired(eth0, (1..=3).map(peer))).await;
        let route = run("ip route show 10.5.2.0/24");
        assert!(route.contains("10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink"), "{route}");
        let neighbour = run("ip neigh show 10.5.2.0 dev flannel.1");
        assert!(neighbour.contains("lladdr 02:00:00:00:00:02 PERMANENT"), "{neighbour}");
        let fdb = run("bridge fdb show dev flannel.1");
        assert!(fdb.contains("02:00:00:00:00:02 dst 198.18.0.2 self permanent"), "{fdb}");

        let moved = Peer { public_ip: Ipv4Addr::new(198, 18, 9, 9), ..peer(1) };
        let changed = Peer { vtep_mac: MacAddr([2, 0, 0, 0, 0xaa, 0xaa]), ..peer(2) };
        let want = desired(eth0, [moved, changed]);
        reconcile(&kernel, &want).await;
        let observed = settled(&kernel, &want).await;
        let fdb: BTreeMap<MacAddr, Ipv4Addr> = observed.fdb.into_iter().collect();
        assert_eq!(
            fdb,
            [(moved.vtep_mac, moved.public_ip), (changed.vtep_mac, changed.public_ip)].into()
        );
        assert_eq!((observed.routes.len(), observed.neighbours.len()), (2, 2));
        let gone = [Op::RemoveFdb(peer(3).vtep_mac, peer(3).public_ip)];
        let again = kernel.apply("flannel.1", &gone);
        assert!(again.await[0].is_ok(), "removing what is gone is done");
    });
}

/// What somebody else may have, and what shows it.
const FOREIGN: [(&str, &str); 8] = [
    ("ip route add 172.16.5.0/24 dev flannel.1", "ip route show 172.16.5.0/24"),
    ("ip route add 10.5.200.0/24 via 192.0.2.9", "ip route show 10.5.200.0/24"),
    ("ip route add 10.5.1.0/24 dev eth0 metric 50", "ip route show 10.5.1.0/24 dev eth0"),
    ("ip route add 10.5.77.0/24 dev flannel.1 table 99", "ip route show 10.5.77.0/24 table 99"),
    (
        "ip neigh add 172.16.5.1 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent",
        "ip neigh show 172.16.5.1 dev flannel.1",
    ),
    (
        "ip neigh add 10.5.3.0 lladdr 02:00:00:00:00:78 dev eth0 nud permanent",
        "ip neigh show 10.5.3.0 dev eth0",
    ),
    (
        "bridge fdb append 00:00:00:00:00:00 dst 198.18.7.7 dev flannel.1 self permanent",
        "bridge fdb show dev flannel.1",
    ),
    (
        "ip address add 169.254.7.7/32 dev flannel.1",
        "ip -4 address show dev flannel.1 to 169.254.7.7/32",
    ),
];

/// What an agent may have left.
const STALE: [&str; 6] = [
    "ip route add 10.5.50.0/24 via 10.5.50.0 dev flannel.1 onlink",
    "ip route add 10.5.51.0/24 dev flannel.1",
    "ip route add 10.5.1.0/24 dev flannel.1 metric 7",
    // Of the metric of ours, behind it: ours must not go in its place.
    "ip route append 10.5.1.0/24 dev flannel.1",
    "ip neigh add 10.5.50.0 lladdr 02:00:00:00:00:79 dev flannel.1 nud permanent",
    "bridge fdb add 02:00:00:00:00:79 dst 198.18.7.9 dev flannel.1 self permanent",
];

#[test]
fn foreign_entries_stay_and_stale_ones_go() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let want = desired(underlay(), [peer(1)]);
        reconcile(&kernel, &want).await;
        let shown: Vec<String> = FOREIGN
            .iter()
            .map(|(add, show)| {
                run(add);
                let shown = run(show);
                assert!(!shown.trim().is_empty(), "{show}");
                shown
            })
            .collect();
        for stale in STALE {
            run(stale);
        }
        let ops = reconcile(&kernel, &want).await;
        assert_eq!(ops.len(), 6, "{ops:?}");
        let observed = settled(&kernel, &want).await;
        assert_eq!(observed.fdb, [(peer(1).vtep_mac, peer(1).public_ip)].into());
        for ((_, show), before) in FOREIGN.iter().zip(shown) {
            if !show.starts_with("bridge") {
                assert_eq!(run(show), before, "{show}");
            }
        }
        let fdb = run("bridge fdb show dev flannel.1");
        assert!(fdb.contains("00:00:00:00:00:00 dst 198.18.7.7 self permanent"), "{fdb}");
    });
}

#[test]
fn an_fdb_entry_that_leads_to_another_port_is_put_right() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let want = desired(underlay(), [peer(1)]);
        reconcile(&kernel, &want).await;
        run(
            "bridge fdb replace 02:00:00:00:00:01 dst 198.18.0.1 port 9999 dev flannel.1 self permanent",
        );
        assert_ne!(reconcile(&kernel, &want).await, []);
        settled(&kernel, &want).await;
        let fdb = run("bridge fdb show dev flannel.1");
        assert_eq!(fdb.matches("02:00:00:00:00:01").count(), 1, "{fdb}");
        assert!(!fdb.contains("9999"), "{fdb}");
    });
}

#[test]
fn one_failure_does_not_stop_the_others() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let want = desired(underlay(), []);
        reconcile(&kernel, &want).await;
        let one = peer(1);
        let ops = [
            Op::SetMtu(4_000_000),
            Op::PutMaps(one),
            Op::PutNeighbour(one.subnet.network(), one.vtep_mac),
            Op::PutFdb(one.vtep_mac, one.public_ip),
            Op::PutRoute(one.subnet),
        ];
        let results = kernel.apply("flannel.1", &ops).await;
        let failed: Vec<bool> = results.iter().map(Result::is_err).collect();
        assert_eq!(failed, [true, true, false, false, false]);
        let error = results[0].as_ref().unwrap_err().to_string();
        assert!(error.starts_with("RTM_SETLINK flannel.1 mtu 4000000: "), "{error}");
        // The kernel's own text came along.
        assert!(error.contains("mtu greater than device maximum"), "{error}");
        settled(&kernel, &desired(want.underlay, [one])).await;
        let results = kernel.apply("flannel.9", &ops[2..3]).await;
        let error = results[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("there is no device flannel.9"), "{error}");
    });
}

async fn refusal(kernel: &RealKernel, want: &Desired) -> KernelError {
    let name = &device_name(want);
    let ops = plan::diff(want, &kernel.observe(name).await.unwrap());
    let results = kernel.apply(name, &ops).await;
    results.into_iter().find_map(Result::err).expect("it must fail")
}

#[test]
fn what_is_in_the_way_is_named() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let want = desired(underlay(), []);
        run("ip link add other type vxlan id 1 dev eth0 dstport 8472");
        let error = refusal(&kernel, &want).await.to_string();
        assert!(error.contains("VXLAN device other has VNI 1 on UDP port 8472"), "{error}");
        run("ip link del other");
        reconcile(&kernel, &want).await;
        let again = [Op::CreateDevice(want.device.clone().unwrap())];
        let results = kernel.apply("flannel.1", &again).await;
        let error = results[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("a link named flannel.1 is there"), "{error}");
        run("ip link del flannel.1");

        run("ip link add cilium type vxlan external dstport 8472");
        run("ip link set cilium up");
        let error = refusal(&kernel, &want).await.to_string();
        assert!(error.contains("VXLAN device cilium"), "{error}");
        run("ip link del cilium");
        run("ip link del flannel.1");

        let socket = std::net::UdpSocket::bind("0.0.0.0:8472").unwrap();
        let error = refusal(&kernel, &want).await.to_string();
        assert!(error.contains("another program has UDP port 8472"), "{error}");
        drop(socket);
        reconcile(&kernel, &want).await;
        settled(&kernel, &want).await;
    });
}

#[test]
fn a_missing_capability_is_named() {
    in_netns(async {
        let want = desired(underlay(), []);
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
        let kernel = RealKernel::open().unwrap();
        let error = refusal(&kernel, &want).await;
        assert_eq!(error.source.raw_os_error(), Some(nix::libc::EPERM));
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    });
}

#[test]
fn five_thousand_peers_are_programmed_fast() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let mut want = desired(underlay(), []);
        want.network = "10.0.0.0/8".parse().unwrap();
        reconcile(&kernel, &want).await;
        want.peers = (0..5000).map(|n| (peer(n + 1).subnet, peer(n + 1))).collect();
        let start = Instant::now();
        let ops = reconcile(&kernel, &want).await;
        let put = start.elapsed();
        assert_eq!(ops.len(), 15_000);
        let start = Instant::now();
        settled(&kernel, &want).await;
        let read = start.elapsed();
        want.peers.clear();
        let start = Instant::now();
        reconcile(&kernel, &want).await;
        let removed = start.elapsed();
        settled(&kernel, &want).await;
        println!("5000 peers: put {put:?}, read back {read:?}, removed {removed:?}");
        assert!(put < Duration::from_secs(3), "{put:?}");
    });
}

#[test]
fn links_tell_what_pods_hang_on() {
    in_netns(async {
        let pod = Namespace::new();
        underlay();
        run("ip link add cni0 type bridge");
        run("ip link add veth1 type veth peer name podside");
        run(&format!("ip link set podside netns {}", pod.id()));
        run("ip link set veth1 master cni0 up");
        run("tc qdisc add dev veth1 root tbf rate 100mbit burst 64kb latency 50ms");
        let links = RealKernel::open().unwrap().links().await.unwrap();
        let find = |name: &str| links.iter().find(|link| link.name == name).unwrap();
        let (lo, eth0, veth1) = (find("lo"), find("eth0"), find("veth1"));
        assert!(lo.loopback && !lo.ethernet && lo.up);
        assert!(eth0.ethernet && eth0.up && eth0.lower_netns.is_none() && !eth0.loopback);
        assert_eq!((eth0.kind.as_str(), eth0.mtu, eth0.qdisc.as_str()), ("veth", 1500, "noqueue"));
        assert_eq!(eth0.addresses.len(), 1);
        let address = eth0.addresses[0];
        assert_eq!(address.network.to_string(), "192.0.2.1/24");
        assert!(address.permanent && address.global && !address.deprecated);
        assert!(veth1.lower_netns.is_some());
        assert_eq!((veth1.master, veth1.qdisc.as_str()), (Some(find("cni0").ifindex), "tbf"));
        assert_eq!(find("cni0").kind, "bridge");
    });
}

#[test]
fn the_underlay_is_chosen_from_real_links() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let eth0 = underlay();
        assert_eq!(kernel.default_routes().await.unwrap(), []);
        assert_eq!(kernel.route_to(Ipv4Addr::new(203, 0, 113, 1)).await.unwrap(), None);
        let links = kernel.links().await.unwrap();
        assert!(underlay::choose(&links, &Wish::default(), UnderlayRoutes::default()).is_err());
        run("ip route add default via 192.0.2.254 metric 100");
        run("ip route add default dev wire metric 200");
        let defaults = kernel.default_routes().await.unwrap();
        let wire = nix::net::if_::if_nametoindex("wire").unwrap();
        assert_eq!(defaults.iter().map(|to| to.ifindex).collect::<Vec<_>>(), [eth0, wire]);
        let default = defaults[0];
        assert_eq!((default.ifindex, default.gateway), (eth0, Some(Ipv4Addr::new(192, 0, 2, 254))));
        let chosen =
            underlay::choose(&links, &Wish::default(), UnderlayRoutes { defaults, reach: None })
                .unwrap();
        assert_eq!((chosen.ifindex, chosen.address), (eth0, Ipv4Addr::new(192, 0, 2, 1)));
        let reached = kernel.route_to(Ipv4Addr::new(203, 0, 113, 1)).await.unwrap().unwrap();
        assert_eq!((reached.ifindex, reached.source), (eth0, Some(Ipv4Addr::new(192, 0, 2, 1))));
        let neighbour = kernel.route_to(Ipv4Addr::new(192, 0, 2, 9)).await.unwrap().unwrap();
        assert_eq!(neighbour.gateway, None);
    });
}

#[test]
fn interfaces_that_routes_lead_out_of_are_told_from_pods() {
    in_netns(async {
        let kernel = RealKernel::open().unwrap();
        let network = "10.5.0.0/16".parse().unwrap();
        for name in ["pod1", "up1", "up2"] {
            run(&format!("ip link add {name} type veth peer name {name}-end"));
            run(&format!("ip link set {name} up"));
            run(&format!("ip link set {name}-end up"));
        }
        let [pod, first, second] = ["pod1", "up1", "up2"].map(ifindex);
        let all = [pod, first, second].into();
        run("ip route add 10.5.1.7/32 dev pod1");
        assert_eq!(kernel.uplinks(&all, network).await.unwrap(), [].into());
        run("ip route add 192.0.2.12/32 via inet6 fe80::12 dev up1");
        assert_eq!(kernel.uplinks(&all, network).await.unwrap(), [first].into());
        run("ip route add 198.51.100.0/24 via inet6 fe80::2 dev up2");
        assert_eq!(kernel.uplinks(&all, network).await.unwrap(), [first, second].into());
        for (candidate, expected) in [(pod, vec![]), (second, vec![second])] {
            let found = kernel.uplinks(&[candidate].into(), network).await.unwrap();
            assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
        }
    });
}
