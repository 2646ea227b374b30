//! Roles of links, and what follows from what stands on them.

use std::collections::BTreeSet;

use flannel_ebpf::abi::MAX_VETHS;

use super::*;
use crate::checksum::TunnelChecksum;
use crate::firewall::packet_rules::outer::OuterRule;
use crate::link::{Link, LinkAddress};
use crate::pods::Choice;

const ETH0: u32 = 2;
const FLANNEL: u32 = 3;
const CNI0: u32 = 5;
const VETH0: u32 = 7;
const VETH1: u32 = 8;

fn link(ifindex: u32, name: &str, kind: &str) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        mtu: 1450,
        up: true,
        carrier: true,
        ethernet: true,
        kind: kind.to_owned(),
        ..Link::default()
    }
}

fn pod(ifindex: u32, name: &str, master: Option<u32>) -> Link {
    Link { master, lower: Some(2), lower_netns: Some(0), ..link(ifindex, name, "veth") }
}

fn addressed(link: Link, address: &str) -> Link {
    let address = LinkAddress {
        network: address.parse().unwrap(),
        permanent: true,
        deprecated: false,
        global: true,
    };
    Link { addresses: vec![address], ..link }
}

/// A card, the tunnel's device, a bridge with one pod, and a routed pod.
fn links() -> Vec<Link> {
    vec![
        Link { loopback: true, ethernet: false, ..addressed(link(1, "lo", ""), "127.0.0.1/8") },
        addressed(link(ETH0, "eth0", ""), "192.0.2.1/24"),
        addressed(link(FLANNEL, "flannel.1", "vxlan"), "10.5.1.0/32"),
        addressed(link(CNI0, "cni0", "bridge"), "10.5.1.1/24"),
        pod(VETH0, "veth0", Some(CNI0)),
        pod(VETH1, "veth1", None),
    ]
}

fn scene_of(links: &[Link]) -> Scene {
    Scene::of(
        links,
        Choice {
            underlay: ETH0,
            overlay: Some(FLANNEL),
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.1.0/24".parse().unwrap(),
            uplinks: &BTreeSet::from([45]),
            names: None,
        },
    )
}

fn inlets(links: &[Link]) -> Vec<String> {
    scene_of(links).inlets.into_iter().map(|inlet| inlet.name).collect()
}

/// Nothing stands anywhere, and our programs run as tcx.
fn seen(scene: &Scene) -> Seen {
    let ours = vec![TcxProgram { id: 1, ours: true, another_agents: false }];
    let facts = DeviceFacts {
        traffic: Ok(TrafficControl { root: "noqueue".to_owned(), ..Default::default() }),
        tcx: Ok(Tcx { ingress: ours.clone(), egress: ours }),
    };
    Seen {
        devices: scene.devices().into_iter().map(|ifindex| (ifindex, facts.clone())).collect(),
        xdp: scene.veths.iter().map(|veth| (veth.ifindex, Ok(false))).collect(),
        ..Seen::default()
    }
}

fn filter(priority: u16, ours: bool) -> Filter {
    Filter { chain: 0, priority, kind: "u32".to_owned(), ours }
}

fn foreign(id: u32) -> TcxProgram {
    TcxProgram { id, ours: false, another_agents: false }
}

fn traffic(seen: &mut Seen, ifindex: u32) -> &mut TrafficControl {
    seen.devices.get_mut(&ifindex).unwrap().traffic.as_mut().unwrap()
}

fn tcx(seen: &mut Seen, ifindex: u32) -> &mut Tcx {
    seen.devices.get_mut(&ifindex).unwrap().tcx.as_mut().unwrap()
}

/// What is judged of the bridged pod, the routed pod and the node when
/// something stands somewhere.
fn judged(change: impl FnOnce(&mut Seen)) -> (VethEntry, VethEntry, Keep) {
    let scene = scene_of(&links());
    let mut seen = seen(&scene);
    change(&mut seen);
    let judgement = judge(&scene, &seen, &BTreeSet::new());
    let entry = |at: usize| judgement.veths[at].entry.unwrap();
    let explained = judgement.report.veths.iter().zip(&judgement.veths).all(|(report, veth)| {
        let entry = veth.entry.unwrap();
        (entry.keep_out || entry.inward != Inward::Peer) != report.is_free()
    });
    assert!(explained, "{:?}", judgement.report);
    (entry(0), entry(1), judgement.keep)
}

