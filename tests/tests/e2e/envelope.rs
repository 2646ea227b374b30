//! What the agent sees around its programs, and tells them: by the maps and by
//! status. What the programs make of it is another matter.

use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map};
use aya::programs::TcAttachType;
use flannel_core::envelope::{
    EnvelopeReport, Inward, KeptWay, Obstacle, Outward, Reason, Side, VethReport,
};
use flannel_core::health::Subject;
use flannel_core::status::DatapathKind;
use flannel_ebpf::abi::{Veth, action, flag, map};
use flannel_tests::agent::Options;
use flannel_tests::hooks;
use flannel_tests::lab::Lab;
use flannel_tests::netns::Netns;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::told::complaint;
use flannel_tests::wait;

const SECOND: Duration = Duration::from_secs(1);
/// From what happens to a device to the programs' maps.
const SOON: Duration = Duration::from_millis(100);
const TBF: &str = "root tbf rate 5mbit burst 10k latency 50ms";
const U32: &str = "protocol all u32 match u32 0 0 flowid 1:1";
const KEEPS: u32 = flag::KEEP_OUT | flag::KEEP_IN | flag::KEEP_TUNNEL | flag::MARKED_ROUTES;

/// Action and whether the pod's packets are kept, by the programs' map.
fn veth(node: &Node, name: &str) -> Option<(u8, bool)> {
    let map: HashMap<_, u32, Veth> = Map::HashMap(node.map(map::VETHS)).try_into().expect("a hash");
    let veth = map.get(&node.netns.link(name).ifindex, 0).ok()?;
    Some((veth.action, veth.keep_out != 0))
}

/// Does it; by the maps it has to hold within 100 ms and with another
/// generation.
#[track_caller]
fn soon(node: &Node, what: &str, holds: impl Fn() -> bool) {
    let before = node.config().generation;
    node.netns.sh(what);
    let start = Instant::now();
    while !holds() {
        let limit = SOON * wait::patience();
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{what}: {:?}", start.elapsed());
    assert_ne!(node.config().generation, before, "{what}");
}

fn reported(report: &EnvelopeReport, veth: &str) -> VethReport {
    let found = report.veths.iter().find(|line| line.name == veth);
    found.unwrap_or_else(|| panic!("{veth} in {report:#?}")).clone()
}

/// Why this way is the kernel's.
fn kept(report: &EnvelopeReport, way: KeptWay) -> &[Reason] {
    let found = report.kept.iter().find(|kept| kept.way == way);
    &found.unwrap_or_else(|| panic!("{way} in {report:#?}")).why
}

fn text(node: &Node) -> String {
    let output = node.agent_command("status").output().expect("status");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn limits_of_a_pod_are_known_at_once_and_told() {
    let pair = Pair::agents(&Options::ebpf());
    let (left, name) = (&pair.left, pair.client.veth.as_str());
    assert_eq!(veth(left, name), Some((action::PEER, false)));
    assert_eq!(reported(&left.status().datapath.envelope, name).why, []);
    assert!(!text(left).contains("left to the kernel"));
    // As the CNI bandwidth plugin limits both directions.
    soon(left, &format!("tc qdisc add dev {name} {TBF}"), || {
        veth(left, name) == Some((action::EGRESS, false))
    });
    left.netns.sh(&format!("tc qdisc add dev {name} ingress"));
    soon(left, &format!("tc filter add dev {name} parent ffff: {U32}"), || {
        veth(left, name) == Some((action::EGRESS, true))
    });
    let status = left.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::Ebpf));
    let line = reported(&status.datapath.envelope, name);
    assert_eq!((line.outward, line.inward), (Outward::Kept, Inward::Egress), "{line:?}");
    let why: Vec<&Obstacle> = line.why.iter().map(|reason| &reason.what).collect();
    assert!(matches!(why[..], [Obstacle::Filter { .. }, Obstacle::RootQdisc { .. }]), "{why:?}");
    let text = text(left);
    assert!(text.contains(&format!("{name}: root qdisc tbf")), "{text}");
    // A second look changes nothing, and neither does the slow one.
    std::thread::sleep(SECOND);
    assert_eq!(veth(left, name), Some((action::EGRESS, true)));
    soon(left, &format!("tc qdisc del dev {name} root"), || {
        veth(left, name) == Some((action::PEER, true))
    });
    soon(left, &format!("tc qdisc del dev {name} ingress"), || {
        veth(left, name) == Some((action::PEER, false))
    });
}

