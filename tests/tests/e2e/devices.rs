//! Underlays and pods on kinds of links that not every kernel has. `cargo xtask
//! test` runs these in an emulated machine with Debian's kernel.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::beside::wait_ping;
use flannel_tests::lab::Lab;
use flannel_tests::load::{BULK, ECHOES, MESSAGES, SPACED, Whole as _, traffic};
use flannel_tests::netns::Netns;
use flannel_tests::node::Node;
use flannel_tests::packet::Wire;
use flannel_tests::pair::Pair;
use flannel_tests::pod::{PORT, Pod};
use flannel_tests::told::{Outcomes, words};
use flannel_tests::wait::{self, patience};

/// Two nodes whose underlay is the VLAN 10 of `eth1`. Packets of priority 0
/// leave with 1 as their PCP, those of priority 6 with 5, of 7 with 3.
fn on_vlan(options: [&Options; 2]) -> Pair {
    Pair::over("eth1.10", options, |lab, left, right| {
        lab.wire(left, right, "eth1");
        for node in [left, right] {
            // The tag then stands in the frames that a socket sees leave.
            node.netns.sh("ethtool -K eth1 txvlan off");
            node.netns
                .ip("link add link eth1 name eth1.10 type vlan id 10 egress-qos-map 0:1 6:5 7:3");
            node.underlay_on("eth1.10");
        }
    })
}

/// The PCP of a tagged tunnel packet with UDP between the pods in it.
fn pcp(frame: &[u8]) -> Option<u8> {
    // Outer Ethernet with tag, IPv4, UDP and VXLAN; inner Ethernet and IPv4.
    let at =
        |offset: usize| Some(u16::from_be_bytes([*frame.get(offset)?, *frame.get(offset + 1)?]));
    let tunnel = at(12)? == 0x8100 && at(16)? == 0x0800 && at(18 + 20 + 2)? == 8472;
    let udp = *frame.get(68 + 9)? == 17;
    // The client's packets to the traffic server, and its answers.
    let ours = [at(68 + 20)?, at(68 + 20 + 2)?].contains(&PORT);
    (tunnel && udp && ours).then_some(frame[14] >> 5)
}

/// How many datagrams leave each node with which PCP, when the flow has run for
/// a moment.
#[track_caller]
fn priorities(pair: &Pair) -> [BTreeMap<u8, usize>; 2] {
    assert_eq!(pair.traffic(SPACED, "--seconds 0.5").lost, 0);
    let wires = [&pair.left, &pair.right].map(|node| Wire::open(&node.netns, "eth1"));
    let spaced = pair.traffic(SPACED, "--seconds 1 --interval-us 5000");
    assert_eq!(spaced.lost, 0, "{spaced:?}");
    wires.map(|wire| {
        let mut found = BTreeMap::new();
        wire.waiting(|frame| {
            if let Some(pcp) = pcp(frame) {
                *found.entry(pcp).or_default() += 1;
            }
        });
        found
    })
}

/// All of some hundred datagrams left both nodes with this PCP.
#[track_caller]
fn all_leave_with(pair: &Pair, pcp: u8) {
    let found = priorities(pair);
    let only = |found: &BTreeMap<u8, usize>| found.len() == 1 && found.get(&pcp) > Some(&100);
    assert!(found.iter().all(only), "datagrams by PCP: {found:?}, all should have {pcp}");
}

/// What leaves `left` shows what the kernel path does, `right` does the same.
///
/// The kernel takes a packet's priority from its TOS, and from rules.
#[test]
fn a_vlan_underlay_carries_the_fast_path() {
    let pair = on_vlan([&Options::kernel(), &Options::ebpf()]);
    let before = pair.right.outcomes();
    all_leave_with(&pair, 1);
    // TOS 0x10, low delay: priority 6.
    for pod in [&pair.client, &pair.server] {
        pod.netns.nft(
            "table ip tos {\nchain out {\ntype route hook output priority mangle\n\
             ip dscp set 4\n}\n}",
        );
    }
    all_leave_with(&pair, 5);
    for pod in [&pair.client, &pair.server] {
        pod.netns.nft("delete table ip tos");
    }
    for node in [&pair.left, &pair.right] {
        node.netns.nft(
            "table ip odd {\nchain on {\ntype filter hook forward priority 0\n\
             meta l4proto udp meta priority set 0:7\n}\n}",
        );
    }
    all_leave_with(&pair, 3);
    let since = pair.right.outcomes().since(&before);
    // A priority can be repeated: none of the three keeps a flow off.
    assert!(
        since.get(Outcome::FastEncap) > 600 && since.get(Outcome::FastDecap) > 600,
        "{since:?}"
    );
    pair.check_integrity(2);
}

