//! From what happens to a device to the programs' maps: real kernel, real
//! programs, each test in a network namespace of its own. Needs root.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::netns::vxlan::{ifindex, underlay};
use crate::netns::{Namespace, in_netns, run};
use crate::place::{device, options};
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use flannel_agent::bpf::loader::Loaded;
use flannel_agent::bpf::{
    self, AttachMode, Datapath as _, Needs, Places, ProgramOptions, XdpMode, unless_interrupted,
};
use flannel_agent::kernel::netlink::RealKernel;
use flannel_agent::kernel::{Kernel as _, events};
use flannel_agent::status::Shared;
use flannel_agent::watch::{self, Watch};
use flannel_core::envelope::Scene;
use flannel_core::health::Subject;
use flannel_core::pods::Choice;
use flannel_core::schedule::HOOKS_REST;
use flannel_ebpf::abi::{ABI_VERSION, Config, Veth, action, flag, map};

/// From an event to the map.
const SOON: Duration = Duration::from_millis(100);

/// A node with programs on `eth0`, `flannel.1` and the pods' veths: veth1 is a
/// port of cni0, veth2 is routed.
struct Node {
    pins: Pins,
    kernel: RealKernel,
    watch: Watch,
    datapath: Mutex<Loaded>,
    shared: Shared,
    pods: Vec<Namespace>,
}

impl Node {
    async fn start(attach: AttachMode) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("/sys/fs/bpf/flannel-watch-{}-{number}", std::process::id());
        let pins = Pins(PathBuf::from(name));
        underlay();
        run(
            "ip link add flannel.1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning",
        );
        run("ip link set flannel.1 up");
        run("ip link add cni0 address 02:00:00:00:00:c0 type bridge forward_delay 0");
        run("ip address add 10.5.1.1/24 dev cni0");
        run("ip link set cni0 up");
        let mut pods = Vec::new();
        for number in [1, 2] {
            let pod = Namespace::new();
            run(&format!("ip link add veth{number} type veth peer name eth0 netns {}", pod.id()));
            run(&format!("ip link set veth{number} up"));
            pod.sh("ip link set eth0 up");
            pods.push(pod);
        }
        run("ip link set veth1 master cni0");
        let options = ProgramOptions { xdp: XdpMode::Off, ..options(&pins.0, attach) };
        let datapath = Mutex::new(Loaded::open(&options, Needs::default(), None).unwrap());
        let (kernel, shared) = (RealKernel::open().unwrap(), Shared::default());
        let network = "10.5.0.0/16".parse().unwrap();
        let window = Duration::from_secs(5);
        let watch = Watch::new(kernel.inspector(), shared.clone(), network, window);
        watch.set_peers(["192.0.2.12".parse().unwrap()].into_iter(), 0);
        let heard = events::subscribe(watch.scope()).unwrap();
        let mut for_the_loop = watch::start(watch.clone(), heard, Duration::from_secs(60));
        tokio::spawn(async move { while for_the_loop.recv().await.is_some() {} });
        let node = Self { pins, kernel, watch, datapath, shared, pods };
        node.serve().await;
        // Twice: the programs are seen where they are now.
        tokio::time::sleep(HOOKS_REST).await;
        node.serve().await;
        node
    }

    /// As a pass does.
    async fn serve(&self) {
        let links = self.kernel.links().await.unwrap();
        let choice = Choice {
            underlay: ifindex("eth0"),
            overlay: Some(ifindex("flannel.1")),
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.1.0/24".parse().unwrap(),
            uplinks: &BTreeSet::new(),
            names: None,
        };
        let mut datapath = self.datapath.lock().unwrap();
        let settled =
            self.watch.settle(Scene::of(&links, choice), 8472, &*datapath, true, HOOKS_REST);
        let report = datapath.ensure_hooks(Places {
            underlay: device("eth0"),
            underlay_kind: "veth",
            inlets: &settled.inlets,
            overlay: Some(device("flannel.1")),
            direct: false,
            veths: &settled.veths,
            turn: Duration::MAX,
        });
        assert!(report.failed.is_empty(), "{:?}", report.failed);
    }

    fn pinned(&self, name: &str) -> MapData {
        MapData::from_pin(self.pins.0.join(format!("v{ABI_VERSION}")).join(name)).unwrap()
    }

    /// What the programs know of a veth: action and whether its packets are kept.
    fn veth(&self, name: &str) -> Option<(u8, bool)> {
        let map: HashMap<_, u32, Veth> = Map::HashMap(self.pinned(map::VETHS)).try_into().unwrap();
        let veth = map.get(&ifindex(name), 0).ok()?;
        Some((veth.action, veth.keep_out != 0))
    }

    fn config(&self) -> Config {
        let map: Array<_, Config> = Map::Array(self.pinned(map::CFG)).try_into().unwrap();
        map.get(&0, 0).unwrap()
    }

    fn flags(&self) -> u32 {
        self.config().flags
    }

    /// Does it, and waits until `holds`: within 100 ms, and with the generation
    /// raised.
    async fn soon(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let before = self.config().generation;
        run(what);
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_ne!(self.config().generation, before, "{what}");
    }
}

