//! What stands on devices, read from the real kernel, each test in a network
//! namespace of its own. Needs root.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::netns::vxlan::ifindex;
use crate::netns::{Namespace, in_netns, run, try_run};
use flannel_agent::bpf::unless_interrupted;
use flannel_agent::kernel::events::{self, Scope};
use flannel_agent::kernel::netlink::RealKernel;
use flannel_agent::kernel::{Inspect, Kernel};
use flannel_core::envelope::CLSACT_PRIORITY;
use flannel_core::envelope::Scene;
use flannel_core::envelope::{Filter, PodEnd, Stacked, TrafficControl};
use flannel_core::limits::{Asked, LimitedRoute, LimitedRoutes, Limits, TunnelEnd};
use flannel_core::pods::Choice;

fn inspector() -> Box<dyn Inspect> {
    RealKernel::open().unwrap().inspector()
}

/// Whether XDP runs on a device of the calling thread's namespace.
fn xdp_runs_on(device: &str) -> Option<bool> {
    inspector().xdp_on(ifindex(device)).unwrap()
}

/// A veth between two devices of this namespace.
fn pair(name: &str, other: &str) {
    run(&format!("ip link add {name} type veth peer name {other}"));
    run(&format!("ip link set {name} up"));
    run(&format!("ip link set {other} up"));
}

fn look(inspector: &mut dyn Inspect, device: &str) -> TrafficControl {
    let ifindex = ifindex(device);
    inspector.traffic_control(&[ifindex].into()).unwrap().remove(&ifindex).unwrap()
}

fn u32_filter(priority: u16) -> Filter {
    Filter { chain: 0, priority, kind: "u32".to_owned(), ours: false }
}

#[test]
fn qdiscs_and_filters_are_read_as_they_come_and_go() {
    in_netns(async {
        let mut inspector = inspector();
        let inspector = inspector.as_mut();
        pair("veth0", "pod0");
        let nothing = TrafficControl { root: "noqueue".to_owned(), ..TrafficControl::default() };
        assert_eq!(look(inspector, "veth0"), nothing);
        run("tc qdisc add dev veth0 root tbf rate 5mbit burst 10k latency 50ms");
        assert_eq!(look(inspector, "veth0").root, "tbf");
        run("tc qdisc del dev veth0 root");
        assert_eq!(look(inspector, "veth0"), nothing);
        // What limits a pod's sending: without a filter it does nothing.
        run("tc qdisc add dev veth0 ingress");
        assert_eq!(look(inspector, "veth0"), nothing);
        run("tc filter add dev veth0 parent ffff: protocol all pref 7 u32 match u32 0 0 \
             action mirred egress redirect dev pod0");
        let limited = TrafficControl { ingress: vec![u32_filter(7)], ..nothing.clone() };
        assert_eq!(look(inspector, "veth0"), limited, "and not on egress");
        run("tc filter del dev veth0 parent ffff: pref 7");
        run("tc qdisc del dev veth0 ingress");
        assert_eq!(look(inspector, "veth0"), nothing, "the kernel keeps an empty place");
        run("tc qdisc add dev veth0 clsact");
        run("tc filter add dev veth0 egress protocol ip pref 9 u32 match u32 0 0 flowid 1:1");
        run("tc filter add dev veth0 egress chain 4 pref 1 u32 match u32 0 0 flowid 1:1");
        run("tc filter add dev veth0 ingress protocol arp pref 3 u32 match u32 0 0 flowid 1:1");
        let found = look(inspector, "veth0");
        assert_eq!(found.ingress, [], "ARP is no concern");
        let other_chain = Filter { chain: 4, ..u32_filter(1) };
        assert_eq!(found.egress, [u32_filter(9), other_chain]);
    });
}

#[test]
fn filters_of_a_shared_block_are_each_devices() {
    in_netns(async {
        let mut inspector = inspector();
        pair("veth0", "pod0");
        run("tc qdisc add dev veth0 ingress_block 3 clsact");
        run("tc filter add block 3 pref 5 u32 match u32 0 0 flowid 1:1");
        assert_eq!(look(inspector.as_mut(), "veth0").ingress, [u32_filter(5)]);
    });
}

#[test]
fn each_device_has_its_own() {
    in_netns(async {
        let mut inspector = inspector();
        for number in 0..5 {
            pair(&format!("veth{number}"), &format!("pod{number}"));
        }
        run("tc qdisc add dev veth1 root tbf rate 5mbit burst 10k latency 50ms");
        run("tc qdisc add dev veth2 clsact");
        run("tc filter add dev veth2 ingress pref 5 u32 match u32 0 0 flowid 1:1");
        run("tc qdisc add dev veth3 root handle 1: htb");
        run("tc class add dev veth3 parent 1: classid 1:1 htb rate 1mbit");
        run("tc qdisc add dev veth3 parent 1:1 tbf rate 1mbit burst 10k latency 50ms");
        let asked: BTreeSet<u32> = (0..4).map(|number| ifindex(&format!("veth{number}"))).collect();
        let found = inspector.traffic_control(&asked).unwrap();
        assert_eq!(found.keys().copied().collect::<BTreeSet<_>>(), asked);
        let roots: Vec<&str> = found.values().map(|device| device.root.as_str()).collect();
        let count = |root: &str| roots.iter().filter(|other| **other == root).count();
        assert_eq!((count("noqueue"), count("tbf"), count("htb")), (2, 1, 1), "{roots:?}");
        assert_eq!(found[&ifindex("veth2")].ingress, [u32_filter(5)]);
        assert_eq!(found[&ifindex("veth3")].root, "htb", "not its class's");
    });
}

