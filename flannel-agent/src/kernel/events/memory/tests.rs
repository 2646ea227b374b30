//! Messages as the kernel sends them, and what they change.

use flannel_core::observed::ObservedRoute;

use super::*;
use crate::kernel::netconf::{NETCONFA_FORWARDING, NETCONFA_IFINDEX, NETCONFA_RP_FILTER};

const RTA_GATEWAY: u16 = 5;

const BRIDGE: u32 = 5;
const PORT_1: u32 = 7;
const PORT_2: u32 = 8;
const WINDOW: Duration = Duration::from_secs(5);
const MAC_1: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MAC_2: [u8; 6] = [2, 0, 0, 0, 0, 2];

struct Bench {
    memory: Memory,
    scope: Scope,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let scope = Scope::default();
        scope.set_network("10.5.0.0/16".parse().unwrap(), WINDOW);
        scope.set_peers(["192.0.2.12".parse().unwrap()].into_iter());
        scope.set_devices([2, 3, BRIDGE, PORT_1, PORT_2].into());
        Self { memory: Memory::default(), scope, now: Instant::now() }
    }

    fn take(&mut self, kind: u16, body: &[u8]) -> Vec<KernelEvent> {
        let message = raw::request(kind, 0, 0, body);
        self.memory.take(&message, &self.scope, self.now).into_iter().flatten().collect()
    }

    /// Whether a message ends decisions.
    fn decides(&mut self, kind: u16, body: &[u8]) -> bool {
        let ends = |event: &KernelEvent| {
            matches!(event, KernelEvent::Decision | KernelEvent::OverlayRoute)
        };
        self.take(kind, body).iter().any(ends)
    }
}

fn with(mut header: Vec<u8>, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    attributes.iter().for_each(|(kind, value)| raw::put(&mut header, *kind, value));
    header
}

fn neighbour(ifindex: u32, state: u16, attributes: &[(u16, &[u8])], family: i32) -> Vec<u8> {
    let mut header = vec![0; NDMSG_LEN];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    with(header, attributes)
}

fn arp(ifindex: u32, state: u16, mac: [u8; 6]) -> Vec<u8> {
    let attributes: [(u16, &[u8]); 2] = [(NDA_DST, &[10, 5, 1, 2]), (NDA_LLADDR, &mac)];
    neighbour(ifindex, state, &attributes, libc::AF_INET)
}

fn station(port: u32, mac: [u8; 6]) -> Vec<u8> {
    let bridge = BRIDGE.to_ne_bytes();
    neighbour(port, 2, &[(NDA_LLADDR, &mac), (NDA_MASTER, &bridge)], libc::AF_BRIDGE)
}

const REACHABLE: u16 = 0x02;
const STALE: u16 = 0x04;
const FAILED: u16 = 0x20;

#[test]
fn a_neighbour_decides_only_by_another_mac() {
    let mut bench = Bench::new();
    assert!(!bench.decides(RTM_NEWNEIGH, &arp(BRIDGE, REACHABLE, MAC_1)), "new");
    assert!(!bench.decides(RTM_NEWNEIGH, &arp(BRIDGE, STALE, MAC_1)), "state");
    assert!(!bench.decides(RTM_NEWNEIGH, &arp(BRIDGE, FAILED, MAC_2)), "no MAC is used");
    assert!(bench.decides(RTM_NEWNEIGH, &arp(BRIDGE, STALE, MAC_2)));
    assert!(!bench.decides(RTM_NEWNEIGH, &arp(99, REACHABLE, MAC_1)));
    assert!(!bench.decides(RTM_NEWNEIGH, &arp(99, REACHABLE, MAC_2)), "nobody's bridge");
}

#[test]
fn what_the_kernel_forgot_counts_as_long_as_it_may_be_repeated() {
    let mut bench = Bench::new();
    bench.take(RTM_NEWNEIGH, &arp(BRIDGE, REACHABLE, MAC_1));
    assert!(!bench.decides(RTM_DELNEIGH, &arp(BRIDGE, FAILED, MAC_1)));
    bench.now += WINDOW;
    assert!(bench.decides(RTM_NEWNEIGH, &arp(BRIDGE, REACHABLE, MAC_2)));
    bench.take(RTM_DELNEIGH, &arp(BRIDGE, FAILED, MAC_2));
    bench.now += WINDOW + Duration::from_millis(1);
    assert!(!bench.decides(RTM_NEWNEIGH, &arp(BRIDGE, REACHABLE, MAC_1)), "another pod's now");
}