/// A pin directory, removed with what is in it.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        // The programs may still be loaded: their owner is this test.
        let _ = bpf::cleanup(&self.0, true);
    }
}

/// Somebody else's program: ours, with maps of its own, which are empty.
struct Foreign {
    _ebpf: Ebpf,
    _link: aya::programs::tc::SchedClassifierLink,
}

impl Foreign {
    fn on(device: &str, attach: TcAttachType, order: LinkOrder) -> Self {
        let object = bpf::object().unwrap();
        let mut ebpf = EbpfLoader::new().load(&object).unwrap();
        let program: &mut SchedClassifier = ebpf.program_mut("to_pod").unwrap().try_into().unwrap();
        unless_interrupted(|| program.load()).unwrap();
        let options = TcAttachOptions::TcxOrder(order);
        let id = program.attach_with_options(device, attach, options).unwrap();
        let link = program.take_link(id).unwrap();
        Self { _ebpf: ebpf, _link: link }
    }
}

const FREE: Option<(u8, bool)> = Some((action::PEER, false));
const EGRESS: Option<(u8, bool)> = Some((action::EGRESS, false));
const KERNEL: Option<(u8, bool)> = Some((action::KERNEL, false));
const KEPT_OUT: Option<(u8, bool)> = Some((action::PEER, true));
const TBF: &str = "root tbf rate 5mbit burst 10k latency 50ms";
const U32: &str = "protocol all u32 match u32 0 0 flowid 1:1";

#[test]
fn traffic_control_reaches_the_maps_within_a_tenth_of_a_second() {
    in_netns(async {
        let node = Node::start(AttachMode::Tcx).await;
        assert_eq!((node.veth("veth1"), node.veth("veth2")), (FREE, FREE));
        let keeps = flag::KEEP_OUT | flag::KEEP_IN | flag::KEEP_TUNNEL | flag::MARKED_ROUTES;
        assert_eq!(node.flags() & keeps, 0);
        // The limits of the CNI bandwidth plugin, in both directions.
        node.soon(&format!("tc qdisc add dev veth1 {TBF}"), |node| node.veth("veth1") == EGRESS)
            .await;
        run("tc qdisc add dev veth2 ingress");
        node.soon(&format!("tc filter add dev veth2 parent ffff: {U32}"), |node| {
            node.veth("veth2") == KEPT_OUT
        })
        .await;
        assert_eq!(node.veth("veth1"), EGRESS);
        node.soon("tc qdisc del dev veth1 root", |node| node.veth("veth1") == FREE).await;
        node.soon("tc qdisc del dev veth2 ingress", |node| node.veth("veth2") == FREE).await;
        // What the bridge does is its ports' only.
        node.soon(&format!("tc qdisc add dev cni0 {TBF}"), |node| node.veth("veth1") == KERNEL)
            .await;
        assert_eq!(node.veth("veth2"), FREE);
        node.soon("tc qdisc del dev cni0 root", |node| node.veth("veth1") == FREE).await;
        run("tc qdisc add dev cni0 clsact");
        node.soon(&format!("tc filter add dev cni0 ingress {U32}"), |node| {
            node.veth("veth1") == KEPT_OUT
        })
        .await;
        node.soon("tc qdisc del dev cni0 clsact", |node| node.veth("veth1") == FREE).await;
        // The node's ways.
        node.soon(&format!("tc qdisc add dev flannel.1 {TBF}"), |node| {
            node.flags() & keeps == flag::KEEP_OUT
        })
        .await;
        run("tc qdisc add dev eth0 clsact");
        node.soon(&format!("tc filter add dev eth0 ingress {U32}"), |node| {
            node.flags() & keeps == flag::KEEP_OUT | flag::KEEP_IN | flag::KEEP_TUNNEL
        })
        .await;
        let complaint = node.shared.lock().health.reason(Subject::FastPath).map(str::to_owned);
        assert!(complaint.unwrap().contains("carries nothing"));
        run("tc qdisc del dev eth0 clsact");
        node.soon("tc qdisc del dev flannel.1 root", |node| node.flags() & keeps == 0).await;
        node.soon("ip rule add fwmark 7 table 100", |node| {
            node.flags() & keeps == flag::MARKED_ROUTES
        })
        .await;
        node.soon("ip rule del fwmark 7 table 100", |node| node.flags() & keeps == 0).await;
        assert_eq!(node.shared.lock().health.reason(Subject::FastPath), None);
    });
}

