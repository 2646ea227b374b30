//! Two nodes on one path, with everything that can be seen equal to that of
//! the other path: addresses, MACs, settings.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::backend::Backend;
use super::compare::{Seen, key};
use super::draft::{Draft, Transport};
use super::generate::{KEYS, Step};
use super::mode::Mode;
use super::place::{Sender, Tap};
use super::world::{ABSENT, LEFT, MTU, RIGHT, Side, text};
use super::{demands, ruleset, signs};
use flannel_tests::agent::Options;
use flannel_tests::etcd::Etcd;
use flannel_tests::lab::{Lab, NETWORK};
use flannel_tests::node::Node;
use flannel_tests::packet::Wire;
use flannel_tests::plain;
use flannel_tests::pod::Pod;
use flannel_tests::rules::Rules;
use flannel_tests::told::Outcomes;

/// Lets oversized frames leave a pod, so that the node has to answer them.
const POD_MTU: usize = MTU + 150;

/// Pods take no part: they see everything and answer nothing but ARP.
const SILENT: &str = "table ip silent {\n chain input {\n type filter hook prerouting priority -300; policy drop;\n }\n}\n";

/// Addresses of each subnet that packets are sent to and that no pod has.
const NOBODY: [u8; 4] = [3, 200, 201, 250];

/// How long all packets of a batch may take to arrive.
const LIMIT: Duration = Duration::from_secs(10);

/// Where frames are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// Where they are compared.
    At(Tap),
    /// On the bridge of this node: what comes here takes the kernel path.
    Bridge(Side),
}

impl Spot {
    /// Whether that is the underlay.
    pub fn is_cable(self) -> bool {
        matches!(self, Self::At(tap) if tap.is_cable())
    }
}

/// Hears of each frame as it was.
pub type Watch<'a> = &'a mut dyn FnMut(Spot, &[u8]);

/// Two nodes, a pod on each, and who watches them.
pub struct Lane {
    cpu: usize,
    pod_wires: [Wire; 2],
    node_wires: [Wire; 2],
    bridge_wires: [Wire; 2],
    mark: u16,
    _pods: [Pod; 2],
    nodes: [Node; 2],
    _etcd: Etcd,
    _lab: Lab,
}

impl Lane {
    /// Makes it; it sends from this CPU.
    ///
    /// # Panics
    /// It does not come up.
    pub fn new(mode: Mode, options: &Options, rules: Rules, cpu: usize) -> Self {
        let mut options = options.clone();
        options.extra.extend(["--iface=".into(), "--iface=eth1".into()]);
        let lab = Lab::new();
        let etcd = lab.empty_etcd();
        etcd.put_config(&config(mode.backend()));
        let (mut left, mut right) = (lab.node(1), lab.node(2));
        lab.cable(&mut left, &mut right);
        for (node, side) in [(&left, LEFT), (&right, RIGHT)] {
            prepare(node, side, mode.backend());
        }
        for side in [LEFT, RIGHT, ABSENT] {
            let subnet = format!("{}/24", side.address(0)).parse().expect("a subnet");
            etcd.put_subnet(&plain::key(subnet), &lease(side, mode.backend()));
        }
        left.start(&etcd, &options);
        right.start(&etcd, &options);
        left.wait_routes(&[&right]);
        right.wait_routes(&[&left]);
        let pods = [pod(&left, LEFT), pod(&right, RIGHT)];
        for (node, side) in [(&left, LEFT), (&right, RIGHT)] {
            load(node, side, mode, rules);
            // A chain at this hook keeps what leaves on the kernel path.
            if options.datapath == Some("kernel") || demands::SIGNS {
                node.netns.nft(&signs::rules());
            }
        }
        pods[0].ping(pods[1].address, "-c 3 -i 0.2 -W 2");
        pods[1].ping(pods[0].address, "-c 3 -i 0.2 -W 2");
        for pod in &pods {
            pod.netns.nft(SILENT);
        }
        let wires = |interface| [&left, &right].map(|node| Wire::open(&node.netns, interface));
        Self {
            cpu,
            pod_wires: [0, 1].map(|side: usize| Wire::open(&pods[side].netns, "eth0")),
            node_wires: wires("eth1"),
            bridge_wires: wires("cni0"),
            mark: KEYS,
            _pods: pods,
            nodes: [left, right],
            _etcd: etcd,
            _lab: lab,
        }
    }

