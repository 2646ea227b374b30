//! Which changes end decisions, asked of the real kernel, each test in a
//! network namespace of its own. Needs root.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::netns::vxlan::{ifindex, underlay};
use crate::netns::{Namespace, in_netns, run, try_run};
use flannel_agent::kernel::KernelEvent;
use flannel_agent::kernel::events::{self, Scope};
use tokio::sync::mpsc;

/// A node: an underlay, `flannel.1`, a bridge `cni0` with the ports veth1 and
/// veth2, a routed pod at veth3.
struct Node {
    events: mpsc::Receiver<KernelEvent>,
    pods: [Namespace; 3],
}

const DEVICES: [&str; 6] = ["eth0", "flannel.1", "cni0", "veth1", "veth2", "veth3"];

impl Node {
    async fn new() -> Self {
        underlay();
        run(
            "ip link add flannel.1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning",
        );
        run("ip link set flannel.1 up");
        run("ip link add cni0 address 02:00:00:00:00:c0 type bridge forward_delay 0");
        run("ip address add 10.5.1.1/24 dev cni0");
        run("ip link set cni0 up");
        let pods = [Namespace::new(), Namespace::new(), Namespace::new()];
        for (number, pod) in (1..).zip(&pods) {
            veth(number, pod);
        }
        run("ip link set veth1 master cni0");
        run("ip link set veth2 master cni0");
        run("ip address add 10.5.1.1/32 dev veth3");
        run("ip route add 10.5.1.30/32 dev veth3");
        // IPv6 at work on new devices would make events of its own.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let scope = Scope::default();
        scope.set_network("10.5.0.0/16".parse().unwrap(), Duration::from_secs(5));
        scope.set_peers(["192.0.2.12".parse().unwrap()].into_iter());
        scope.set_devices(DEVICES.map(ifindex).into());
        Self { events: events::subscribe(&scope).unwrap(), pods }
    }

    /// Whether what happens ends decisions within 100 ms; all events of it.
    async fn decides(&mut self, what: &str) -> (bool, BTreeSet<String>) {
        while self.events.try_recv().is_ok() {}
        run(what);
        self.heard().await
    }

    async fn heard(&mut self) -> (bool, BTreeSet<String>) {
        let end = tokio::time::Instant::now() + Duration::from_millis(100);
        let (mut decision, mut found) = (false, BTreeSet::new());
        while let Ok(Some(event)) = tokio::time::timeout_at(end, self.events.recv()).await {
            decision |= matches!(event, KernelEvent::Decision | KernelEvent::OverlayRoute);
            found.insert(format!("{event:?}"));
        }
        (decision, found)
    }

    #[track_caller]
    fn check(expected: bool, what: &str, (decided, events): &(bool, BTreeSet<String>)) {
        assert_eq!(*decided, expected, "{what}: {events:?}");
    }
}

fn veth(number: u8, pod: &Namespace) {
    run(&format!("ip link add veth{number} type veth peer name eth0 netns {}", pod.id()));
    run(&format!("ip link set veth{number} up"));
    pod.sh("ip link set eth0 up");
}

#[test]
fn what_cannot_matter_ends_nothing() {
    in_netns(async {
        let mut node = Node::new().await;
        for what in [
            "ip link add veth9 type veth peer name other9",
            "ip link set veth9 up",
            "ip link set other9 up",
            "ip link set veth9 master cni0",
            "ip link add other type bridge",
            "ip link set other up",
            "ip link set other mtu 1400",
            "ip address add 198.51.100.1/24 dev other",
            "ip route add 203.0.113.0/24 via 198.51.100.9",
            "ip route del 203.0.113.0/24",
            "ip -6 route add 2001:db8::/64 dev eth0",
            "ip address del 198.51.100.1/24 dev other",
            "ip neigh add 10.5.1.77 lladdr 02:00:00:00:00:77 dev cni0 nud reachable",
            "ip neigh change 10.5.1.77 lladdr 02:00:00:00:00:77 dev cni0 nud stale",
            "ip neigh del 10.5.1.77 dev cni0",
            "bridge fdb add 02:00:00:00:00:78 dev veth1 master static",
            "bridge fdb del 02:00:00:00:00:78 dev veth1 master",
            "ip neigh add 192.0.2.99 lladdr 02:00:00:00:00:99 dev eth0 nud reachable",
            "tc qdisc add dev veth1 root tbf rate 5mbit burst 10k latency 50ms",
            "tc qdisc add dev veth1 clsact",
        ] {
            // A bridge takes the least MTU of its ports.
            let heard = node.decides(what).await;
            Node::check(false, what, &heard);
        }
    });
}