const FREE: VethEntry = VethEntry { inward: Inward::Peer, keep_out: false };
const KEPT_OUT: VethEntry = VethEntry { inward: Inward::Peer, keep_out: true };
const EGRESS: VethEntry = VethEntry { inward: Inward::Egress, keep_out: false };
const KERNEL: VethEntry = VethEntry { inward: Inward::Kernel, keep_out: false };

#[test]
fn where_nothing_stands_everything_is_carried() {
    assert_eq!(judged(|_| {}), (FREE, FREE, Keep::default()));
}

#[test]
fn what_acts_on_a_pods_packets_behind_our_program_keeps_them() {
    let clsact = judged(|seen| traffic(seen, VETH0).ingress = vec![filter(1, false)]);
    assert_eq!(clsact, (KEPT_OUT, FREE, Keep::default()), "filters run after tcx");
    let behind = judged(|seen| tcx(seen, VETH1).ingress.push(foreign(9)));
    assert_eq!(behind, (FREE, KEPT_OUT, Keep::default()));
    let before = judged(|seen| tcx(seen, VETH1).ingress.insert(0, foreign(9)));
    assert_eq!(before, (FREE, FREE, Keep::default()), "it has acted already");
    let chain =
        NetdevChain { device: "veth1".to_owned(), side: Side::Ingress, chain: "t/c".to_owned() };
    let chain = judged(|seen| seen.chains.push(chain));
    assert_eq!(chain, (FREE, KEPT_OUT, Keep::default()));
}

#[test]
fn among_filters_the_priority_decides() {
    let with = |others: Vec<Filter>| {
        judged(|seen| {
            *tcx(seen, VETH1) = Tcx::default();
            let ours = Filter { kind: "bpf".to_owned(), ..filter(CLSACT_PRIORITY, true) };
            traffic(seen, VETH1).ingress = others.into_iter().chain([ours]).collect();
        })
        .1
    };
    assert_eq!(with(vec![]), FREE);
    assert_eq!(with(vec![filter(1, false)]), FREE);
    assert_eq!(with(vec![filter(CLSACT_PRIORITY + 1, false)]), KEPT_OUT);
    let jumped_to = Filter { chain: 7, ..filter(1, false) };
    assert_eq!(with(vec![jumped_to.clone()]), FREE, "only an earlier filter leads there");
    assert_eq!(with(vec![jumped_to, filter(CLSACT_PRIORITY + 1, false)]), KEPT_OUT);
    // As clsact filters, ours run after all of tcx.
    let before = judged(|seen| {
        *tcx(seen, VETH1) = Tcx { ingress: vec![foreign(9)], egress: Vec::new() };
        traffic(seen, VETH1).ingress = vec![filter(CLSACT_PRIORITY, true)];
    });
    assert_eq!(before.1, FREE);
}

#[test]
fn what_acts_on_the_veths_egress_gets_its_packets_there() {
    let qdisc = judged(|seen| traffic(seen, VETH0).root = "tbf".to_owned());
    assert_eq!(qdisc, (EGRESS, FREE, Keep::default()));
    let filter = judged(|seen| traffic(seen, VETH0).egress = vec![filter(1, false)]);
    assert_eq!(filter, (EGRESS, FREE, Keep::default()));
    let program = judged(|seen| tcx(seen, VETH1).egress.insert(0, foreign(9)));
    assert_eq!(program, (FREE, EGRESS, Keep::default()), "whichever is first");
    let xdp = judged(|seen| drop(seen.xdp.insert(VETH0, Ok(true))));
    assert_eq!(xdp, (EGRESS, FREE, Keep::default()));
    let unknown = judged(|seen| drop(seen.xdp.insert(VETH0, Err("EPERM".to_owned()))));
    assert_eq!(unknown, (EGRESS, FREE, Keep::default()));
    for queueless in ["noop", ""] {
        let down = judged(|seen| traffic(seen, VETH0).root = queueless.to_owned());
        assert_eq!(down, (FREE, FREE, Keep::default()));
    }
}

