//! Docker on flannel as the guides have it: subnet.env, mk-docker-opts.sh,
//! dockerd, and containers on docker0 of two nodes.

use flannel_ebpf::abi::Outcome;
use flannel_tests::docker::{Container, Docker};
use flannel_tests::etcd::Etcd;
use flannel_tests::lab::{Lab, OUTSIDE};
use flannel_tests::node::Node;
use flannel_tests::process::Process;
use flannel_tests::root::packaged;

/// Listens for connections and sends back what comes.
const ECHO: &str = "nc -ll -p 5000 -e /bin/busybox cat";
/// Bytes that each stream carries, and what sends them.
const SENT: u64 = 8 << 20;
const SENDER: &str = "busybox dd if=/dev/zero bs=64k count=128 2>/dev/null";

fn start(node: &mut Node, etcd: &Etcd) -> Docker {
    let root = node.install();
    root.write(
        "/etc/sysconfig/flanneld",
        &format!(
            "FLANNEL_ETCD_ENDPOINTS={}\nFLANNEL_ETCD_PREFIX=/coreos.com/network\n\
             FLANNEL_OPTIONS=\"-iface=eth0 -ip-masq -datapath=ebpf\"\n",
            etcd.endpoint()
        ),
    );
    node.start_service(&packaged("flanneld.service"));
    let gateway = node.subnet().nth(1).expect("an address");
    assert_eq!(
        root.read("/run/flannel/docker").expect("docker's options"),
        format!(
            "DOCKER_OPT_BIP=\"--bip={gateway}/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
             DOCKER_OPT_MTU=\"--mtu=1450\"\n\
             DOCKER_NETWORK_OPTIONS=\" --bip={gateway}/24 --ip-masq=false --mtu=1450\"\n"
        )
    );
    // docker sets the policy DROP where it has to switch forwarding on.
    node.netns.sysctl("net.ipv4.ip_forward=0");
    let docker = node.start_docker();
    let rules = node.netns.sh("iptables -S FORWARD");
    assert!(rules.contains("-P FORWARD DROP") && rules.contains("DOCKER-USER"), "{rules}");
    docker
}

/// Sends a stream through an echo and expects all of it back.
#[track_caller]
fn stream(from: &Container<'_>, to: &str) {
    let got = from.sh(&format!("({SENDER}; busybox sleep 1) | busybox nc {to} | busybox wc -c"));
    assert_eq!(got.trim(), SENT.to_string(), "{to}");
}

#[test]
fn containers_of_two_nodes_talk() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    let outside = lab.outside();
    let first = start(&mut left, &etcd);
    let second = start(&mut right, &etcd);
    left.wait_routes(&[&right]);
    right.wait_routes(&[&left]);
    let client = first.container("client", &[], "sleep 600");
    let server = second.container("server", &["--publish=8080:5000"], ECHO);
    for (node, container) in [(&left, &client), (&right, &server)] {
        assert!(node.subnet().contains(container.address), "{}", container.address);
    }

    let ping = client.sh(&format!("busybox ping -c 3 -i 0.2 -W 2 {}", server.address));
    assert_eq!(ping.matches("ttl=62").count(), 3, "{ping}");
    assert!(ping.contains(" 0% packet loss"), "{ping}");
    let ping = packets_back(&server, &client);
    assert!(ping.contains("ttl=62"), "{ping}");

    client.wait_port(server.address, 5000);
    let (before, before_right) = (left.counted(&right), right.counted(&left));
    stream(&client, &format!("{} 5000", server.address));
    for (before, after) in [(before, left.counted(&right)), (before_right, right.counted(&left))] {
        let sent = [
            after.tx_fast_packets - before.tx_fast_packets,
            after.tx_kernel_packets - before.tx_kernel_packets,
        ];
        let received = [
            after.rx_fast_packets - before.rx_fast_packets,
            after.rx_kernel_packets - before.rx_kernel_packets,
        ];
        for [fast, kernel] in [sent, received] {
            assert!(fast > 50 && fast > 5 * kernel, "{fast} fast, {kernel} kernel");
        }
    }

    reaches_the_outside(&lab, &outside, &client);
    published_port(&left, &right, &outside, &client);
}

fn packets_back(from: &Container<'_>, to: &Container<'_>) -> String {
    from.sh(&format!("busybox ping -c 1 -W 2 {}", to.address))
}

/// The outside has no route to the overlay: an answer proves masquerading.
fn reaches_the_outside(lab: &Lab, outside: &flannel_tests::netns::Netns, client: &Container<'_>) {
    let mut echo = outside.command("busybox");
    echo.args(ECHO.split(' '));
    let _echo = Process::start("echo", &mut echo, &lab.dir().join("echo.log"));
    client.wait_port(OUTSIDE, 5000);
    stream(client, &format!("{OUTSIDE} 5000"));
}

/// A port that docker publishes on `right`, from outside and from a container
/// of the other node.
fn published_port(
    left: &Node,
    right: &Node,
    outside: &flannel_tests::netns::Netns,
    client: &Container<'_>,
) {
    let line = format!("({SENDER}; sleep 1) | busybox nc {} 8080 | wc -c", right.address);
    let mut command = outside.command("sh");
    let got = flannel_tests::process::run(command.args(["-c", &line]));
    assert_eq!(got.trim(), SENT.to_string());

    // By the bridge's address, so that it crosses the overlay: what docker
    // translates is confirmed with its translation.
    let bridge = right.subnet().nth(1).expect("an address");
    let before = right.outcomes();
    stream(client, &format!("{bridge} 8080"));
    let since = right.outcomes().since(&before);
    assert!(since.get(Outcome::ConfirmedTranslated) > 0, "{since:?}");
    assert!(since.fast() > 100, "{since:?}");
    let translated = right.netns.sh("iptables -t nat -S DOCKER");
    assert!(translated.contains("--dport 8080") && translated.contains("DNAT"), "{translated}");
    assert!(left.outcomes().get(Outcome::FastEncap) > 0);
}