/// Asking must not be an event: it would be answered by asking again.
#[test]
fn looking_is_no_event() {
    in_netns(async {
        let mut inspector = inspector();
        pair("veth0", "pod0");
        run("tc qdisc add dev veth0 clsact");
        run("tc filter add dev veth0 ingress pref 5 u32 match u32 0 0 flowid 1:1");
        let mut events = events::subscribe(&Scope::default()).unwrap();
        for _ in 0..5 {
            look(inspector.as_mut(), "veth0");
            inspector.rules_look_at_marks().unwrap();
            inspector.received(ifindex("veth0")).unwrap();
            inspector.namespaces().unwrap();
        }
        let quiet = tokio::time::timeout(Duration::from_millis(150), events.recv()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    });
}

#[test]
fn devices_that_have_gone_are_left_out() {
    in_netns(async {
        let mut inspector = inspector();
        pair("veth0", "pod0");
        let gone = ifindex("veth0");
        run("ip link del veth0");
        assert!(inspector.traffic_control(&[gone].into()).unwrap().is_empty());
        assert_eq!(inspector.received(gone).unwrap(), None);
        assert_eq!(inspector.xdp_in_pod(PodEnd { netns: 77, ifindex: 2 }).unwrap(), None);
    });
}

#[test]
fn our_filters_are_told_from_others() {
    use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact};
    use aya::programs::{SchedClassifier, TcAttachType};
    in_netns(async {
        let mut inspector = inspector();
        pair("veth0", "pod0");
        let object = flannel_agent::bpf::object().unwrap();
        let mut ebpf = aya::EbpfLoader::new().load(&object).unwrap();
        let program: &mut SchedClassifier =
            ebpf.program_mut("from_pod").unwrap().try_into().unwrap();
        unless_interrupted(|| program.load()).unwrap();
        qdisc_add_clsact("veth0").unwrap();
        for priority in [CLSACT_PRIORITY, 8] {
            let options =
                NlOptions { priority, handle: TcHandle::new(0, priority), ..NlOptions::default() };
            let attached = program.attach_with_options(
                "veth0",
                TcAttachType::Ingress,
                TcAttachOptions::Netlink(options),
            );
            attached.unwrap();
        }
        let found = look(inspector.as_mut(), "veth0").ingress;
        let told: Vec<(u16, bool)> =
            found.iter().map(|filter| (filter.priority, filter.ours)).collect();
        assert_eq!(told, [(8, false), (CLSACT_PRIORITY, true)]);
    });
}

#[test]
fn an_xdp_program_in_a_pod_is_seen_from_here() {
    in_netns(async {
        let mut inspector = inspector();
        let pod = Namespace::new();
        run(&format!("ip link add veth0 type veth peer name eth0 netns {}", pod.id()));
        run("ip link set veth0 up");
        pod.sh("ip link set eth0 up");
        let links = RealKernel::open().unwrap().links().await.unwrap();
        let choice = Choice {
            underlay: 1,
            overlay: None,
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.1.0/24".parse().unwrap(),
            uplinks: &BTreeSet::new(),
            names: None,
        };
        let veth = Scene::of(&links, choice).veths.remove(0);
        let end = veth.end.unwrap();
        assert_eq!(inspector.xdp_in_pod(end).unwrap(), Some(false));
        let link = pod.run(|| {
            let object = flannel_agent::bpf::object().unwrap();
            let mut ebpf = aya::EbpfLoader::new().load(&object).unwrap();
            let program: &mut aya::programs::Xdp =
                ebpf.program_mut("from_wire").unwrap().try_into().unwrap();
            unless_interrupted(|| program.load()).unwrap();
            let id = program.attach("eth0", aya::programs::xdp::XdpMode::Skb).unwrap();
            program.take_link(id).unwrap()
        });
        assert_eq!(inspector.xdp_in_pod(end).unwrap(), Some(true));
        let inside = pod.run(|| xdp_runs_on("eth0"));
        assert_eq!(inside, Some(true));
        assert_eq!(inspector.xdp_on(ifindex("veth0")).unwrap(), Some(false));
        assert_eq!(inspector.xdp_on(4711).unwrap(), None);
        pod.run(move || drop(link));
        // The kernel frees a link some time after its last reference.
        let gone = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            inspector.xdp_in_pod(end).unwrap() == Some(false)
        });
        assert!(gone);
    });
}