    /// Sends packets one after another; what came of them.
    ///
    /// # Panics
    /// Plain packets do not arrive any more.
    pub fn send(&mut self, steps: &[Step], watch: Watch<'_>) -> Seen {
        // On one CPU nothing overtakes, so that what is sent last arrives last.
        let mut cpus = CpuSet::new();
        cpus.set(self.cpu).expect("a CPU number");
        // Fewer CPUs than lanes: only slower.
        let _ = sched_setaffinity(Pid::from_raw(0), &cpus);
        let mut seen = Seen::default();
        for step in steps {
            if step.waits {
                self.wait_idle(&mut seen, watch);
            }
            let wire = match step.sender {
                Sender::Pod(side) => &self.pod_wires[index(side)],
                Sender::Wire(side) => &self.node_wires[index(side)],
            };
            for frame in &step.frames {
                wire.send(frame);
            }
        }
        self.wait_idle(&mut seen, watch);
        seen
    }

    /// Takes what has arrived since.
    pub fn collect(&self, seen: &mut Seen, watch: Watch<'_>) {
        let mut see = |tap: Tap, frame: &[u8]| {
            watch(Spot::At(tap), frame);
            seen.add(tap, frame);
        };
        for (tap, wire) in [(Tap::LeftPod, 0), (Tap::RightPod, 1)] {
            self.pod_wires[wire].waiting(|frame| see(tap, frame));
        }
        self.node_wires[0].waiting_both_ways(|leaves, frame| {
            see(Tap::CableFrom(if leaves { LEFT } else { RIGHT }), frame);
        });
        for (side, wire) in [(LEFT, &self.bridge_wires[0]), (RIGHT, &self.bridge_wires[1])] {
            wire.waiting(|frame| watch(Spot::Bridge(side), frame));
        }
    }

    /// Waits until everything has arrived: twice, because an answer to the last
    /// packet crosses both nodes twice.
    fn wait_idle(&mut self, seen: &mut Seen, watch: Watch<'_>) {
        for _ in 0..2 {
            // Another each time: one that comes late is not taken for the next.
            let mark = self.mark;
            self.mark = mark.checked_add(1).unwrap_or(KEYS);
            seen.forget(mark);
            self.wait_mark(mark, seen, watch);
        }
    }