#[test]
fn what_stands_on_a_bridge_gets_all_of_its_ports_packets() {
    let qdisc = judged(|seen| traffic(seen, CNI0).root = "tbf".to_owned());
    assert_eq!(qdisc, (KERNEL, FREE, Keep::default()));
    let egress = judged(|seen| traffic(seen, CNI0).egress = vec![filter(1, false)]);
    assert_eq!(egress, (KERNEL, FREE, Keep::default()));
    let ingress = judged(|seen| tcx(seen, CNI0).ingress.insert(0, foreign(9)));
    assert_eq!(ingress, (KEPT_OUT, FREE, Keep::default()));
    let both = judged(|seen| {
        traffic(seen, CNI0).root = "tbf".to_owned();
        traffic(seen, VETH0).root = "tbf".to_owned();
    });
    assert_eq!(both.0, KERNEL, "the bridge comes first");
}

#[test]
fn what_stands_on_the_tunnels_device_keeps_its_way() {
    let out = Keep { out: true, ..Keep::default() };
    let inward = Keep { inward: true, ..Keep::default() };
    let qdisc = judged(|seen| traffic(seen, FLANNEL).root = "fq".to_owned());
    assert_eq!(qdisc, (FREE, FREE, out));
    let egress = judged(|seen| tcx(seen, FLANNEL).egress.push(foreign(9)));
    assert_eq!(egress, (FREE, FREE, out));
    let ingress = judged(|seen| traffic(seen, FLANNEL).ingress = vec![filter(1, false)]);
    assert_eq!(ingress, (FREE, FREE, inward));
}

#[test]
fn of_the_underlay_only_what_runs_behind_our_program_counts() {
    let both = Keep { inward: true, tunnel: true, ..Keep::default() };
    let ingress = judged(|seen| traffic(seen, ETH0).ingress = vec![filter(1, false)]);
    assert_eq!(ingress, (FREE, FREE, both));
    let behind = judged(|seen| tcx(seen, ETH0).ingress.push(foreign(9)));
    assert_eq!(behind, (FREE, FREE, both));
    let passed = judged(|seen| {
        tcx(seen, ETH0).ingress.insert(0, foreign(9));
        tcx(seen, ETH0).egress.push(foreign(10));
        traffic(seen, ETH0).egress = vec![filter(1, false)];
        traffic(seen, ETH0).root = "htb".to_owned();
    });
    assert_eq!(passed, (FREE, FREE, Keep::default()), "packets leave through it");
}

#[test]
fn what_was_not_looked_at_may_be_anything() {
    let kept = VethEntry { inward: Inward::Egress, keep_out: true };
    let veth = judged(|seen| {
        seen.devices.get_mut(&VETH1).unwrap().traffic = Err("not looked at yet".to_owned());
    });
    assert_eq!(veth, (FREE, kept, Keep::default()));
    let bridge = judged(|seen| {
        seen.devices.get_mut(&CNI0).unwrap().traffic = Err("EPERM".to_owned());
    });
    assert_eq!(bridge.0, VethEntry { inward: Inward::Kernel, keep_out: true });
    let programs = judged(|seen| {
        seen.devices.get_mut(&FLANNEL).unwrap().tcx = Err("EPERM".to_owned());
    });
    assert_eq!(programs.2, Keep { out: true, inward: true, ..Keep::default() });
}

#[test]
fn a_veth_has_no_place_before_it_was_looked_at() {
    let scene = scene_of(&links());
    let mut seen = seen(&scene);
    seen.devices.remove(&VETH1);
    let judgement = judge(&scene, &seen, &BTreeSet::new());
    let told: Vec<u32> = judgement.veths.iter().map(|veth| veth.ifindex).collect();
    assert_eq!((told, judgement.report.veths.len()), (vec![VETH0], 1));
}

