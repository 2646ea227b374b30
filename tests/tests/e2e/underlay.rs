//! The underlay stays what it was, whatever else comes and goes.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use flannel_core::health::Subject;
use flannel_core::status::DatapathKind;
use flannel_tests::agent::Options;
use flannel_tests::beside::wait_ping;
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::wait;

const SECOND: Duration = Duration::from_secs(1);

/// An empty value takes back what the harness names.
fn by_default_route(options: Options) -> Options {
    Options { extra: vec!["--iface=".to_owned()], ..options }
}

fn public_ip(node: &Node) -> String {
    node.lease().public_ip.to_string()
}

/// What a move would change.
fn place(node: &Node) -> (String, String) {
    (public_ip(node), node.netns.ip("-d -o link show flannel.1"))
}

#[test]
fn virtual_addresses_vpns_flaps_and_new_names_move_nothing() {
    let mut pair = Pair::agents(&by_default_route(Options::ebpf()));
    let netns = &pair.left.netns;
    let before = place(&pair.left);
    let running = pair.start_spaced(4 * SECOND);
    netns.ip("address add 192.0.2.100/32 dev eth0");
    netns.ip_batch(&[
        "link add vpn type veth peer name far".into(),
        "address add 203.0.113.5/24 dev vpn".into(),
        "link set vpn up".into(),
        "link set far up".into(),
        "route replace default via 192.0.2.1 dev eth0 metric 100".into(),
        "route del default via 192.0.2.1 dev eth0 metric 0".into(),
        "route add default via 203.0.113.1 dev vpn metric 5".into(),
        // An own device is no way either, be its route the best.
        "route add default dev flannel.1 metric 1".into(),
        "address del 192.0.2.100/32 dev eth0".into(),
    ]);
    thread::sleep(SECOND);
    assert_eq!(place(&pair.left), before);
    let spaced = running.finish();
    assert_eq!(spaced.lost, 0, "{spaced:?}");
    // Of two permanent addresses of one network the first goes and comes back.
    netns.ip_batch(&[
        "address add 192.0.2.100/24 dev eth0".into(),
        "link set eth0 down".into(),
        "address del 192.0.2.11/24 dev eth0".into(),
    ]);
    wait::holds("the complaint", 2 * SECOND, || pair.left.complaint(Subject::Underlay).is_some());
    netns.ip_batch(&[
        "address flush dev eth0".into(),
        "address add 192.0.2.100/24 dev eth0".into(),
        "address add 192.0.2.11/24 dev eth0".into(),
        "link set eth0 name wan0".into(),
        "link set wan0 up".into(),
    ]);
    wait::holds("no complaint", 5 * SECOND, || pair.left.complaint(Subject::Underlay).is_none());
    assert_eq!(public_ip(&pair.left), "192.0.2.11");
    wait_ping(&pair);
    // Nor does a restart, though the virtual address is the first one.
    netns.ip("route del default metric 5");
    netns.ip("route add default via 192.0.2.1 dev wan0 metric 9");
    let options = by_default_route(Options::ebpf());
    assert!(pair.left.stop_agent().success());
    pair.left.start(&pair.etcd, &options);
    assert_eq!(public_ip(&pair.left), "192.0.2.11");
    wait_ping(&pair);
}

#[test]
fn addresses_on_loopback_carry_the_kernel_path() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut nodes = [lab.node(1), lab.node(2)];
    let own = |number: u8| Ipv4Addr::new(198, 18, 0, number);
    for (node, (flag, number)) in nodes.iter_mut().zip([("--public-ip", 1), ("--iface", 2)]) {
        let other = 3 - number;
        let gateway = Ipv4Addr::new(192, 0, 2, 10 + other);
        node.netns.ip_batch(&[
            format!("address add {}/32 dev lo", own(number)),
            format!("route add {} via {gateway} src {}", own(other), own(number)),
        ]);
        node.address = own(number);
        let mut options = by_default_route(Options::default());
        options.extra.push(format!("{flag}={}", own(number)));
        node.start(&etcd, &options);
    }
    let [left, right] = nodes;
    left.wait_routes(&[&right]);
    right.wait_routes(&[&left]);
    for node in [&left, &right] {
        assert_eq!(public_ip(node), node.address.to_string());
        let device = node.netns.ip("-d -o link show flannel.1");
        assert!(device.contains(&format!("local {}", node.address)), "{device}");
        assert!(device.contains("mtu 1450"), "{device}");
        let status = node.status();
        assert_eq!(status.datapath.mode, Some(DatapathKind::Kernel));
        let reason = status.datapath.reason.expect("a reason");
        assert!(reason.contains("is on lo"), "{reason}");
    }
    let (client, server) = (left.pod(2), right.pod(2));
    wait::holds("ping between the pods", 5 * SECOND, || {
        client.netns.ping(server.address, "-c 2 -i 0.2 -W 1").0
    });
    client.ping(server.address, "-c 1 -W 1 -M do -s 1422");
}