#[test]
fn a_station_decides_only_by_another_port() {
    let mut bench = Bench::new();
    assert!(!bench.decides(RTM_NEWNEIGH, &station(PORT_1, MAC_1)), "new");
    assert!(!bench.decides(RTM_NEWNEIGH, &station(PORT_1, MAC_1)), "refreshed");
    assert!(!bench.decides(RTM_NEWNEIGH, &station(PORT_2, MAC_2)), "another one");
    assert!(bench.decides(RTM_NEWNEIGH, &station(PORT_2, MAC_1)));
    assert!(bench.decides(RTM_NEWNEIGH, &station(PORT_1, MAC_1)), "and back");
    bench.take(RTM_DELNEIGH, &station(PORT_1, MAC_1));
    assert!(bench.decides(RTM_NEWNEIGH, &station(PORT_2, MAC_1)), "a container made anew");
}

#[test]
fn a_table_that_overflows_is_emptied_and_says_so() {
    let mut places = Places::<u32, u32>::default();
    let now = Instant::now();
    for key in 0..PLACES as u32 {
        assert!(!places.moved(key, 1, now, WINDOW));
    }
    assert!(!places.moved(0, 1, now, WINDOW), "known ones need no room");
    assert!(places.moved(u32::MAX, 1, now, WINDOW));
    assert_eq!(places.0.len(), 1);
}

fn port(ifindex: u32, state: u8, settings: &[(u16, u8)], vlans: &[u8]) -> Vec<u8> {
    let mut info = Vec::new();
    raw::put(&mut info, IFLA_BRPORT_STATE, &[state]);
    // A timer.
    raw::put(&mut info, 21, &[settings.len() as u8; 8]);
    settings.iter().for_each(|(kind, value)| raw::put(&mut info, *kind, &[*value]));
    let mut header = vec![0; IFINFO_LEN];
    header[0] = libc::AF_BRIDGE as u8;
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let bridge = BRIDGE.to_ne_bytes();
    with(header, &[(IFLA_MASTER, &bridge), (IFLA_PROTINFO | 0x8000, &info), (IFLA_AF_SPEC, vlans)])
}

#[test]
fn a_bridge_port_decides_by_its_settings() {
    const HAIRPIN: u16 = 4;
    const ISOLATED: u16 = 33;
    let mut bench = Bench::new();
    assert!(!bench.decides(RTM_NEWLINK, &port(PORT_1, 0, &[(HAIRPIN, 0)], &[1])), "new");
    assert!(!bench.decides(RTM_NEWLINK, &port(PORT_1, 3, &[(HAIRPIN, 0)], &[1])), "it forwards");
    assert!(bench.decides(RTM_NEWLINK, &port(PORT_1, 3, &[(HAIRPIN, 1)], &[1])));
    assert!(bench.decides(RTM_NEWLINK, &port(PORT_1, 3, &[(HAIRPIN, 1), (ISOLATED, 1)], &[1])));
    assert!(bench.decides(RTM_NEWLINK, &port(PORT_1, 3, &[(HAIRPIN, 1), (ISOLATED, 1)], &[2])));
    assert!(bench.decides(RTM_NEWLINK, &port(PORT_1, 4, &[(HAIRPIN, 1), (ISOLATED, 1)], &[2])));
    // A port of a bridge of pods, though it is no pod's.
    assert!(!bench.decides(RTM_NEWLINK, &port(99, 3, &[], &[])));
    assert!(bench.decides(RTM_NEWLINK, &port(99, 4, &[], &[])));
}