#[test]
fn rules_by_mark_are_found_among_others() {
    in_netns(async {
        let mut inspector = inspector();
        assert!(!inspector.rules_look_at_marks().unwrap(), "those that are always there");
        run("ip rule add from 10.5.0.0/16 table 7");
        run("ip -6 rule add fwmark 1 table 7");
        assert!(!inspector.rules_look_at_marks().unwrap());
        run("ip rule add fwmark 0/0x10 table 7");
        assert!(inspector.rules_look_at_marks().unwrap());
        run("ip rule del fwmark 0/0x10 table 7");
        run("ip rule add fwmark 0x20 table 7");
        assert!(inspector.rules_look_at_marks().unwrap());
    });
}

#[test]
fn received_packets_are_counted() {
    in_netns(async {
        let mut inspector = inspector();
        pair("veth0", "pod0");
        run("ip address add 192.0.2.1/24 dev veth0");
        let before = inspector.received(ifindex("pod0")).unwrap().unwrap();
        // Nobody answers, but somebody is asked for.
        let _ = try_run("ping -c 1 -W 1 192.0.2.9");
        let after = inspector.received(ifindex("pod0")).unwrap().unwrap();
        assert!(after > before, "{before} {after}");
    });
}

#[test]
fn pods_on_a_device_without_a_veth_are_found_by_their_address() {
    in_netns(async {
        let mut inspector = inspector();
        pair("eth0", "wire");
        let network = "10.5.0.0/16".parse().unwrap();
        let (pod, other, bystander) = (Namespace::new(), Namespace::new(), Namespace::new());
        for (name, namespace) in [("m0", &pod), ("m1", &other)] {
            run(&format!("ip link add {name} link eth0 type macvlan mode bridge"));
            run(&format!("ip link set {name} netns {}", namespace.id()));
        }
        pod.sh("ip address add 10.5.1.7/24 dev m0");
        other.sh("ip address add 192.0.2.7/24 dev m1");
        // One that stands on a device of another namespace, which we know too.
        run(&format!("ip link add veth0 type veth peer name eth0 netns {}", bystander.id()));
        bystander.sh("ip link add m2 link eth0 type macvlan mode bridge");
        bystander.sh("ip address add 10.5.1.8/24 dev m2");
        let mut found = Vec::new();
        for netns in inspector.namespaces().unwrap() {
            found.extend(inspector.stacked(netns, network).unwrap());
        }
        let macvlan = [Stacked { kind: "macvlan".to_owned(), lower: ifindex("eth0") }];
        assert_eq!(found, macvlan);
        // The kernel has an id for our own namespace now: it is no pod's.
        run("ip link add m3 link eth0 type macvlan mode bridge");
        run("ip address add 10.5.1.9/24 dev m3");
        let mut found = Vec::new();
        for netns in inspector.namespaces().unwrap() {
            found.extend(inspector.stacked(netns, network).unwrap());
        }
        assert_eq!(found, macvlan);
    });
}

#[test]
fn limits_of_routes_are_read_from_all_tables() {
    in_netns(async {
        let mut inspector = inspector();
        pair("eth0", "peer0");
        run("ip address add 192.0.2.1/24 dev eth0");
        let read =
            |inspector: &mut dyn Inspect| LimitedRoutes::of(inspector.limited_routes().unwrap());
        assert!(read(inspector.as_mut()).is_empty());
        run("ip route add 192.0.2.12/32 dev eth0 mtu 1300");
        run("ip route add default via 192.0.2.9 dev eth0 hoplimit 9 table 77");
        let route = |to: &str, main, mtu, hop_limit| LimitedRoute {
            destination: to.parse().unwrap(),
            main,
            limits: Limits { mtu, hop_limit },
        };
        let narrow = route("192.0.2.12/32", true, Some(1300), false);
        let expected = [narrow, route("0.0.0.0/0", false, None, true)];
        assert_eq!(read(inspector.as_mut()), LimitedRoutes::of(expected));
        let ask = |inspector: &mut dyn Inspect, to: [u8; 4], port| {
            let end = TunnelEnd { source: [192, 0, 2, 1].into(), port, vrf: 0 };
            let asked = Asked { destination: to.into(), tunnel: Some(end) };
            inspector.limits_of(&asked)
        };
        let inspector = inspector.as_mut();
        assert_eq!(ask(inspector, [192, 0, 2, 12], 8472).unwrap(), narrow.limits);
        assert_eq!(ask(inspector, [192, 0, 2, 13], 8472).unwrap(), Limits::default());
        assert!(ask(inspector, [198, 51, 100, 1], 8472).is_err(), "no route leads there");
        // Rules that look at all that tunnel packets are.
        run("ip rule add from 192.0.2.1 ipproto udp dport 8472 lookup 77 pref 9");
        let marked = Limits { mtu: None, hop_limit: true };
        assert_eq!(ask(inspector, [192, 0, 2, 12], 8472).unwrap(), marked);
        assert_eq!(ask(inspector, [192, 0, 2, 12], 4789).unwrap(), narrow.limits);
        let forwarded = Asked { destination: [192, 0, 2, 12].into(), tunnel: None };
        assert_eq!(inspector.limits_of(&forwarded).unwrap(), narrow.limits);
    });
}
