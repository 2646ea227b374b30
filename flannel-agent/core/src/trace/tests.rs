//! Each fault is seen at its hop, and says what carries the packet.

use super::facts::*;
use super::*;
use crate::check::facts::Unknown;
use crate::firewall::packet_rules::fate::{Culprit, Fate};
use crate::firewall::packet_rules::ruleset::Family;
use crate::forwarding::{Inbound, Origin, Unforwarded};
use crate::mac::MacAddr;
use crate::status::{FlowDirection, FlowPath, FlowProto, FlowStatus, NotFast};

const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

fn device(name: &str, mtu: u32, programs: &[&str]) -> TracedDevice {
    let programs = programs.iter().map(ToString::to_string).collect();
    TracedDevice { name: name.into(), mtu, up: true, programs }
}

fn pod(address: [u8; 4]) -> Pod {
    Pod {
        address: address.into(),
        device: Some("cni0".into()),
        mac: Some(MAC),
        veth: Some(device("veth7", 1450, &["from_pod", "to_pod"])),
    }
}

fn flow(why: Option<NotFast>) -> FlowStatus {
    FlowStatus {
        direction: FlowDirection::Out,
        proto: FlowProto::Tcp,
        source: "10.244.1.2:40000".parse().unwrap(),
        destination: "10.244.2.2:80".parse().unwrap(),
        translated: None,
        peer: None,
        peer_ip: None,
        device: 7,
        path: if why.is_some() { FlowPath::Kernel } else { FlowPath::Fast },
        why,
        confirmed_ms_ago: None,
    }
}

fn well() -> TraceFacts {
    let route = |device: &str, gateway| Some(TracedRoute { device: device.into(), gateway });
    TraceFacts {
        question: Question {
            source: [10, 244, 1, 2].into(),
            destination: [10, 244, 2, 2].into(),
            protocol: Protocol::Tcp,
        },
        datapath: Some("ebpf".into()),
        source: Some(pod([10, 244, 1, 2])),
        destination: None,
        peer: Some(FarNode {
            public_ip: PEER,
            vtep_mac: Some(MAC),
            route: route("flannel.1", Some([10, 244, 2, 0].into())),
            neighbour: Some(MAC),
            fdb: Some(PEER),
            map: Ok(Some((PEER, MAC))),
            next_hop: route("eth0", None),
            next_mac: Some(MAC),
        }),
        overlay: Some(device("flannel.1", 1450, &["to_overlay", "from_overlay"])),
        underlay: Some(device("eth0", 1500, &["from_underlay"])),
        unforwarded: Ok(vec![]),
        fates: [Ok(Fate::Passes), Ok(Fate::Passes)],
        tunnel: [Ok(Fate::Passes), Ok(Fate::Passes)],
        kept: [Ok(vec![]), Ok(vec![])],
        flows: [Ok(vec![]), Ok(vec![])],
    }
}

/// Outcomes there and back, and the reasons of the first.
fn with(fault: impl FnOnce(&mut TraceFacts)) -> (Vec<Carrier>, String) {
    let mut facts = well();
    fault(&mut facts);
    let trace = trace(&facts);
    let why = trace.directions.first().map(|way| way.why.join("; ")).unwrap_or_default();
    (trace.directions.iter().map(|way| way.outcome).collect(), why)
}

fn peer(change: fn(&mut FarNode)) -> impl FnOnce(&mut TraceFacts) {
    move |facts| facts.peer.iter_mut().for_each(change)
}

#[test]
fn a_well_way_is_fast_there_and_back() {
    let (outcomes, why) = with(|_| ());
    assert_eq!(outcomes, [Carrier::Fast, Carrier::Fast], "{why}");
    let trace = trace(&well());
    let steps: Vec<Step> = trace.directions[0].hops.iter().map(|hop| hop.step).collect();
    use Step::*;
    assert_eq!(
        steps,
        [Veth, Hook, Rules, FastPath, Route, Neighbour, Fdb, Map, Rules, Flow, Mtu, Underlay]
    );
    assert!(trace.daemon);
    let back = &trace.directions[1];
    assert_eq!(back.source, Ipv4Addr::new(10, 244, 2, 2));
    assert!(back.hops[0].found.contains("from_underlay on eth0"), "{back:?}");
}

#[test]
fn what_loses_a_packet_is_named() {
    let lost = |fault: fn(&mut FarNode), words: &str| {
        let (outcomes, why) = with(peer(fault));
        assert_eq!(outcomes[0], Carrier::Lost, "{words}");
        assert!(why.contains(words), "{words} in {why}");
    };
    lost(|peer| peer.route = None, "no route to 10.244.2.2");
    lost(|peer| peer.neighbour = None, "no MAC for the gateway");
    lost(|peer| peer.neighbour = Some(MacAddr([2; 6])), "the peer's VTEP 02:00:00:00:00:07");
    lost(|peer| peer.fdb = None, "no entry for that MAC");
    lost(|peer| peer.fdb = Some([192, 0, 2, 13].into()), "that MAC is at 192.0.2.13");
    lost(|peer| peer.map = Ok(Some(([192, 0, 2, 13].into(), MAC))), "have 192.0.2.13");
    lost(|peer| peer.next_hop = None, "no route to 192.0.2.12");
    let (outcomes, why) = with(|facts| {
        let underlay = facts.underlay.clone();
        facts.source.as_mut().expect("a pod").veth = underlay;
    });
    assert_eq!(outcomes, [Carrier::Lost; 2], "{why}");
    assert!(why.contains("no pod has 10.244.1.2: the route to it is by eth0"), "{why}");
    let culprit = Culprit {
        family: Family::Ip,
        table: "filter".into(),
        chain: "FORWARD".into(),
        handle: None,
        text: "policy drop".into(),
    };
    let (outcomes, why) = with(|facts| facts.fates[0] = Ok(Fate::Dropped(culprit)));
    assert_eq!(outcomes, [Carrier::Lost, Carrier::Fast], "the answer would pass: {why}");
    assert!(why.contains("ip filter FORWARD (policy drop)"), "{why}");
}