fn route(destination: [u8; 4], prefix: u8, table: u8) -> Vec<u8> {
    let mut header = vec![0; RTMSG_LEN];
    header[0] = libc::AF_INET as u8;
    header[1] = prefix;
    header[4] = table;
    // RTN_UNICAST.
    header[7] = 1;
    let output = 9_u32.to_ne_bytes();
    let attributes: [(u16, &[u8]); 2] = [(RTA_DST, &destination), (RTA_OIF, &output)];
    with(header, if prefix == 0 { &attributes[1..] } else { &attributes })
}

#[test]
fn routes_decide_where_they_lead_to_pods_or_peers() {
    let mut bench = Bench::new();
    let overlay = KernelEvent::OverlayRoute;
    for (destination, prefix, decision) in [
        ([10, 5, 7, 0], 24, overlay),
        ([192, 0, 2, 0], 24, KernelEvent::Decision),
        ([10, 0, 0, 0], 8, overlay),
        ([0; 4], 0, overlay),
    ] {
        let events = bench.take(RTM_NEWROUTE, &route(destination, prefix, 100));
        assert_eq!(events, [KernelEvent::Route { ifindex: 9 }, decision]);
    }
    let other = bench.take(RTM_DELROUTE, &route([198, 51, 100, 0], 24, 254));
    assert_eq!(other, [KernelEvent::Route { ifindex: 9 }]);
    // The local table goes before all others.
    let local = |destination| route(destination, 32, RT_TABLE_LOCAL);
    assert!(bench.decides(RTM_NEWROUTE, &local([10, 5, 7, 1])));
    assert!(bench.decides(RTM_DELROUTE, &local([192, 0, 2, 12])), "a peer's");
    assert_eq!(bench.take(RTM_NEWROUTE, &local([198, 51, 100, 1])), []);
}

#[test]
fn a_route_that_takes_anothers_place_says_nothing_of_where_that_led() {
    let mut bench = Bench::new();
    let mut replaced = |kind, destination| {
        let message = raw::request(kind, NLM_F_REPLACE, 0, &route(destination, 24, 254));
        bench.memory.take(&message, &bench.scope, bench.now)[0]
    };
    let at = |ifindex| Some(KernelEvent::Route { ifindex });
    assert_eq!(replaced(RTM_NEWROUTE, [10, 5, 7, 0]), at(0), "perhaps through our device");
    assert_eq!(replaced(RTM_NEWROUTE, [198, 51, 100, 0]), at(9));
    assert_eq!(replaced(RTM_DELROUTE, [10, 5, 7, 0]), at(9));
}

#[test]
fn the_local_table_changes_by_people_too() {
    let mut bench = Bench::new();
    let mut told = |kind, flags, destination, of| {
        let mut body = route(destination, 32, RT_TABLE_LOCAL);
        body[7] = of;
        let message = raw::request(kind, flags, 0, &body);
        bench.memory.take(&message, &bench.scope, bench.now)
    };
    const BLACKHOLE: u8 = 6;
    const BROADCAST: u8 = 3;
    let (ours, underlay) = ([10, 5, 7, 0], [192, 0, 2, 11]);
    let look = [Some(KernelEvent::Route { ifindex: 0 }), Some(KernelEvent::OverlayRoute)];
    let address = [Some(KernelEvent::Address { ifindex: 9 }), None];
    for of in [RTN_LOCAL, BLACKHOLE] {
        // Put before ours it wins, too.
        for flags in [NLM_F_REPLACE, NLM_F_CREATE] {
            assert_eq!(told(RTM_NEWROUTE, flags, ours, of), look);
            assert_eq!(told(RTM_NEWROUTE, flags, underlay, of), address);
        }
    }
    for flags in [NLM_F_CREATE | NLM_F_EXCL, NLM_F_CREATE | NLM_F_APPEND] {
        let none = told(RTM_NEWROUTE, flags, ours, BLACKHOLE);
        assert_eq!(none, [None, look[1]], "the first one, or behind ours");
    }
    assert_eq!(told(RTM_NEWROUTE, 0, underlay, RTN_LOCAL), address, "it is back");
    assert_eq!(told(RTM_DELROUTE, 0, underlay, RTN_LOCAL), address);
    assert_eq!(told(RTM_NEWROUTE, 0, underlay, BROADCAST), [None, None]);
}