#[test]
fn what_does_not_act_changes_nothing() {
    in_netns(async {
        let node = Node::start(AttachMode::Tcx).await;
        let before = node.config();
        for harmless in [
            format!("tc qdisc add dev eth0 {TBF}"),
            "tc qdisc add dev eth0 clsact".to_owned(),
            format!("tc filter add dev eth0 egress {U32}"),
            "tc qdisc add dev veth1 clsact".to_owned(),
            "tc filter add dev veth1 ingress protocol arp u32 match u32 0 0 flowid 1:1".to_owned(),
            "tc qdisc add dev cni0 clsact".to_owned(),
            "tc qdisc add dev veth2 ingress".to_owned(),
        ] {
            run(&harmless);
        }
        tokio::time::sleep(SOON).await;
        node.serve().await;
        assert_eq!((node.veth("veth1"), node.veth("veth2")), (FREE, FREE));
        assert_eq!(node.config(), before);
    });
}

#[test]
fn as_filters_our_programs_are_no_obstacle_and_others_count_by_their_priority() {
    in_netns(async {
        let node = Node::start(AttachMode::Clsact).await;
        assert_eq!((node.veth("veth1"), node.veth("veth2")), (FREE, FREE));
        let early =
            "tc filter add dev veth1 ingress pref 5 protocol all u32 match u32 0 0 flowid 1:1";
        run(early);
        tokio::time::sleep(SOON).await;
        assert_eq!(node.veth("veth1"), FREE, "it has acted already");
        let late = early.replace("pref 5", "pref 65000");
        node.soon(&late, |node| node.veth("veth1") == KEPT_OUT).await;
        node.soon(&format!("tc filter add dev veth2 egress {U32}"), |node| {
            node.veth("veth2") == EGRESS
        })
        .await;
    });
}

#[test]
fn tcx_programs_count_by_their_place() {
    in_netns(async {
        let node = Node::start(AttachMode::Tcx).await;
        let (ingress, egress) = (TcAttachType::Ingress, TcAttachType::Egress);
        let keeps = flag::KEEP_OUT | flag::KEEP_IN | flag::KEEP_TUNNEL;
        for (device, attach, order, expected, flags) in [
            ("veth2", ingress, LinkOrder::first(), FREE, 0),
            ("veth2", ingress, LinkOrder::last(), KEPT_OUT, 0),
            ("veth2", egress, LinkOrder::first(), EGRESS, 0),
            ("eth0", ingress, LinkOrder::first(), FREE, 0),
            ("eth0", ingress, LinkOrder::last(), FREE, flag::KEEP_IN | flag::KEEP_TUNNEL),
            ("flannel.1", ingress, LinkOrder::first(), FREE, flag::KEEP_IN),
            ("flannel.1", egress, LinkOrder::first(), FREE, flag::KEEP_OUT),
        ] {
            let foreign = Foreign::on(device, attach, order);
            // No event tells: a look after the hooks finds it.
            tokio::time::sleep(HOOKS_REST).await;
            node.serve().await;
            let found = (node.veth("veth2"), node.flags() & keeps);
            assert_eq!(found, (expected, flags), "{device}");
            drop(foreign);
            // The kernel frees a link some time after its last reference.
            let start = Instant::now();
            while (node.veth("veth2"), node.flags() & keeps) != (FREE, 0) {
                assert!(start.elapsed() < Duration::from_secs(5), "{device}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                node.serve().await;
            }
        }
    });
}

#[test]
fn xdp_in_a_pod_is_seen_from_its_veths_event() {
    in_netns(async {
        let node = Node::start(AttachMode::Tcx).await;
        // Native: it changes what the other end offers, and that is an event.
        let link = node.pods[1].run(|| {
            let mut ebpf = EbpfLoader::new().load(&bpf::object().unwrap()).unwrap();
            let program: &mut aya::programs::Xdp =
                ebpf.program_mut("from_wire").unwrap().try_into().unwrap();
            unless_interrupted(|| program.load()).unwrap();
            let id = program.attach("eth0", aya::programs::xdp::XdpMode::Driver).unwrap();
            program.take_link(id).unwrap()
        });
        let start = Instant::now();
        while node.veth("veth2") != EGRESS {
            assert!(start.elapsed() < SOON, "{:?}", node.veth("veth2"));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        node.pods[1].run(move || drop(link));
        let start = Instant::now();
        while node.veth("veth2") != FREE {
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", node.veth("veth2"));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_pod_that_is_limited_from_the_beginning_is_served_so_from_the_beginning() {
    in_netns(async {
        let mut node = Node::start(AttachMode::Tcx).await;
        let pod = Namespace::new();
        run(&format!("ip link add veth3 type veth peer name eth0 netns {}", pod.id()));
        run(&format!("tc qdisc add dev veth3 {TBF}"));
        run("tc qdisc add dev veth3 ingress");
        run(&format!("tc filter add dev veth3 parent ffff: {U32}"));
        run("ip link set veth3 up");
        node.pods.push(pod);
        assert_eq!(node.veth("veth3"), None);
        let before = node.config().generation;
        node.serve().await;
        assert_eq!(node.veth("veth3"), Some((action::EGRESS, true)));
        assert_eq!(node.config().generation, before, "a pod that comes ends nothing");
    });
}
