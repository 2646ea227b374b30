//! The backends beside the plain tunnel: host-gw, DirectRouting, alloc, and
//! changes from one to another.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::backend::BackendKind;
use flannel_core::status::{DatapathKind, PeerPath, PeerState};
use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::etcd::Etcd;
use flannel_tests::lab::{GATEWAY, Lab, NETWORK};
use flannel_tests::load::REQUESTS;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::plain::key;
use flannel_tests::told::fast_share;
use flannel_tests::wait;

/// A second, and what looking from outside costs on a busy machine.
const SOON: Duration = Duration::from_millis(1300);

fn configure(etcd: &Etcd, backend: &str) {
    etcd.put_config(&format!(
        r#"{{"Network":"{NETWORK}","SubnetMax":"10.244.199.0","Backend":{backend}}}"#
    ));
}

fn store(lab: &Lab, backend: &str) -> Etcd {
    let etcd = lab.empty_etcd();
    configure(&etcd, backend);
    etcd
}

/// Two nodes with this backend, and a pod on each.
fn pair(backend: &str, options: &Options) -> Pair {
    let lab = Lab::new();
    let etcd = store(&lab, backend);
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    left.start(&etcd, options);
    right.start(&etcd, options);
    left.wait_routes(&[&right]);
    right.wait_routes(&[&left]);
    Pair::with_pods(lab, etcd, left, right)
}

/// The route to `to`'s subnet, as `ip` shows it.
fn route(node: &Node, to: &Node) -> String {
    node.netns.ip(&format!("-4 route show {}", to.subnet())).trim().to_owned()
}

fn direct(to: &Node) -> String {
    format!("{} via {} dev eth0 proto 241", to.subnet(), to.address)
}

/// `ip route show SUBNET` leaves the subnet in; trailing blanks vary.
fn is_direct(node: &Node, to: &Node) -> bool {
    route(node, to) == direct(to).trim()
}

fn through_tunnel(node: &Node, to: &Node) -> bool {
    route(node, to).contains("dev flannel.1")
}

/// The programs carry more than 99 % of a running TCP flow, without a tunnel.
fn carries_an_established_flow(pair: &Pair) {
    let read = || (pair.left.counted(&pair.right), pair.left.outcomes());
    let (peer, outcomes) = read();
    let result = pair.traffic(REQUESTS, "--seconds 1");
    assert!(result.rate > 500.0, "{result:?}");
    let (peer_after, outcomes_after) = read();
    let share = fast_share(&peer, &peer_after);
    let since = outcomes_after.since(&outcomes);
    assert!(share > 0.99, "{share}: {since:?}");
    assert!(
        since.get(Outcome::FastRoutedOut) > 400 && since.get(Outcome::FastRoutedIn) > 400,
        "{since:?}"
    );
    assert_eq!(since.get(Outcome::FastEncap) + since.get(Outcome::FastDecap), 0, "{since:?}");
}