#[test]
fn what_stands_on_the_nodes_devices_keeps_their_ways() {
    let pair = Pair::agents(&Options::ebpf());
    let (left, name) = (&pair.left, pair.client.veth.as_str());
    let flags = || left.config().flags & KEEPS;
    assert_eq!(flags(), 0);
    soon(left, &format!("tc qdisc add dev cni0 {TBF}"), || {
        veth(left, name) == Some((action::KERNEL, false))
    });
    soon(left, "tc qdisc del dev cni0 root", || veth(left, name) == Some((action::PEER, false)));
    soon(left, &format!("tc qdisc add dev flannel.1 {TBF}"), || flags() == flag::KEEP_OUT);
    left.netns.sh("tc qdisc add dev eth0 clsact");
    soon(left, &format!("tc filter add dev eth0 ingress {U32}"), || {
        flags() == flag::KEEP_OUT | flag::KEEP_IN | flag::KEEP_TUNNEL
    });
    let status = left.status();
    let report = &status.datapath.envelope;
    let tbf = Obstacle::RootQdisc { qdisc: "tbf".to_owned() };
    assert_eq!(kept(report, KeptWay::KeepOut)[0].what, tbf);
    assert_eq!(kept(report, KeptWay::KeepTunnel)[0].device, "eth0");
    let reason = complaint(&status, Subject::FastPath).expect("a complaint");
    assert!(reason.contains("carries nothing"), "{reason}");
    left.netns.sh("tc qdisc del dev eth0 clsact");
    soon(left, "tc qdisc del dev flannel.1 root", || flags() == 0);
    soon(left, "ip rule add fwmark 5 table 99", || flags() == flag::MARKED_ROUTES);
    soon(left, "ip rule del fwmark 5 table 99", || flags() == 0);
    wait::holds("no complaint", SECOND, || left.complaint(Subject::FastPath).is_none());
}

#[test]
fn other_peoples_programs_are_found_at_the_next_look() {
    let pair = Pair::agents(&Options::ebpf());
    let (left, name) = (&pair.left, pair.client.veth.as_str());
    let object = flannel_agent::bpf::object().expect("the object");
    let mut ebpf = aya::EbpfLoader::new().load(&object).expect("maps");
    let program: &mut aya::programs::SchedClassifier =
        ebpf.program_mut("to_pod").expect("a program").try_into().expect("of TC");
    program.load().expect("the verifier's consent");
    let id = left.netns.inside(|| program.attach(name, TcAttachType::Ingress).expect("a hook"));
    wait::holds("the program behind ours", 2 * SECOND, || {
        veth(left, name) == Some((action::PEER, true))
    });
    let why = reported(&left.status().datapath.envelope, name).why;
    assert!(matches!(why[0].what, Obstacle::Program { side: Side::Ingress, .. }), "{why:?}");
    left.netns.inside(|| program.detach(id).expect("detached"));
    wait::holds("none", 2 * SECOND, || veth(left, name) == Some((action::PEER, false)));
}

#[test]
fn the_programs_run_where_tunnel_packets_may_come() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    let netns = &node.netns;
    lab.underlay().ip(&format!("link add x1 type veth peer name eth1 netns {}", netns.name()));
    netns.ip_batch(&[
        "link set eth1 up".into(),
        "route add 198.51.100.0/24 via inet6 fe80::1 dev eth1".into(),
        // The node's address, without a wire.
        "link add stub type veth peer name stub-end".into(),
        "link set stub up".into(),
        "link set stub-end up".into(),
        "address add 10.255.0.11/32 dev stub".into(),
        "link add br7 type bridge".into(),
        "link set br7 up".into(),
        "link add port type veth peer name port-end".into(),
        "link set port master br7 up".into(),
        "link add ifb7 type ifb".into(),
        "link set ifb7 up".into(),
    ]);
    let extra = vec!["--iface=".to_owned(), "--iface=stub".to_owned()];
    node.start(&etcd, &Options { extra, ..Options::ebpf() });
    let pod = node.pod(2);
    let ingress = |device: &str| hooks::tcx(&node.netns, device, TcAttachType::Ingress);
    wait::holds("the pod's hook", 2 * SECOND, || ingress(&pod.veth) == ["from_pod"]);
    for device in ["stub", "stub-end", "eth0", "eth1", "br7"] {
        wait::holds(device, 2 * SECOND, || ingress(device) == ["from_underlay"]);
    }
    // A bridge that waits for its first pod.
    node.netns.ip_batch(&[
        "link add cni1 type bridge".into(),
        format!("address add {} dev cni1", node.subnet().nth(129).expect("an address")),
        "link set cni1 up".into(),
    ]);
    std::thread::sleep(SECOND / 2);
    for device in ["lo", "cni0", "cni1", "port", "ifb7"] {
        assert_eq!(ingress(device), [""; 0], "{device}");
    }
    assert_eq!(ingress("flannel.1"), ["from_overlay"]);
    // One that comes later, and one that becomes part of another device.
    node.netns.ip("link add late type veth peer name late-end");
    node.netns.ip("link set late up");
    wait::holds("a new card", SECOND, || ingress("late") == ["from_underlay"]);
    node.netns.ip("link set late master br7");
    wait::holds("a port", 2 * SECOND, || ingress("late").is_empty());
    assert_eq!(node.status().datapath.mode, Some(DatapathKind::Ebpf));
    node.stop_agent();
    assert!(node.cleanup().status.success());
    for device in ["stub", "eth0", "eth1", "br7"] {
        wait::holds(device, 2 * SECOND, || {
            hooks::tcx(&node.netns, device, TcAttachType::Ingress).is_empty()
        });
    }
}

