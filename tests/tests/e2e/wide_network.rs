//! An overlay network that is wider than the pods' subnets: nodes, hosts of the
//! LAN and other routes lie inside it, as in flannel's own example.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::beside::{Way, beside, forged, prepared, wait_ping};
use flannel_tests::endpoint::Answers;
use flannel_tests::load::{REQUESTS, SPACED, assert_whole};
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::pod::{PORT, serve};

const VXLAN: &str = r#"{"Type":"vxlan","VNI":1}"#;

fn config(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","Backend":{backend}}}"#
    )
}

/// The node's address on the LAN 10.1.0.0/24 becomes its underlay address.
fn on_the_lan(node: &mut Node, number: u8) {
    node.address = Ipv4Addr::new(10, 1, 0, number);
    node.netns.ip(&format!("address add {}/24 dev eth0", node.address));
}

/// Two nodes with addresses inside the overlay network.
fn wide(way: Way, ip_masq: bool) -> Pair {
    let options = [11, 12].map(|number| {
        let extra = vec!["--iface=".into(), format!("--iface=10.1.0.{number}")];
        Options { ip_masq, extra, ..way.options(&Options::default()) }
    });
    let pair = prepared(options.each_ref(), |_, etcd, [left, right]| {
        etcd.put_config(&config(VXLAN));
        on_the_lan(left, 11);
        on_the_lan(right, 12);
    });
    wait_ping(&pair);
    pair
}

#[test]
fn a_service_on_a_node_answers_pods_of_another() {
    beside(|way| {
        let pair = wide(way, true);
        let _server = serve(&pair.right.netns, &pair.lab.dir().join("node.log"), &[]);
        let udp = SocketAddrV4::new(pair.right.address, 7001);
        let _answers = Answers::open_at(&pair.right.netns, udp);
        let tcp = SocketAddrV4::new(pair.right.address, PORT);
        assert_whole(&pair.client.traffic(REQUESTS, tcp, "--seconds 1"));
        assert_whole(&pair.client.traffic(SPACED, udp, "--seconds 1"));
        pair.client.ping(pair.right.address, "-c 2 -i 0.2 -W 1");
        assert_whole(&pair.traffic(REQUESTS, "--seconds 0.5 --patience 1"));
        assert_eq!(forged(&pair.left.outcomes()) + forged(&pair.right.outcomes()), 0);
    });
}

#[test]
fn a_host_of_the_lan_answers_by_another_node() {
    beside(|way| {
        // With masquerading, that node would give the answers its own address.
        let pair = wide(way, false);
        let host = pair.lab.stranger(Ipv4Addr::new(10, 1, 0, 250));
        host.ip(&format!("route add 10.0.0.0/8 via {}", pair.right.address));
        let _server = serve(&host, &pair.lab.dir().join("host.log"), &[]);
        let target = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 250), PORT);
        assert_whole(&pair.client.traffic(REQUESTS, target, "--seconds 1"));
        assert_whole(&pair.client.traffic(SPACED, target, "--seconds 1"));
        assert_eq!(forged(&pair.left.outcomes()), 0);
    });
}

#[test]
fn an_expression_on_addresses_finds_the_card() {
    beside(|way| {
        let extra = vec!["--iface=".into(), r"--iface-regex=^10\.1\.0\.".into()];
        let options = Options { extra, ..way.options(&Options::default()) };
        let pair = prepared([&options, &options], |lab, etcd, [left, right]| {
            etcd.put_config(&config(VXLAN));
            lab.underlay().ip("address add 10.1.0.1/24 dev br0");
            for (node, number) in [(left, 11), (right, 12)] {
                on_the_lan(node, number);
                // Its only address.
                let old = Ipv4Addr::new(192, 0, 2, number);
                node.netns.ip_batch(&[
                    format!("address del {old}/24 dev eth0"),
                    "route add 192.0.2.1 dev eth0".to_owned(),
                ]);
            }
        });
        wait_ping(&pair);
        assert_eq!(pair.left.lease().public_ip.to_string(), "10.1.0.11");
    });
}

/// A route that an administrator has made before the first start is there after
/// it, whatever the backend.
fn stays(route: &str) {
    for backend in [VXLAN, r#"{"Type":"host-gw"}"#] {
        beside(|way| {
            let options = way.options(&Options::default());
            let pair = prepared([&options, &options], |_, etcd, nodes| {
                etcd.put_config(&config(backend));
                for node in nodes {
                    node.netns.ip(&format!("route add {route} dev eth0"));
                }
            });
            wait_ping(&pair);
            // What is cleaned up at a start is cleaned up by then.
            thread::sleep(Duration::from_secs(1));
            let routes = pair.left.netns.ip("route show");
            assert!(routes.contains(route), "{backend}: not {route} in\n{routes}");
        });
    }
}

#[test]
fn a_first_start_leaves_an_administrators_route() {
    stays("10.200.0.0/16 via 192.0.2.1");
}

#[test]
fn a_first_start_leaves_a_route_that_could_be_a_lease() {
    stays("10.60.7.0/24 via 192.0.2.1");
}