#[test]
fn rules_by_mark_and_peers_without_a_place_are_told() {
    let marks = judged(|seen| seen.mark_rules = true).2;
    assert_eq!(marks, Keep { marked_routes: true, ..Keep::default() });
    let rule = |marked| OuterRule {
        marked,
        chain: "ip filter OUTPUT".to_owned(),
        rule: "-A OUTPUT -j DROP".to_owned(),
        does: "DROP".to_owned(),
    };
    let some = judged(|seen| seen.outer_rules = vec![rule(true)]).2;
    assert_eq!(some, Keep { marked_routes: true, ..Keep::default() });
    let all = judged(|seen| seen.outer_rules = vec![rule(false)]).2;
    assert_eq!(all, Keep { out: true, ..Keep::default() });
    let peers = judged(|seen| seen.peers_left_out = 3).2;
    assert_eq!(peers, Keep { more_peers: true, ..Keep::default() });
}

#[test]
fn devices_that_stand_on_a_bridge_or_hold_it_are_on_the_way() {
    let mut links = links();
    links.push(Link { lower: Some(CNI0), ..link(20, "cni0.5", "vlan") });
    links.push(link(21, "blue", "vrf"));
    links.iter_mut().find(|link| link.ifindex == CNI0).unwrap().master = Some(21);
    let scene = scene_of(&links);
    let mut stack = scene.stacks[&CNI0].clone();
    stack.sort_unstable();
    assert_eq!(stack, [CNI0, 20, 21]);
    assert_eq!(inlets(&links), ["eth0"], "nor do packets of peers come by them");
    for above in [20, 21] {
        let mut seen = seen(&scene);
        traffic(&mut seen, above).root = "tbf".to_owned();
        let judgement = judge(&scene, &seen, &BTreeSet::new());
        assert_eq!(judgement.veths[0].entry, Some(KERNEL));
        assert_eq!(judgement.veths[1].entry, Some(FREE));
    }
}

#[test]
fn tunnel_packets_may_come_by_every_device_that_can_receive() {
    let port =
        |ifindex, name: &str, master| Link { master: Some(master), ..link(ifindex, name, "") };
    let mut all = links();
    all.extend([
        link(30, "eth1", ""),
        Link { up: false, ..link(31, "eth2", "") },
        Link { ethernet: false, ..link(32, "wg0", "wireguard") },
        addressed(link(33, "bond0", "bond"), "198.51.100.1/24"),
        port(34, "eth3", 33),
        link(35, "red", "vrf"),
        port(36, "eth4", 35),
        addressed(Link { master: Some(99), ..link(37, "br9", "bridge") }, "203.0.113.1/24"),
        link(38, "dummy0", "dummy"),
        link(39, "ifb0", "ifb"),
        link(40, "vnet0", "tun"),
        addressed(link(41, "tap-vpn", "tun"), "203.0.113.9/24"),
        Link { lower_netns: None, ..link(42, "stub", "veth") },
        link(43, "docker0", "bridge"),
        addressed(pod(44, "card", None), "198.51.100.7/24"),
        pod(45, "uplink", None),
        addressed(link(46, "cni1", "bridge"), "10.5.1.129/25"),
        addressed(link(47, "eth5", ""), "10.5.9.7/24"),
    ]);
    let found = inlets(&all);
    assert_eq!(
        found,
        [
            "eth0", "eth1", "bond0", "red", "eth4", "br9", "tap-vpn", "stub", "docker0", "card",
            "uplink", "eth5"
        ]
    );
    // One of them with somebody's filter is enough to keep what comes in.
    let scene = scene_of(&all);
    let mut seen = seen(&scene);
    traffic(&mut seen, 30).ingress = vec![filter(1, false)];
    let judgement = judge(&scene, &seen, &BTreeSet::new());
    assert_eq!(judgement.keep, Keep { inward: true, tunnel: true, ..Keep::default() });
    assert_eq!(judgement.report.kept[0].why[0].device, "eth1");
}

#[test]
fn a_bridge_with_pods_is_no_inlet_and_the_underlay_always_is_the_first() {
    let mut all = links();
    all.insert(0, link(90, "eth9", ""));
    assert_eq!(inlets(&all), ["eth0", "eth9"]);
    all.iter_mut().find(|link| link.ifindex == ETH0).unwrap().up = false;
    assert_eq!(inlets(&all), ["eth0", "eth9"], "it comes back");
}