#[test]
fn a_bond_underlay_carries_the_fast_path_before_and_after_a_failover() {
    let pair = Pair::over("bond0", [&Options::ebpf(); 2], |lab, left, right| {
        let cards = ["eth1", "eth2"];
        for card in cards {
            lab.wire(left, right, card);
        }
        for node in [left, right] {
            node.netns.ip("link add bond0 type bond mode active-backup miimon 50");
            for card in cards {
                node.netns.ip(&format!("link set {card} down"));
                node.netns.ip(&format!("link set {card} master bond0"));
                node.netns.ip(&format!("link set {card} up"));
            }
            node.underlay_on("bond0");
        }
    });
    let active = |node: &Node, card: &str| {
        let bond = node.netns.sh("cat /proc/net/bonding/bond0");
        bond.contains(&format!("Currently Active Slave: {card}"))
    };
    assert!(active(&pair.left, "eth1"), "the first card comes first");
    pair.fast_both_ways();
    // The other end loses its carrier with it, and changes over as well.
    pair.left.netns.ip("link set eth1 down");
    wait::holds("the other card", Duration::from_secs(5), || {
        active(&pair.left, "eth2") && active(&pair.right, "eth2")
    });
    pair.fast_both_ways();
    pair.check_integrity(2);
}

#[test]
fn a_vrf_underlay_carries_the_fast_path() {
    let pair = Pair::over("eth1", [&Options::ebpf(); 2], |lab, left, right| {
        lab.wire(left, right, "eth1");
        for node in [left, right] {
            node.netns.ip("link add underlay type vrf table 10");
            node.netns.ip("link set underlay up");
            node.netns.ip("link set eth1 master underlay");
            node.underlay_on("eth1");
        }
    });
    wait_ping(&pair);
    pair.fast_both_ways();
    pair.check_integrity(2);
}

/// An underlay address on a device by which no packet comes or goes, as nodes
/// have that speak BGP: the programs serve what comes by the other cards, or
/// status says that they do not.
#[test]
fn an_underlay_address_without_a_wire_is_served_or_said_not_to_be() {
    let pair = Pair::over("dummy0", [&Options::ebpf(); 2], |_, left, right| {
        let cards = [left.address, right.address];
        for node in [&mut *left, &mut *right] {
            node.netns.ip("link add dummy0 type dummy");
            node.underlay_on("dummy0");
        }
        left.netns.ip(&format!("route add {} via {}", right.address, cards[1]));
        right.netns.ip(&format!("route add {} via {}", left.address, cards[0]));
    });
    let before = pair.left.outcomes();
    pair.check_integrity(2);
    let since = pair.left.outcomes().since(&before);
    let served = since.get(Outcome::FastEncap) > 100 && since.get(Outcome::FastDecap) > 100;
    let mut status = pair.left.status();
    // Speaks of the device for another reason.
    status.datapath.xdp.reason = None;
    assert!(served || words(&status).contains("dummy0"), "{since:?}\n{status:?}");
}

/// A pod on a link other than a veth.
struct Odd {
    kind: &'static str,
    netns: Netns,
    address: Ipv4Addr,
}

/// The address by which odd pods reach their node, whatever the subnet.
const HOP: &str = "169.254.1.1";

/// What is in a pod's namespace is looked at again some time after it came.
const TOLD: Duration = Duration::from_secs(10);