#[test]
fn changes_that_cannot_matter_end_nothing_and_a_moved_address_does_at_once() {
    let pair = Pair::agents(&Options::ebpf());
    let left = &pair.left;
    let netns = &left.netns;
    let second = left.pod(3);
    netns.sh("ip link set cni0 address 02:00:00:00:00:c0");
    pair.client.ping(second.address, "-c 1 -W 2");
    let third = left.pod(4);
    netns.sh(&format!("ping -c 1 -W 2 {}", third.address));
    // Whatever those have caused.
    let (before, _) = wait::until("a second without a new generation", 10 * SECOND, || {
        let before = left.config().generation;
        std::thread::sleep(SECOND);
        (left.config().generation == before).then_some(before)
    });
    let fourth = left.pod(5);
    fourth.ping(second.address, "-c 1 -W 2");
    netns.ip_batch(&[
        "link add other0 type veth peer name other1".into(),
        "link set other0 up".into(),
        "link add br9 type bridge".into(),
        "address add 203.0.113.1/24 dev br9".into(),
        "link set br9 up".into(),
        "route add 198.51.100.128/25 via 203.0.113.9".into(),
        "route del 198.51.100.128/25".into(),
        "address del 203.0.113.1/24 dev br9".into(),
        "neigh add 203.0.113.8 lladdr 02:00:00:00:00:08 dev br9".into(),
    ]);
    wait::holds("the new pod is served", 2 * SECOND, || {
        veth(left, &fourth.veth) == Some((action::PEER, false))
    });
    std::thread::sleep(SECOND / 2);
    assert_eq!(left.config().generation, before);
    // The second pod takes the third one's address, and asks for the gateway.
    third.netns.ip("link set eth0 arp off");
    second.netns.ip(&format!("address add {}/24 dev eth0", third.address));
    second.netns.ip("neigh flush all");
    second.netns.try_sh(&format!("ping -c 1 -W 1 -I {} 192.0.2.11", third.address));
    let start = Instant::now();
    while left.config().generation == before {
        assert!(start.elapsed() < SOON, "the address moved");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn pods_without_veths_are_named() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.start(&etcd, &Options::ebpf());
    let pod = Netns::new(&format!("{}-mv", node.netns.name()));
    node.netns.ip("link add mv0 link eth0 type macvlan mode bridge");
    node.netns.ip(&format!("link set mv0 netns {}", pod.name()));
    let address = node.subnet().nth(9).expect("an address");
    pod.ip(&format!("address add {address}/24 dev mv0"));
    pod.ip("link set mv0 up");
    wait::holds("the pod is named", 10 * SECOND, || {
        text(&node).contains("not served: macvlan on eth0")
    });
    let reason = node.complaint(Subject::FastPath).expect("a complaint");
    assert!(reason.contains("no pod has a veth"), "{reason}");
    // One that is served ends the complaint, not the line.
    let _pod = node.pod(2);
    wait::holds("the complaint ends", 3 * SECOND, || node.complaint(Subject::FastPath).is_none());
    assert!(text(&node).contains("not served: macvlan on eth0"));
}