#[test]
fn too_many_veths_lose_their_entry_and_those_that_are_served_keep_it() {
    let mut all = links();
    all.truncate(4);
    let count = MAX_VETHS + 10;
    all.extend((0..count).map(|number| pod(1000 + number, &format!("veth{number}"), None)));
    let scene = scene_of(&all);
    let seen = seen(&scene);
    let first = judge(&scene, &seen, &BTreeSet::new());
    assert_eq!(first.veths.len(), count as usize, "their hooks guard, too");
    assert_eq!(first.served().len(), MAX_VETHS as usize);
    assert_eq!(first.served().last(), Some(&(1000 + MAX_VETHS - 1)));
    let left: Vec<_> = first.report.veths.iter().filter(|veth| !veth.is_free()).collect();
    assert_eq!(left.len(), 10);
    assert_eq!(left[0].why[0].what, Obstacle::TooManyVeths { limit: MAX_VETHS });
    // A veth with a lower index takes nobody's place.
    all.push(pod(900, "late", None));
    let scene = scene_of(&all);
    let mut seen = seen.clone();
    let facts = seen.devices[&1000].clone();
    seen.devices.insert(900, facts);
    let second = judge(&scene, &seen, &first.served());
    assert_eq!(second.served(), first.served());
}

#[test]
fn pods_without_a_veth_are_named() {
    let mut all = links();
    all.push(link(50, "nk0", "netkit"));
    let scene = scene_of(&all);
    let mut seen = seen(&scene);
    let ipvlan = Stacked { kind: "ipvlan".to_owned(), lower: ETH0 };
    seen.stacked.insert(4, vec![ipvlan.clone()]);
    seen.stacked.insert(9, vec![ipvlan]);
    let told: Vec<String> = judge(&scene, &seen, &BTreeSet::new())
        .report
        .not_served
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(told, ["not served: netkit on nk0", "not served: ipvlan on eth0 (2 pods)"]);
}

#[test]
fn checksums_of_the_kernel_keep_what_leaves_through_the_tunnel() {
    let scene = scene_of(&links());
    let mut seen = seen(&scene);
    seen.checksum = TunnelChecksum::Kernel;
    let judged = judge(&scene, &seen, &BTreeSet::new());
    assert_eq!(judged.keep, Keep { out: true, ..Keep::default() });
    assert_eq!(judged.report.kept[0].why[0].what, Obstacle::KernelChecksum);
}

#[test]
fn a_report_survives_its_json() {
    let scene = scene_of(&links());
    let mut seen = seen(&scene);
    traffic(&mut seen, VETH0).root = "tbf".to_owned();
    traffic(&mut seen, FLANNEL).egress = vec![filter(5, false)];
    tcx(&mut seen, VETH1).ingress.push(foreign(9));
    let report = judge(&scene, &seen, &BTreeSet::new()).report;
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["kept"][0]["way"], "KEEP_OUT");
    assert_eq!(json["veths"][0]["inward"], "egress");
    assert_eq!(json["veths"][0]["why"][0]["what"], "root_qdisc");
    assert_eq!(json["veths"][0]["why"][0]["qdisc"], "tbf");
    assert_eq!(json["veths"][1]["outward"], "kept");
    let why: Vec<String> =
        report.veths.iter().flat_map(|veth| &veth.why).map(|why| why.to_string()).collect();
    assert_eq!(why, ["veth0: root qdisc tbf", "veth1: tcx program 9 on ingress"]);
    assert_eq!(serde_json::from_value::<EnvelopeReport>(json).unwrap(), report);
}

#[test]
fn xdp_on_a_bridge_gets_what_its_ports_send() {
    let on = |runs: Result<bool, &str>| {
        let runs = runs.map_err(str::to_owned);
        judged(|seen| drop(seen.xdp_above.insert(CNI0, runs)))
    };
    assert_eq!(on(Ok(false)), (FREE, FREE, Keep::default()));
    assert_eq!(on(Ok(true)), (KEPT_OUT, FREE, Keep::default()));
    assert_eq!(on(Err("EPERM")), (KEPT_OUT, FREE, Keep::default()));
}