fn new_address(ifindex: u32, address: [u8; 4]) -> Vec<u8> {
    let mut header = vec![0; IFADDR_LEN];
    header[0] = libc::AF_INET as u8;
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    with(header, &[(IFA_LOCAL, &address)])
}

#[test]
fn addresses_decide_on_devices_of_the_overlay_or_if_they_are_a_pods_or_peers() {
    let mut bench = Bench::new();
    assert!(bench.decides(RTM_NEWADDR, &new_address(2, [198, 51, 100, 1])));
    assert!(bench.decides(RTM_DELADDR, &new_address(99, [10, 5, 9, 9])));
    assert!(bench.decides(RTM_NEWADDR, &new_address(99, [192, 0, 2, 12])));
    let unrelated = bench.take(RTM_NEWADDR, &new_address(99, [192, 0, 2, 13]));
    assert_eq!(unrelated, [KernelEvent::Address { ifindex: 99 }]);
}

#[test]
fn switches_decide_when_they_are_turned_and_not_when_a_device_comes() {
    let netconf = |ifindex: i32, kinds: &[u16]| {
        let mut body = vec![libc::AF_INET as u8, 0, 0, 0];
        raw::put(&mut body, NETCONFA_IFINDEX, &ifindex.to_ne_bytes());
        kinds.iter().for_each(|kind| raw::put(&mut body, *kind, &[0; 4]));
        body
    };
    let mut bench = Bench::new();
    let all = [NETCONFA_FORWARDING, NETCONFA_RP_FILTER, 4, 5, 6];
    assert!(!bench.decides(RTM_NEWNETCONF, &netconf(7, &all)));
    let turned = bench.take(RTM_NEWNETCONF, &netconf(7, &[NETCONFA_FORWARDING]));
    assert_eq!(turned, [KernelEvent::Switch, KernelEvent::Decision]);
    assert!(bench.decides(RTM_NEWNETCONF, &netconf(-1, &[NETCONFA_RP_FILTER])));
    assert!(!bench.decides(RTM_NEWNETCONF, &netconf(-2, &[NETCONFA_FORWARDING])));
}

#[test]
fn a_shared_filter_block_is_any_devices() {
    let mut bench = Bench::new();
    let tc = |ifindex: u32| {
        let mut body = vec![0; 20];
        body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        body
    };
    assert_eq!(bench.take(RTM_NEWQDISC, &tc(7)), [KernelEvent::Tc { ifindex: 7 }]);
    assert_eq!(bench.take(RTM_DELTFILTER, &tc(SHARED_BLOCK)), [KernelEvent::Tc { ifindex: 0 }]);
}

#[test]
fn a_link_ends_decisions_by_what_packets_depend_on() {
    let link = Link {
        name: "veth0".to_owned(),
        mtu: 1450,
        up: true,
        carrier: true,
        kind: "veth".to_owned(),
        master: Some(BRIDGE),
        ..Link::default()
    };
    let bridge = Some(flannel_core::link::Bridge { vlan_filtering: true, ..Default::default() });
    for changed in [
        Link { up: false, ..link.clone() },
        Link { carrier: false, ..link.clone() },
        Link { mac: Some(MacAddr(MAC_1)), ..link.clone() },
        Link { mtu: 1400, ..link.clone() },
        Link { master: None, ..link.clone() },
        Link { name: "veth1".to_owned(), ..link.clone() },
        Link { bridge, ..link.clone() },
    ] {
        assert!(ends_decisions(&link, Some(&changed), Part::OnTheWay), "{changed:?}");
        assert!(!ends_decisions(&link, Some(&changed), Part::Elsewhere), "a pod in the making");
    }
    assert!(ends_decisions(&link, None, Part::OnTheWay));
    let shaped = Link { qdisc: "tbf".to_owned(), ..link.clone() };
    assert!(!ends_decisions(&link, Some(&shaped), Part::OnTheWay), "traffic control tells of that");
    let without = Link { carrier: false, ..link.clone() };
    assert!(!ends_decisions(&without, Some(&link), Part::OnTheWay), "it takes nothing away");
    let down = Link { up: false, mtu: 1400, ..link.clone() };
    assert!(!ends_decisions(&down, Some(&link), Part::OnTheWay));
    // Another link takes its routes with it, and nothing else of it counts.
    let card = Link { kind: String::new(), ..link };
    let of_card = |new: Option<Link>| ends_decisions(&card, new.as_ref(), Part::Elsewhere);
    assert!(!of_card(Some(Link { mtu: 9000, ..card.clone() })));
    assert!(of_card(Some(Link { carrier: false, ..card.clone() })));
    assert!(of_card(Some(Link { up: false, ..card.clone() })));
    assert!(of_card(None));
}