#[test]
fn what_can_alter_a_decision_ends_all_at_once() {
    in_netns(async {
        let mut node = Node::new().await;
        run("ip link add other type bridge");
        run("ip link set other up");
        for what in [
            "ip route add 192.0.2.12/32 dev other",
            "ip route del 192.0.2.12/32 dev other",
            "ip route add default via 192.0.2.254",
            "ip route add 10.5.9.0/24 dev other table 100",
            "ip rule add fwmark 1 table 100",
            "ip rule del fwmark 1 table 100",
            "ip address add 10.5.9.9/32 dev other",
            "ip address add 192.0.2.7/24 dev eth0",
            "sysctl -qw net.ipv4.conf.veth1.forwarding=1",
            "sysctl -qw net.ipv4.conf.all.rp_filter=1",
            "ip link set veth1 type bridge_slave hairpin on",
            "ip link set veth1 type bridge_slave isolated on",
            "ip link set veth1 type bridge_slave learning off",
            "ip link set cni0 type bridge nf_call_iptables 1",
            "ip link set cni0 address 02:00:00:00:00:c1",
            "ip link set veth2 mtu 1400",
            "ip link set veth2 nomaster",
            "ip link set veth1 down",
            "ip link del veth3",
            "ip link set cni0 down",
            "ip link del other",
            "ip link set wire down",
        ] {
            let heard = node.decides(what).await;
            Node::check(true, what, &heard);
        }
    });
}

#[test]
fn a_changed_mac_is_told_and_a_changed_state_is_not() {
    in_netns(async {
        let mut node = Node::new().await;
        for (device, address) in [("cni0", "10.5.1.2"), ("veth3", "10.5.1.30")] {
            let put = |mac: &str, state: &str| {
                format!("ip neigh replace {address} lladdr {mac} dev {device} nud {state}")
            };
            for (expected, what) in [
                (false, put("02:00:00:00:00:01", "reachable")),
                (false, put("02:00:00:00:00:01", "stale")),
                (true, put("02:00:00:00:00:02", "stale")),
                (false, format!("ip neigh del {address} dev {device}")),
                (true, put("02:00:00:00:00:01", "reachable")),
            ] {
                let heard = node.decides(&what).await;
                Node::check(expected, &what, &heard);
            }
        }
    });
}

#[test]
fn a_gratuitous_arp_that_moves_an_address_is_told_at_once() {
    in_netns(async {
        let mut node = Node::new().await;
        node.pods[0].sh("ip address add 10.5.1.2/24 dev eth0");
        node.pods[1].sh("ip address add 10.5.1.3/24 dev eth0");
        run("ping -c 1 -W 2 10.5.1.2");
        run("ping -c 1 -W 2 10.5.1.3");
        let _ = node.heard().await;
        // Both answers have taught the bridge and the node: nothing new in them.
        run("ping -c 2 -i 0.2 -W 2 10.5.1.2");
        let heard = node.heard().await;
        Node::check(false, "pings", &heard);
        // The address moves to the other pod, which says so by its own packets.
        node.pods[0].sh("ip address del 10.5.1.2/24 dev eth0");
        node.pods[1].sh("ip address add 10.5.1.2/24 dev eth0");
        node.pods[1].sh("ip neigh flush all");
        while node.events.try_recv().is_ok() {}
        // An ARP request with the moved address as its sender.
        node.pods[1].run(|| {
            let _ = try_run("ping -c 1 -W 1 -I 10.5.1.2 10.5.1.1");
        });
        let heard = node.heard().await;
        Node::check(true, "the address moved", &heard);
    });
}

#[test]
fn a_mac_that_comes_by_another_port_is_told_at_once() {
    in_netns(async {
        let mut node = Node::new().await;
        let mac = "02:00:00:00:00:55";
        node.pods[0].sh("ip address add 10.5.1.2/24 dev eth0");
        node.pods[0].sh("ip link set eth0 address 02:00:00:00:00:55");
        run("ping -c 1 -W 2 10.5.1.2");
        let learned = run("bridge fdb show br cni0");
        assert!(learned.contains(&format!("{mac} dev veth1")), "{learned}");
        node.pods[0].sh("ip link set eth0 address 02:00:00:00:00:56");
        node.pods[1].sh("ip address add 10.5.1.3/24 dev eth0");
        while node.events.try_recv().is_ok() {}
        node.pods[1].sh("ip link set eth0 address 02:00:00:00:00:55");
        node.pods[1].run(|| run("ping -c 1 -W 2 10.5.1.1"));
        let learned = run("bridge fdb show br cni0");
        assert!(learned.contains(&format!("{mac} dev veth2")), "{learned}");
        let heard = node.heard().await;
        Node::check(true, "the station moved", &heard);
    });
}

#[test]
fn traffic_control_tells_its_device() {
    in_netns(async {
        let mut node = Node::new().await;
        let event = KernelEvent::Tc { ifindex: ifindex("veth1") };
        for what in [
            "tc qdisc add dev veth1 root tbf rate 5mbit burst 10k latency 50ms",
            "tc qdisc del dev veth1 root",
            "tc qdisc add dev veth1 ingress",
            "tc filter add dev veth1 parent ffff: protocol all pref 7 u32 match u32 0 0 flowid 1:1",
            "tc filter del dev veth1 parent ffff: pref 7",
            "tc qdisc del dev veth1 ingress",
        ] {
            let (_, events) = node.decides(what).await;
            assert!(events.contains(&format!("{event:?}")), "{what}: {events:?}");
        }
        run("tc qdisc add dev veth1 ingress_block 3 clsact");
        let (_, events) =
            node.decides("tc filter add block 3 pref 5 u32 match u32 0 0 flowid 1:1").await;
        assert!(events.contains("Tc { ifindex: 0 }"), "{events:?}");
    });
}