    fn wait_mark(&self, mark: u16, seen: &mut Seen, watch: Watch<'_>) {
        let start = Instant::now();
        let arrived = |seen: &Seen, tap| seen.of(mark).iter().any(|(at, _)| *at == tap);
        let mut again = Instant::now();
        loop {
            self.collect(seen, watch);
            if arrived(seen, Tap::LeftPod) && arrived(seen, Tap::RightPod) {
                return;
            }
            assert!(start.elapsed() < LIMIT, "plain packets do not arrive any more");
            if again <= Instant::now() {
                for side in [LEFT, RIGHT] {
                    self.pod_wires[index(side)].send(&marker(side, mark));
                }
                again = Instant::now() + Duration::from_millis(200);
            } else {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Packets by outcome, of both nodes.
    ///
    /// # Panics
    /// An agent does not answer.
    pub fn outcomes(&self) -> Outcomes {
        let mut sum = Outcomes::default();
        for node in &self.nodes {
            sum.add(&node.outcomes());
        }
        sum
    }
}

fn index(side: Side) -> usize {
    usize::from(side == RIGHT)
}

/// A plain packet by which the end of a batch is known.
fn marker(from: Side, mark: u16) -> Vec<u8> {
    let (source, destination): (Ipv4Addr, Ipv4Addr) = (from.pod(), from.other().pod());
    let mut ip = Ipv4Header::new(0, 64, IpNumber::UDP, source.octets(), destination.octets())
        .expect("no payload yet");
    ip.identification = mark;
    let (source, destination) = (from.pod_mac(), from.gateway_mac());
    let draft = Draft {
        eth: Ethernet2Header { source, destination, ether_type: EtherType::IPV4 },
        tags: Vec::new(),
        ip,
        transport: Transport::Udp(10_000, 10_001),
        payload: Vec::new(),
        edits: Vec::new(),
    };
    let frame = draft.frames().swap_remove(0);
    debug_assert_eq!(key(&frame), Some(mark));
    frame
}

fn config(backend: Backend) -> String {
    format!(
        r#"{{"Network":"{NETWORK}","SubnetLen":24,"SubnetMax":"10.244.199.0","Backend":{{"Type":"{}"}}}}"#,
        backend.name()
    )
}

fn lease(side: Side, backend: Backend) -> String {
    let data = match backend {
        Backend::Vxlan => {
            format!(r#","BackendData":{{"VNI":1,"VtepMAC":"{}"}}"#, text(side.vtep_mac()))
        }
        Backend::HostGw => String::new(),
    };
    format!(
        r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"{}"{data}}}"#,
        side.node(),
        backend.name(),
    )
}

/// What the agent finds on the node at its start.
fn prepare(node: &Node, side: Side, backend: Backend) {
    node.netns.ip(&format!("link set eth1 address {}", text(side.node_mac())));
    // What lies outside would be masqueraded, with ports at random; and how often
    // a missing route is reported depends on the time.
    node.netns.ip("route replace blackhole default");
    settle(&node.netns);
    // An agent takes over the lease that it finds if it knows its MAC, by the
    // device, or its subnet, by the subnet file.
    match backend {
        Backend::Vxlan => {
            node.netns.ip(&format!(
                "link add flannel.1 address {} type vxlan id 1 local {} dev eth1 dstport 8472 \
                 nolearning",
                text(side.vtep_mac()),
                node.address
            ));
        }
        Backend::HostGw => {
            node.netns.ip(&format!("link set eth1 mtu {MTU}"));
            let remembered = format!(
                "FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET={}/24\nFLANNEL_MTU={MTU}\n\
                 FLANNEL_IPMASQ=true\n",
                side.address(1)
            );
            std::fs::write(node.subnet_file(), remembered).expect("write the subnet file");
        }
    }
}

/// Rules and settings of a node that runs.
fn load(node: &Node, side: Side, mode: Mode, rules: Rules) {
    rules.load(&node.netns);
    if mode.share_of_connections() > 0 {
        match rules {
            Rules::Iptables => node.netns.iptables(&ruleset::iptables(side)),
            Rules::Nftables | Rules::None => node.netns.nft(&ruleset::nftables(side)),
        }
    }
    node.netns.ip(&format!(
        "neighbour replace {} lladdr {} dev eth1 nud permanent",
        ABSENT.node(),
        text(ABSENT.node_mac())
    ));
    // As the agent has it where it uses TCP's fast path.
    node.netns.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal=1");
}

/// Settings without which what comes depends on the time.
fn settle(netns: &flannel_tests::netns::Netns) {
    // No limit of any ICMP message; no redirects, which have one of their own.
    netns.sysctl("net.ipv4.icmp_ratemask=0");
    netns.sysctl("net.ipv4.conf.all.send_redirects=0");
    netns.sysctl("net.ipv4.conf.default.send_redirects=0");
    // Lone fragments are forgotten before their identification comes again.
    netns.sysctl("net.ipv4.ipfrag_time=1");
}

fn pod(node: &Node, side: Side) -> Pod {
    let pod = node.pod(2);
    assert_eq!(pod.address, side.pod(), "the agent takes over its lease");
    pod.netns.ip_batch(&[
        format!("link set eth0 address {}", text(side.pod_mac())),
        format!("link set eth0 mtu {POD_MTU}"),
    ]);
    // A neighbour that does not answer would be given up at some time.
    let neighbours = NOBODY.map(|host| {
        let (address, mac) = (side.address(host), text(ABSENT.pod_mac()));
        format!("neighbour replace {address} lladdr {mac} dev cni0 nud permanent")
    });
    let links = [
        format!("link set {} mtu {POD_MTU}", pod.veth),
        format!("link set cni0 mtu {MTU}"),
        format!("link set cni0 address {}", text(side.gateway_mac())),
    ];
    node.netns.ip_batch(&[&links[..], &neighbours].concat());
    pod
}