#[test]
fn a_route_that_was_taken_from_a_tunnel_is_told_as_it_was() {
    let mut bench = Bench::new();
    let lost = with(route([10, 5, 7, 0], 24, 254), &[(RTA_GATEWAY, &[10, 5, 7, 0])]);
    let decision = KernelEvent::OverlayRoute;
    assert_eq!(
        bench.take(RTM_DELROUTE, &lost),
        [KernelEvent::Route { ifindex: 9 }, decision],
        "the device may be anything"
    );
    let tunnel = Link { kind: "vxlan".to_owned(), ..Link::default() };
    bench.memory.links.insert(9, tunnel);
    let subnet = "10.5.7.0/24".parse().unwrap();
    let route = ObservedRoute { onlink: false, ..ObservedRoute::to_peer(subnet) };
    let event = KernelEvent::RouteLost { ifindex: 9, route };
    assert_eq!(bench.take(RTM_DELROUTE, &lost), [event, decision]);
    assert_eq!(bench.take(RTM_NEWROUTE, &lost)[0], KernelEvent::Route { ifindex: 9 });
}

#[test]
fn a_route_that_is_put_before_others_of_the_overlay_says_so() {
    let mut bench = Bench::new();
    let told = |bench: &mut Bench, flags: u16, to: [u8; 4], table: u8| {
        let message = raw::request(RTM_NEWROUTE, flags, 0, &route(to, 24, table));
        bench.memory.take(&message, &bench.scope, bench.now)[0]
    };
    let peer = [10, 5, 7, 0];
    assert_eq!(told(&mut bench, NLM_F_CREATE, peer, 254), Some(KernelEvent::RouteBefore));
    let other = Some(KernelEvent::Route { ifindex: 9 });
    for (flags, to, table) in [
        (NLM_F_CREATE | NLM_F_EXCL, peer, 254),
        (NLM_F_CREATE | NLM_F_APPEND, peer, 254),
        (NLM_F_CREATE, [10, 6, 7, 0], 254),
        (NLM_F_CREATE, peer, 100),
    ] {
        assert_eq!(told(&mut bench, flags, to, table), other, "{flags:x} {to:?} {table}");
    }
}

#[test]
fn messages_that_are_cut_off_do_no_harm() {
    let mut bench = Bench::new();
    for kind in 0..128 {
        for length in 0..24 {
            bench.take(kind, &vec![0xff; length]);
            bench.take(kind, &vec![0; length]);
        }
    }
}

#[test]
fn a_route_with_limits_of_its_own_says_so() {
    let mut bench = Bench::new();
    let route = |to: [u8; 4], mtu: u32| {
        let mut header = vec![0; RTMSG_LEN];
        (header[1], header[4], header[7]) = (32, 254, 1);
        let mut metrics = Vec::new();
        raw::put(&mut metrics, 2, &mtu.to_ne_bytes());
        with(header, &[(RTA_DST, &to), (RTA_OIF, &2_u32.to_ne_bytes()), (8, &metrics)])
    };
    for kind in [RTM_NEWROUTE, RTM_DELROUTE] {
        let mut events = |to, mtu| bench.take(kind, &route(to, mtu));
        let event = KernelEvent::Route { ifindex: 2 };
        assert_eq!(events([192, 0, 2, 12], 1300), [event, KernelEvent::LimitedRoute]);
        assert_eq!(events([10, 5, 7, 1], 1300), [event, KernelEvent::LimitedRoute]);
        assert_eq!(events([192, 0, 2, 12], 0), [event, KernelEvent::Decision]);
        assert_eq!(events([192, 0, 2, 13], 1300), [event], "nobody's way");
    }
}