#[test]
fn what_keeps_it_off_the_fast_path_is_named() {
    let kernel = |fault: fn(&mut TraceFacts), words: &str| {
        let (outcomes, why) = with(fault);
        assert_eq!(outcomes[0], Carrier::Kernel, "{words}");
        assert!(why.contains(words), "{words} in {why}");
    };
    kernel(|facts| facts.question.protocol = Protocol::Icmp, "ICMP");
    kernel(|facts| facts.kept[0] = Ok(vec!["a limit".into()]), "a limit");
    kernel(
        |facts| {
            facts.datapath = Some("kernel".into());
            facts.source.as_mut().unwrap().veth.as_mut().unwrap().programs.clear();
        },
        "from_pod is not on veth7 (the data path is kernel)",
    );
    kernel(|facts| facts.peer.as_mut().unwrap().map = Ok(None), "do not know the peer");
    let (outcomes, why) = with(|facts| facts.flows[0] = Ok(vec![flow(Some(NotFast::Exempt))]));
    assert_eq!(outcomes, [Carrier::Kernel, Carrier::Fast], "{why}");
    assert!(why.contains("1 in the table, 0 fast now; 1: a rule of the node"), "{why}");
    for flows in [[None, Some(NotFast::Exempt)], [Some(NotFast::Expired); 2]] {
        let (outcomes, why) = with(|facts| facts.flows[0] = Ok(flows.map(flow).into()));
        assert_eq!(outcomes, [Carrier::Fast; 2], "{why}");
    }
}

#[test]
fn pods_of_one_node_and_addresses_elsewhere() {
    let (outcomes, why) = with(|facts| {
        facts.destination = Some(pod([10, 244, 1, 3]));
        facts.peer = None;
    });
    assert_eq!(outcomes, [Carrier::Elsewhere; 2], "both directions: {why}");
    assert!(why.ends_with("both pods are on this node"), "said once: {why}");
    let (outcomes, why) = with(|facts| facts.peer = None);
    assert_eq!(outcomes[0], Carrier::Elsewhere, "{why}");
    assert!(why.ends_with("no peer has that address"), "said once: {why}");
    let by = |device: &str, gateway| Some(TracedRoute { device: device.into(), gateway });
    for (route, outcome) in [
        (by("wg0", None), Carrier::Elsewhere),
        (by("flannel.7", Some([10, 244, 2, 0].into())), Carrier::Elsewhere),
        (by("eth0", Some(PEER)), Carrier::Fast),
        (by("eth1", Some(PEER)), Carrier::Fast),
    ] {
        let device = route.as_ref().unwrap().device.clone();
        let (outcomes, why) = with(|facts| facts.peer.as_mut().unwrap().route = route);
        assert_eq!(outcomes, [outcome, Carrier::Fast], "by {device}: {why}");
        let named = why.contains(&format!("by {device}: neither the tunnel nor the way"));
        assert_eq!(named, outcome == Carrier::Elsewhere, "{why}");
    }
    let (outcomes, _) = with(|facts| facts.source = None);
    assert_eq!(outcomes, [], "neither end is here");
    let (outcomes, why) = with(|facts| {
        let veth = facts.source.as_mut().unwrap().veth.as_mut().unwrap();
        veth.up = false;
    });
    assert_eq!((outcomes[0], why.contains("veth7 is down")), (Carrier::Lost, true));
    let (outcomes, _) = with(|facts| facts.kept[0] = Err(Unknown::because("no daemon")));
    assert_eq!(outcomes[0], Carrier::Fast, "as far as is known");
}

#[test]
fn a_device_that_forwards_nothing_loses_what_comes_in_by_it() {
    let off = |device: Option<(&str, Origin)>| {
        let device = device.map(|(name, origin)| (name.to_owned(), origin));
        with(|facts| facts.unforwarded = Ok(vec![Unforwarded { device }]))
    };
    use Carrier::{Fast, Lost};
    let (outcomes, why) = off(Some(("cni0", Origin::Pods)));
    assert_eq!(outcomes, [Lost, Fast]);
    assert!(why.starts_with("net.ipv4.conf.cni0.forwarding is 0"), "{why}");
    assert_eq!(off(Some(("flannel.1", Origin::Tunnel))).0, [Fast, Lost]);
    assert_eq!(
        off(Some(("eth0", Origin::Underlay(Inbound::Others)))).0,
        [Fast, Fast],
        "it comes by the tunnel"
    );
    assert_eq!(off(None).0, [Lost, Lost]);
}