impl Odd {
    /// `join` makes the pod's `eth0` and gives the name of the node's end.
    #[track_caller]
    fn new(
        node: &Node,
        kind: &'static str,
        number: u32,
        join: impl FnOnce(&Netns) -> String,
    ) -> Self {
        let address = node.subnet().nth(number).expect("an address of the subnet");
        let netns = Netns::new(&format!("{}-{kind}", node.netns.name()));
        let end = join(&netns);
        netns.ip_batch(&[
            format!("address add {address}/32 dev eth0"),
            "link set eth0 up".into(),
            format!("route add {HOP} dev eth0"),
            format!("route add default via {HOP}"),
        ]);
        node.netns.ip(&format!("route add {address} dev {end}"));
        Self { kind, netns, address }
    }

    /// Links of one parent that leads nowhere: one is the pod's, the other the
    /// node's.
    #[track_caller]
    fn on_shared_link(node: &Node, kind: &'static str, mode: &str, number: u32) -> Self {
        Self::new(node, kind, number, |pod| {
            let (parent, end, mtu) = (format!("p-{kind}"), format!("n-{kind}"), node.mtu());
            node.netns.ip_batch(&[
                format!("link add {parent} type dummy"),
                format!("link set {parent} up"),
                format!("link add link {parent} name {end} mtu {mtu} type {kind} mode {mode}"),
                format!("address add {HOP}/32 dev {end}"),
                format!("link set {end} up"),
                format!("link add link {parent} name odd mtu {mtu} type {kind} mode {mode}"),
                format!("link set odd netns {} name eth0", pod.name()),
            ]);
            end
        })
    }

    /// A netkit pair, which routes and knows no MACs.
    #[track_caller]
    fn on_netkit(node: &Node, number: u32) -> Self {
        Self::new(node, "netkit", number, |pod| {
            // The kernel gives the other end its name, the first free `nk`.
            node.netns.ip(&format!("link add n-netkit mtu {} type netkit", node.mtu()));
            node.netns.ip_batch(&[
                format!("link set nk0 mtu {} netns {} name eth0", node.mtu(), pod.name()),
                "link set n-netkit up".into(),
            ]);
            "n-netkit".to_owned()
        })
    }

    /// Data of many sizes and forms arrives as it was, both ways.
    #[track_caller]
    fn is_reached_by(&self, usual: &Pod) {
        let kind = self.kind;
        wait::holds(kind, Duration::from_secs(15), || {
            self.netns.ping(usual.address, "-c 3 -i 0.2 -W 2").0
        });
        let target = usual.target();
        // The machine that has such devices is emulated.
        let spaced = traffic(&self.netns, SPACED, target, "--seconds 2 --interval-us 5000");
        assert!(spaced.is_whole(), "{kind}: {spaced:?}");
        for (load, options) in [
            (MESSAGES, "--from 1 --upto 200"),
            (ECHOES, "--from 1200 --upto 1422"),
            (BULK, "--megabytes 2"),
        ] {
            let result = traffic(&self.netns, load, target, options);
            assert!(result.is_whole(), "{kind}: {load}: {result:?}");
        }
        usual.ping(self.address, "-c 3 -i 0.2 -W 2");
    }

    /// Where the fast path does not carry the pod's packets, status says so:
    /// `ebpf` alone would say that it does.
    fn is_told(&self, before: &Outcomes, node: &Node) -> Result<(), String> {
        let since = node.outcomes().since(before);
        let served = since.get(Outcome::FastEncap) > 100 && since.get(Outcome::FastDecap) > 100;
        let end = Instant::now() + TOLD * patience();
        loop {
            let status = node.status();
            if served || words(&status).contains(self.kind) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("{} is not in {status:?}", self.kind));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

#[test]
fn pods_on_macvlan_ipvlan_and_netkit_are_reached_and_told_of() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    for node in [&mut left, &mut right] {
        node.start(&etcd, &Options::default());
    }
    left.wait_routes(&[&right]);
    right.wait_routes(&[&left]);
    let mut usual = right.pod(2);
    usual.serve();
    let pods = [
        Odd::on_shared_link(&left, "macvlan", "bridge", 2),
        Odd::on_shared_link(&left, "ipvlan", "l2", 3),
        Odd::on_netkit(&left, 4),
    ];
    let told = pods.iter().map(|pod| {
        let before = left.outcomes();
        pod.is_reached_by(&usual);
        pod.is_told(&before, &left)
    });
    let untold: Vec<_> = told.filter_map(Result::err).collect();
    assert!(untold.is_empty(), "{}", untold.join("\n"));
}