#[test]
fn host_gw() {
    let pair = pair(r#"{"Type":"host-gw"}"#, &Options::default());
    let Pair { left, right, etcd, lab, .. } = &pair;
    let text = pair.client.ping(pair.server.address, "-c 3 -i 0.05 -W 2");
    assert!(text.contains("ttl=62"), "{text}");
    pair.check_integrity(20);
    assert_eq!(left.environment("FLANNEL_MTU").as_deref(), Some("1500"));
    assert!(!left.netns.try_sh("ip link show flannel.1"), "there is no device");
    let value = |node: &Node| {
        format!(r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"host-gw"}}"#, node.address)
    };
    let mut expected = [left, right].map(|node| (key(node.subnet()), value(node)));
    expected.sort();
    let mut found = etcd.subnets();
    found.sort();
    assert_eq!(found, expected);
    let peer = left.peer(right);
    let expected = (PeerPath::Direct, None, PeerState::Ok);
    assert_eq!((peer.path, peer.vtep_mac, peer.state), expected);
    let status = left.status();
    assert_eq!(status.backend, Some(BackendKind::HostGw));
    assert_eq!(status.datapath.mode, Some(DatapathKind::Ebpf));
    carries_an_established_flow(&pair);

    // Taken away, or led elsewhere by somebody else.
    for damage in [
        format!("ip route delete {}", right.subnet()),
        format!("ip route replace {} via {GATEWAY}", right.subnet()),
        "ip link set eth0 down; ip link set eth0 up; ip route add default via 192.0.2.1".to_owned(),
    ] {
        damage.split("; ").for_each(|line| drop(left.netns.sh(line)));
        wait::holds(&format!("repair of `{damage}`"), SOON, || is_direct(left, right));
        wait::holds("traffic again", SOON + SOON, || {
            pair.client.netns.ping(pair.server.address, "-c 1 -W 1").0
        });
    }

    // Not ours, not on the link, not of this backend.
    left.netns.ip("route add 10.244.128.0/18 via 192.0.2.1");
    etcd.put_subnet("10.244.201.0-24", r#"{"PublicIP":"198.51.100.77","BackendType":"host-gw"}"#);
    etcd.put_subnet(
        "10.244.202.0-24",
        r#"{"PublicIP":"192.0.2.78","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:5e:00:53:07"}}"#,
    );
    wait::holds("the complaints", Duration::from_secs(5), || {
        let status = left.status();
        let reasons = status.health.into_iter().map(|line| line.reason).chain(status.ignored);
        let text = reasons.collect::<Vec<_>>().join("\n");
        text.contains("it is reached by the gateway 192.0.2.1")
            && text.contains("BackendType is `vxlan`, not `host-gw`")
    });
    assert!(!left.netns.ip("route show").contains("10.244.20"));
    assert!(left.netns.ip("route show").contains("10.244.128.0/18 via 192.0.2.1"));
    let _ = lab;
}

#[test]
fn host_gw_after_peers_left_while_it_was_down() {
    let lab = Lab::new();
    let etcd = store(&lab, r#"{"Type":"host-gw"}"#);
    let (mut node, mut other) = (lab.node(1), lab.node(2));
    // What flannel leaves behind: its file, and a gone peer's route without a mark.
    std::fs::write(
        node.subnet_file(),
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.9.1/24\nFLANNEL_MTU=1500\n\
         FLANNEL_IPMASQ=false\n",
    )
    .expect("subnet.env");
    node.netns.ip("route add 10.244.77.0/24 via 192.0.2.99 dev eth0");
    node.netns.ip("route add 10.244.64.0/20 via 192.0.2.99 dev eth0");
    for (subnet, address) in [("10.244.201.0-24", "192.0.2.91"), ("10.244.202.0-24", "192.0.2.92")]
    {
        etcd.put_subnet(subnet, &format!(r#"{{"PublicIP":"{address}","BackendType":"host-gw"}}"#));
    }
    other.start(&etcd, &Options::default());
    node.start(&etcd, &Options::default());
    let routes = |node: &Node| node.netns.ip("-4 route show root 10.244.0.0/16");
    let shown = routes(&node);
    assert!(shown.contains("10.244.201.0/24 via 192.0.2.91"), "{shown}");
    assert!(!shown.contains("10.244.77.0/24"), "{shown}");
    assert!(shown.contains("10.244.64.0/20"), "no subnet of a lease: {shown}");
    node.kill_agent();
    etcd.delete_subnet("10.244.201.0-24");
    // Now it is the administrator's.
    node.netns.ip("route add 10.244.78.0/24 via 192.0.2.99 dev eth0");
    node.start(&etcd, &Options::default());
    let shown = routes(&node);
    assert!(!shown.contains("10.244.201.0/24"), "{shown}");
    assert!(shown.contains("10.244.202.0/24 via 192.0.2.92"), "{shown}");
    assert!(shown.contains("10.244.78.0/24"), "{shown}");
    assert!(is_direct(&node, &other));

    node.stop_agent();
    assert!(is_direct(&node, &other), "forwarding goes on");
    let cleaned = node.cleanup();
    assert!(cleaned.status.success(), "{cleaned:?}");
    let shown = routes(&node);
    assert!(!shown.contains("proto 241") && shown.contains("10.244.78.0/24"), "{shown}");
}

#[test]
fn host_gw_behind_nat_is_refused() {
    let lab = Lab::new();
    let etcd = store(&lab, r#"{"Type":"host-gw"}"#);
    let mut node = lab.node(1);
    let extra = vec!["--public-ip=203.0.113.9".to_owned()];
    node.launch(&etcd, &Options { extra, ..Options::default() });
    let (ended, _) = wait::until("the end", Duration::from_secs(20), || node.agent_ended());
    assert_eq!(ended.code(), Some(1));
    let log = node.agent_log();
    assert!(log.contains("your PublicIP differs from interface IP"), "{log}");
    assert!(log.contains("203.0.113.9 is no address of eth0"), "{log}");
    assert_eq!(etcd.subnets(), [], "no lease is left behind");
}

/// Takes a node off the bridge and puts it behind the router, into
/// 198.51.100.0/24.
fn behind_the_router(lab: &Lab, node: &mut Node, port: &str) {
    node.address = Ipv4Addr::new(198, 51, 100, 13);
    lab.underlay().ip(&format!("link set {port} nomaster"));
    lab.underlay().ip(&format!("address add 198.51.100.1/24 dev {port}"));
    node.netns.ip("address flush dev eth0");
    node.netns.ip(&format!("address add {}/24 dev eth0", node.address));
    node.netns.ip("route add default via 198.51.100.1");
}

#[track_caller]
fn direct_routing(options: &Options) {
    let lab = Lab::new();
    // A router that tells hosts of a shorter way would change it under us.
    lab.underlay().sysctl("net.ipv4.conf.all.send_redirects=0");
    lab.underlay().sysctl("net.ipv4.conf.br0.send_redirects=0");
    let etcd = store(&lab, r#"{"Type":"vxlan","VNI":1,"DirectRouting":true}"#);
    let (mut one, mut two, mut far) = (lab.node(1), lab.node(2), lab.node(3));
    behind_the_router(&lab, &mut far, "p3");
    for node in [&mut one, &mut two, &mut far] {
        node.start(&etcd, options);
    }
    one.wait_routes(&[&two, &far]);
    two.wait_routes(&[&one, &far]);
    far.wait_routes(&[&one, &two]);
    assert!(is_direct(&one, &two) && is_direct(&two, &one), "{}", route(&one, &two));
    for (node, to) in [(&one, &far), (&two, &far), (&far, &one), (&far, &two)] {
        assert!(through_tunnel(node, to), "{}", route(node, to));
    }
    const TUNNEL: PeerPath = PeerPath::Backend(BackendKind::Vxlan);
    assert_eq!((one.peer(&two).path, one.peer(&far).path), (PeerPath::Direct, TUNNEL));
    let fdb = one.netns.sh("bridge fdb show dev flannel.1");
    assert!(!fdb.contains("192.0.2.12") && fdb.contains("198.51.100.13"), "{fdb}");
    let pods = [one.pod(2), two.pod(2), far.pod(2)];
    for from in &pods {
        for to in pods.iter().filter(|to| to.address != from.address) {
            let text = from.ping(to.address, "-c 3 -i 0.2 -W 2");
            assert!(text.contains("ttl=62"), "{text}");
        }
    }

    // The way to the second node changes, and the ping does not notice. The
    // second node goes on sending directly.
    let ping = std::thread::scope(|scope| {
        let ping = scope.spawn(|| pods[0].netns.ping(pods[1].address, "-q -i 0.01 -c 600 -W 2"));
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(700));
            one.netns.ip(&format!("route add {}/32 via {GATEWAY}", two.address));
            wait::holds("the tunnel", SOON, || through_tunnel(&one, &two));
            wait::holds("its entry", SOON, || one.peer(&two).path == TUNNEL);
            std::thread::sleep(Duration::from_millis(700));
            one.netns.ip(&format!("route delete {}/32", two.address));
            wait::holds("the direct route", SOON, || is_direct(&one, &two));
            wait::holds("its entry", SOON, || one.peer(&two).path == PeerPath::Direct);
        }
        ping.join().expect("ping")
    });
    assert!(ping.1.contains("600 received") && ping.1.contains(" 0% packet loss"), "{}", ping.1);

    // Other people's changes of the direct route are put right.
    one.netns.ip(&format!("route delete {}", two.subnet()));
    wait::holds("repair", SOON, || is_direct(&one, &two));

    // Without DirectRouting everything is in the tunnel again.
    configure(&etcd, r#"{"Type":"vxlan","VNI":1}"#);
    one.stop_agent();
    one.start(&etcd, options);
    assert!(through_tunnel(&one, &two), "{}", route(&one, &two));
    assert_eq!(one.netns.ip("-4 route show proto 241").trim(), "");
    pods[0].ping(pods[1].address, "-c 3 -i 0.2 -W 2");
}

#[test]
fn direct_routing_on_the_kernel_path() {
    direct_routing(&Options::kernel());
}

#[test]
fn direct_routing_with_programs() {
    direct_routing(&Options::ebpf());
}

#[test]
fn alloc_writes_lease_and_file_and_touches_nothing() {
    let lab = Lab::new();
    let etcd = store(&lab, r#"{"Type":"alloc"}"#);
    let mut node = lab.node(1);
    etcd.put_subnet("10.244.201.0-24", r#"{"PublicIP":"192.0.2.91","PublicIPv6":null}"#);
    let state = |node: &Node| {
        let looks =
            ["ip -d link", "ip route show table all", "ip neigh", "ip rule", "nft list ruleset"];
        // Neighbour states of the underlay come and go by themselves.
        node.netns.sh("ip neigh flush all");
        looks.map(|line| node.netns.sh(line))
    };
    let before = state(&node);
    node.start(&etcd, &Options::default());
    let gateway = node.subnet().nth(1).expect("an address");
    assert_eq!(
        fs::read_to_string(node.subnet_file()).expect("subnet.env"),
        format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={gateway}/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"
        )
    );
    let lease = (key(node.subnet()), r#"{"PublicIP":"192.0.2.11","PublicIPv6":null}"#.to_owned());
    assert!(etcd.subnets().contains(&lease), "{:?}", etcd.subnets());
    std::thread::sleep(Duration::from_millis(500));
    let after = state(&node);
    assert_eq!(before[0], after[0]);
    assert_eq!(before[1], after[1]);
    assert_eq!(before[3..], after[3..]);
    let status = node.status();
    assert_eq!((status.health, status.ignored), (vec![], vec![]));
}

#[test]
fn a_change_of_the_backend_removes_what_the_old_one_made() {
    let lab = Lab::new();
    let etcd = store(&lab, r#"{"Type":"vxlan","VNI":1}"#);
    let (mut one, mut two) = (lab.node(1), lab.node(2));
    for node in [&mut one, &mut two] {
        node.start(&etcd, &Options::default());
    }
    one.wait_routes(&[&two]);
    let subnets = [one.subnet(), two.subnet()];
    let mac = one.vtep_mac();
    let restart = |one: &mut Node, two: &mut Node| {
        for node in [&mut *one, &mut *two] {
            node.stop_agent();
            node.start(&etcd, &Options::default());
        }
        assert_eq!([one.subnet(), two.subnet()], subnets, "the leases are kept");
        one.wait_routes(&[two]);
        two.wait_routes(&[one]);
    };
    configure(&etcd, r#"{"Type":"host-gw"}"#);
    restart(&mut one, &mut two);
    wait::holds("direct routes", SOON, || is_direct(&one, &two) && is_direct(&two, &one));
    assert!(!one.netns.try_sh("ip link show flannel.1"), "the device has gone");
    configure(&etcd, r#"{"Type":"vxlan","VNI":1}"#);
    restart(&mut one, &mut two);
    wait::holds("tunnels", SOON, || through_tunnel(&one, &two) && through_tunnel(&two, &one));
    assert_eq!(one.netns.ip("-4 route show proto 241").trim(), "");
    assert_eq!(one.vtep_mac(), mac);
    configure(&etcd, r#"{"Type":"alloc"}"#);
    one.stop_agent();
    one.start(&etcd, &Options::default());
    assert!(!one.netns.try_sh("ip link show flannel.1"), "the device has gone");
}
