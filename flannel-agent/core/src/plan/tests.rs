mod retire;
mod slabs;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::model::created;

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn device() -> Device {
    Device {
        name: "flannel.1".to_owned(),
        vni: 1,
        port: 8472,
        local: ip(1),
        underlay: 2,
        mac: mac(0xff),
        mtu: 1450,
        gbp: false,
        learning: false,
        address: Ipv4Addr::new(10, 5, 0, 0),
    }
}

fn peer(subnet: &str, mac_byte: u8, ip_byte: u8) -> Peer {
    Peer { subnet: net(subnet), vtep_mac: mac(mac_byte), public_ip: ip(ip_byte) }
}

fn desired(peers: &[Peer]) -> Desired {
    Desired {
        cut_mtu: None,
        network: net("10.5.0.0/16"),
        mtu: device().mtu,
        underlay: device().underlay,
        device: Some(device()),
        peers: peers.iter().map(|peer| (peer.subnet, *peer)).collect(),
        direct: BTreeSet::new(),
        unmapped: BTreeSet::new(),
    }
}

/// The same with these peers on the link.
fn directly(peers: &[Peer], direct: &[Peer]) -> Desired {
    Desired { direct: direct.iter().map(|peer| peer.subnet).collect(), ..desired(peers) }
}

fn host_gw(peers: &[Peer]) -> Desired {
    Desired { device: None, ..directly(peers, peers) }
}

fn settle(observed: &mut Observed, ops: &[Op]) {
    for op in ops {
        apply(observed, op);
    }
}

fn converged(desired: &Desired, maps: bool) -> Observed {
    let mut observed = Observed { maps: maps.then(BTreeMap::new), ..Observed::default() };
    let ops = diff(desired, &observed);
    settle(&mut observed, &ops);
    assert_eq!(diff(desired, &observed), []);
    observed
}

#[test]
fn a_new_node_gets_device_then_peer_in_order() {
    let one = peer("10.5.1.0/24", 1, 2);
    let observed = Observed { maps: Some(BTreeMap::new()), ..Observed::default() };
    assert_eq!(
        diff(&desired(&[one]), &observed),
        [
            Op::CreateDevice(device()),
            Op::AddAddress(device().address),
            Op::SetUp,
            Op::PutNeighbour(one.subnet.network(), one.vtep_mac),
            Op::PutFdb(one.vtep_mac, one.public_ip),
            Op::PutMaps(one),
            Op::PutRoute(one.subnet),
        ]
    );
}

#[test]
fn a_peer_that_left_goes_in_the_opposite_order() {
    let one = peer("10.5.1.0/24", 1, 2);
    let observed = converged(&desired(&[one]), true);
    assert_eq!(
        diff(&desired(&[]), &observed),
        [
            Op::RemoveRoute(ObservedRoute::to_peer(one.subnet)),
            Op::RemoveMaps(one.subnet),
            Op::RemoveFdb(one.vtep_mac, one.public_ip),
            Op::RemoveNeighbour(one.subnet.network(), one.vtep_mac),
        ]
    );
}

#[test]
fn a_peer_that_turns_up_on_the_link_gets_its_route_before_the_tunnel_goes() {
    let one = peer("10.5.1.0/24", 1, 2);
    let mut observed = converged(&desired(&[one]), true);
    let on_link = directly(&[one], &[one]);
    let ops = diff(&on_link, &observed);
    assert_eq!(
        ops,
        [
            Op::PutDirect(direct_to(&on_link, &one)),
            Op::RemoveRoute(ObservedRoute::to_peer(one.subnet)),
            Op::RemoveFdb(one.vtep_mac, one.public_ip),
            Op::RemoveNeighbour(one.subnet.network(), one.vtep_mac),
        ]
    );
    settle(&mut observed, &ops);
    assert_eq!(observed.maps.as_ref().unwrap()[&one.subnet], one, "still a known sender");
    assert_eq!(
        diff(&desired(&[one]), &observed),
        [
            Op::PutNeighbour(one.subnet.network(), one.vtep_mac),
            Op::PutFdb(one.vtep_mac, one.public_ip),
            Op::PutRoute(one.subnet),
            Op::RemoveDirect(direct_to(&on_link, &one)),
        ]
    );
}

#[test]
fn host_gw_has_routes_and_nothing_else() {
    let (one, two) = (peer("10.5.1.0/24", 0, 2), peer("10.5.2.0/24", 0, 3));
    let both = host_gw(&[one, two]);
    let routes = [&one, &two].map(|peer| direct_to(&both, peer));
    assert_eq!(diff(&both, &Observed::default()), routes.map(Op::PutDirect));
    let observed = converged(&both, false);
    assert_eq!(diff(&host_gw(&[two]), &observed), [Op::RemoveDirect(routes[0])]);
    let moved = host_gw(&[one, peer("10.5.2.0/24", 0, 9)]);
    let put = DirectRoute { gateway: ip(9), ..routes[1] };
    assert_eq!(diff(&moved, &observed), [Op::PutDirect(put), Op::RemoveDirect(routes[1])]);
}

#[test]
fn direct_routes_of_an_earlier_backend_are_replaced_or_go() {
    let (one, two) = (peer("10.5.1.0/24", 1, 2), peer("10.5.2.0/24", 2, 3));
    let outside = DirectRoute { destination: net("10.9.1.0/24"), gateway: ip(3), ifindex: 2 };
    let mut observed = converged(&host_gw(&[one, two]), false);
    observed.direct.insert(outside);
    let ops = diff(&desired(&[one]), &observed);
    settle(&mut observed, &ops);
    assert_eq!(observed.direct, [outside].into());
    assert!(observed.routes.contains(&ObservedRoute::to_peer(one.subnet)));
}

#[test]
fn a_moved_peer_is_one_fdb_replacement() {
    let observed = converged(&desired(&[peer("10.5.1.0/24", 1, 2)]), false);
    let moved = peer("10.5.1.0/24", 1, 3);
    assert_eq!(diff(&desired(&[moved]), &observed), [Op::PutFdb(mac(1), ip(3))]);
}

#[test]
fn a_peer_with_another_mac_has_its_fdb_entry_before_the_neighbour_points_to_it() {
    let observed = converged(&desired(&[peer("10.5.1.0/24", 1, 2)]), true);
    let changed = peer("10.5.1.0/24", 7, 2);
    assert_eq!(
        diff(&desired(&[changed]), &observed),
        [
            Op::PutFdb(mac(7), ip(2)),
            Op::PutNeighbour(changed.subnet.network(), mac(7)),
            Op::PutMaps(changed),
            Op::RemoveFdb(mac(1), ip(2)),
        ]
    );
}

#[test]
fn a_second_destination_of_a_mac_is_removed() {
    let one = peer("10.5.1.0/24", 1, 2);
    let mut observed = converged(&desired(&[one]), false);
    observed.fdb.insert((mac(1), ip(9)));
    assert_eq!(diff(&desired(&[one]), &observed), [Op::RemoveFdb(mac(1), ip(9))]);
}

#[test]
fn a_tunnel_beside_the_overlay_keeps_its_fdb_entry() {
    let one = peer("10.5.1.0/24", 1, 2);
    let mut observed = converged(&desired(&[one]), false);
    observed.fdb.extend([(mac(7), ip(7)), (mac(8), ip(8))]);
    observed.neighbours.insert(Ipv4Addr::new(10, 99, 0, 0), mac(7));
    assert_eq!(diff(&desired(&[one]), &observed), [Op::RemoveFdb(mac(8), ip(8))]);
}

#[test]
fn without_maps_there_are_no_map_operations() {
    let ops = diff(&desired(&[peer("10.5.1.0/24", 1, 2)]), &Observed::default());
    assert!(ops.iter().all(|op| !op.is_maps()), "{ops:?}");
}

#[test]
fn mac_and_mtu_are_corrected_in_place_and_neighbours_put_again() {
    let one = peer("10.5.1.0/24", 1, 2);
    let mut observed = converged(&desired(&[one]), false);
    let device = observed.device.as_mut().unwrap();
    (device.mac, device.mtu) = (mac(0x33), 1200);
    assert_eq!(
        diff(&desired(&[one]), &observed),
        [
            Op::SetMac(mac(0xff)),
            Op::SetMtu(1450),
            Op::PutNeighbour(one.subnet.network(), one.vtep_mac)
        ]
    );
}

#[test]
fn a_device_that_does_not_fit_is_made_again_with_the_reason() {
    type Change = fn(&mut ObservedDevice);
    let changes: [(&str, Change); 7] = [
        ("it is no VXLAN device", |device| device.vxlan = None),
        ("VNI is 9, not 1", |device| device.vxlan.as_mut().unwrap().vni = 9),
        ("port is 4789, not 8472", |device| device.vxlan.as_mut().unwrap().port = 4789),
        ("local address is unset, not 192.0.2.1", |device| {
            device.vxlan.as_mut().unwrap().local = None;
        }),
        ("underlay ifindex is 3, not 2", |device| device.vxlan.as_mut().unwrap().underlay = 3),
        ("gbp is true, not false", |device| device.vxlan.as_mut().unwrap().gbp = true),
        ("learning is true, not false", |device| device.vxlan.as_mut().unwrap().learning = true),
    ];
    let one = peer("10.5.1.0/24", 1, 2);
    for (reason, change) in changes {
        let mut observed = converged(&desired(&[one]), false);
        change(observed.device.as_mut().unwrap());
        let ops = diff(&desired(&[one]), &observed);
        assert!(
            matches!(&ops[0], Op::DeleteDevice { name, why } if name == "flannel.1" && why == reason),
            "{reason}: {ops:?}"
        );
        settle(&mut observed, &ops);
        assert_eq!(diff(&desired(&[one]), &observed), [], "{reason}");
    }
}

#[test]
fn an_old_address_of_the_overlay_goes_after_the_new_one_is_there() {
    let mut observed = converged(&desired(&[]), false);
    let addresses = &mut observed.device.as_mut().unwrap().addresses;
    *addresses = [net("10.5.9.0/32"), net("169.254.7.7/16")].into();
    assert_eq!(
        diff(&desired(&[]), &observed),
        [Op::AddAddress(device().address), Op::RemoveAddress(net("10.5.9.0/32"))]
    );
}

#[test]
fn two_peers_with_one_mac_settle() {
    let both = desired(&[peer("10.5.1.0/24", 1, 2), peer("10.5.2.0/24", 1, 3)]);
    let observed = converged(&both, true);
    assert_eq!(observed.fdb, [(mac(1), ip(3))].into());
}

#[test]
fn nested_subnets_that_begin_at_one_address_settle() {
    let both = desired(&[peer("10.5.0.0/20", 1, 2), peer("10.5.0.0/24", 2, 3)]);
    let observed = converged(&both, true);
    assert_eq!(observed.neighbours[&Ipv4Addr::new(10, 5, 0, 0)], mac(2));
    assert_eq!(observed.routes.len(), 2);
}

fn some_size() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1_usize), Just(2), Just(3), Just(SLAB)]
}

fn some_mac() -> impl Strategy<Value = MacAddr> {
    (1..7_u8).prop_map(mac)
}

fn some_ip() -> impl Strategy<Value = Ipv4Addr> {
    (2..8_u8).prop_map(ip)
}

fn some_subnet() -> impl Strategy<Value = Ipv4Network> {
    (1..9_u8, prop_oneof![5 => Just(24_u8), 1 => Just(25), 1 => Just(20)]).prop_map(
        |(third, prefix)| {
            let address = Ipv4Network::new(Ipv4Addr::new(10, 5, third, 0), prefix).unwrap();
            Ipv4Network::new(address.network(), prefix).unwrap()
        },
    )
}

/// Within the overlay network or outside.
fn some_network() -> impl Strategy<Value = Ipv4Network> {
    prop_oneof![5 => some_subnet(), 1 => (0..4_u8).prop_map(|n| {
        Ipv4Network::new(Ipv4Addr::new(172, 16, n, 0), 24).unwrap()
    }), 1 => Just(net("10.0.0.0/8")), 1 => Just(net("10.5.0.0/16"))]
}

prop_compose! {
    fn some_desired()(
        peers in vec((some_subnet(), some_mac(), some_ip(), prop::bool::weighted(0.3)), 0..7),
        device in prop::bool::weighted(0.8),
    ) -> Desired {
        let direct: Vec<bool> = peers.iter().map(|(.., direct)| *direct || !device).collect();
        let peers: Vec<_> = peers.into_iter().map(|(subnet, vtep_mac, public_ip, _)| {
            Peer { subnet, vtep_mac, public_ip }
        }).collect();
        let chosen: Vec<_> =
            peers.iter().zip(direct).filter(|(_, direct)| *direct).map(|(peer, _)| *peer).collect();
        let desired = directly(&peers, &chosen);
        if device { desired } else { Desired { device: None, ..desired } }
    }
}

prop_compose! {
    fn some_route()(
        destination in some_network(),
        gateway in proptest::option::of(some_network().prop_map(|net| net.network())),
        own_gateway in any::<bool>(),
        onlink in any::<bool>(),
        metric in prop_oneof![3 => Just(0_u32), 1 => Just(100)],
    ) -> ObservedRoute {
        let gateway = if own_gateway { Some(destination.network()) } else { gateway };
        ObservedRoute { destination, gateway, onlink, metric }
    }
}

prop_compose! {
    fn some_direct()(
        destination in some_network(),
        gateway in some_ip(),
        ifindex in prop_oneof![4 => Just(2_u32), 1 => Just(3)],
    ) -> DirectRoute {
        DirectRoute { destination, gateway, ifindex }
    }
}

prop_compose! {
    fn some_device()(
        underlay in prop_oneof![4 => Just(2_u32), 1 => Just(3)],
        vxlan in prop_oneof![6 => Just(true), 1 => Just(false)],
        mac in prop_oneof![3 => Just(mac(0xff)), 1 => Just(mac(0x77))],
        mtu in prop_oneof![Just(1450_u32), Just(1200)],
        up in any::<bool>(),
        addresses in btree_set(some_network(), 0..3),
    ) -> ObservedDevice {
        let mut made = created(&Device { underlay, ..device() });
        if !vxlan {
            made.vxlan = None;
        }
        ObservedDevice { mac, mtu, up, addresses, ..made }
    }
}

prop_compose! {
    fn some_observed()(
        device in proptest::option::weighted(0.9, some_device()),
        neighbours in btree_map(some_network().prop_map(|net| net.network()), some_mac(), 0..7),
        fdb in btree_set((some_mac(), some_ip()), 0..7),
        routes in btree_set(some_route(), 0..7),
        direct in btree_set(some_direct(), 0..5),
        maps in proptest::option::of(
            btree_map(some_subnet(), (some_mac(), some_ip()), 0..7)
        ),
    ) -> Observed {
        let maps = maps.map(|maps| maps.into_iter().map(|(subnet, (vtep_mac, public_ip))| {
            (subnet, Peer { subnet, vtep_mac, public_ip })
        }).collect());
        if device.is_none() {
            return Observed { maps, direct, ..Observed::default() };
        }
        Observed { device, neighbours, fdb, routes, direct, maps }
    }
}

/// Peers' subnets whose packets find a route, a MAC and a destination.
fn reachable(desired: &Desired, observed: &Observed) -> BTreeSet<Ipv4Network> {
    let works = |subnet: &Ipv4Network| {
        if desired.direct.contains(subnet)
            && observed.direct.contains(&direct_to(desired, &desired.peers[subnet]))
        {
            return true;
        }
        let hop = subnet.network();
        observed.routes.iter().any(|r| r.destination == *subnet && r.gateway == Some(hop))
            && observed
                .neighbours
                .get(&hop)
                .is_some_and(|mac| observed.destinations(*mac).next().is_some())
    };
    desired.peers.keys().filter(|subnet| works(subnet)).copied().collect()
}

fn kept(observed: &Observed, ops: &[Op]) -> bool {
    observed.device.is_some()
        && !ops.iter().any(|op| matches!(op, Op::DeleteDevice { .. } | Op::SetMac(_)))
}

fn rank_of_removal(op: &Op) -> Option<u8> {
    match op {
        Op::RemoveRoute(_) | Op::RemoveDirect(_) => Some(1),
        Op::RemoveMaps(_) => Some(2),
        Op::RemoveFdb(..) => Some(3),
        Op::RemoveNeighbour(..) => Some(4),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..Default::default() })]

    #[test]
    fn one_round_is_enough(
        desired in some_desired(), observed in some_observed(), size in some_size(),
    ) {
        let mut after = observed.clone();
        settle(&mut after, &diff_in_slabs(&desired, &observed, size));
        prop_assert_eq!(diff(&desired, &after), []);
        let hop = |subnet: &Ipv4Network| subnet.network();
        let direct: BTreeSet<_> =
            desired.direct.iter().map(|s| direct_to(&desired, &desired.peers[s])).collect();
        let inside = |route: &&DirectRoute| within(desired.network, route.destination);
        prop_assert_eq!(after.direct.iter().filter(inside).copied().collect::<BTreeSet<_>>(), direct);
        for subnet in desired.tunnelled().map(|peer| &peer.subnet) {
            prop_assert!(after.routes.contains(&ObservedRoute::to_peer(*subnet)));
            prop_assert!(after.neighbours.contains_key(&hop(subnet)));
        }
        if let Some(maps) = &after.maps {
            prop_assert_eq!(maps, &desired.peers);
        }
        for (mac, _) in &after.fdb {
            let peers = desired.tunnelled().any(|peer| peer.vtep_mac == *mac);
            let foreign = |(ip, of): (&Ipv4Addr, &MacAddr)| !desired.network.contains(*ip) && of == mac;
            prop_assert!(peers || after.neighbours.iter().any(foreign));
            prop_assert!(!peers || after.destinations(*mac).count() == 1);
        }
    }

    #[test]
    fn every_operation_is_idempotent(desired in some_desired(), observed in some_observed()) {
        let mut state = observed.clone();
        for op in diff(&desired, &observed) {
            apply(&mut state, &op);
            let once = state.clone();
            apply(&mut state, &op);
            // Deleting is followed by creating; doing both twice is not the same.
            prop_assert_eq!(&state, &once, "{:?}", op);
        }
    }

    #[test]
    fn foreign_entries_stay(
        desired in some_desired(), observed in some_observed(), size in some_size(),
    ) {
        let ops = diff_in_slabs(&desired, &observed, size);
        let network = desired.network;
        let mut after = observed.clone();
        settle(&mut after, &ops);
        if observed.device.is_some() && !ops.iter().any(|op| matches!(op, Op::DeleteDevice { .. })) {
            let foreign = |routes: &BTreeSet<ObservedRoute>| -> Vec<ObservedRoute> {
                routes.iter().filter(|r| !within(network, r.destination)).copied().collect()
            };
            prop_assert_eq!(foreign(&observed.routes), foreign(&after.routes));
            let device = |o: &Observed| -> Vec<Ipv4Network> {
                let addresses = o.device.iter().flat_map(|d| &d.addresses);
                addresses.filter(|a| !network.contains(a.ip())).copied().collect()
            };
            prop_assert_eq!(device(&observed), device(&after));
        }
        if kept(&observed, &ops) {
            let foreign = |o: &Observed| -> Vec<Ipv4Addr> {
                o.neighbours.keys().filter(|ip| !network.contains(**ip)).copied().collect()
            };
            prop_assert_eq!(foreign(&observed), foreign(&after));
            for ip in foreign(&after) {
                let mac = after.neighbours[&ip];
                let before = observed.destinations(mac).next();
                prop_assert!(before.is_none() || after.destinations(mac).next().is_some());
            }
        }
    }

    #[test]
    fn nothing_that_works_is_interrupted(
        desired in some_desired(), observed in some_observed(), size in some_size(),
    ) {
        // Without a device of ours nothing was reached through it.
        let device = desired.device.is_some().then(|| created(&device()));
        let observed = match device {
            Some(_) => Observed { device, ..observed },
            None => Observed { direct: observed.direct, ..Observed::default() },
        };
        let ops = diff_in_slabs(&desired, &observed, size);
        let mut state = observed.clone();
        let mut works = reachable(&desired, &state);
        for op in &ops {
            apply(&mut state, op);
            let now = reachable(&desired, &state);
            prop_assert!(works.is_subset(&now), "{op:?} broke {works:?} -> {now:?} in {ops:?}");
            works = now;
        }
        prop_assert_eq!(works.len(), desired.peers.len());
    }

    #[test]
    fn the_order_holds(
        desired in some_desired(), observed in some_observed(), size in some_size(),
    ) {
        let ops = diff_in_slabs(&desired, &observed, size);
        let at = |wanted: &dyn Fn(&Op) -> bool| ops.iter().position(wanted);
        for peer in desired.peers.values() {
            let Some(route) = at(&|op| *op == Op::PutRoute(peer.subnet)) else { continue };
            let before = [
                at(&|op| matches!(op, Op::PutNeighbour(ip, _) if *ip == peer.subnet.network())),
                at(&|op| matches!(op, Op::PutFdb(mac, _) if *mac == peer.vtep_mac)),
                at(&|op| *op == Op::PutMaps(*peer)),
                at(&|op| matches!(op, Op::CreateDevice(_))),
                at(&|op| *op == Op::SetUp),
            ];
            for step in before.into_iter().flatten() {
                prop_assert!(step < route, "{ops:?}");
            }
        }
        // A second destination of a MAC that is put goes at once; all other
        // removals come last, by rank.
        let put: BTreeSet<MacAddr> = desired.tunnelled().map(|peer| peer.vtep_mac).collect();
        let late: Vec<Option<u8>> = ops
            .iter()
            .filter(|op| !matches!(op, Op::RemoveFdb(mac, _) if put.contains(mac)))
            .map(rank_of_removal)
            .skip_while(Option::is_none)
            .collect();
        prop_assert!(late.iter().all(Option::is_some), "{ops:?}");
        prop_assert!(late.is_sorted(), "{ops:?}");
    }
}

#[test]
fn peers_without_a_place_in_the_maps_are_reached_all_the_same() {
    let (old, new) = (peer("10.5.1.0/24", 1, 1), peer("10.5.2.0/24", 2, 2));
    let all = desired(&[old, new]);
    let mut observed = Observed { maps: Some(BTreeMap::new()), ..Observed::default() };
    let full = Desired { unmapped: [new.subnet].into(), ..all.clone() };
    for op in diff(&full, &observed) {
        apply(&mut observed, &op);
    }
    assert_eq!(observed.maps.as_ref().unwrap().keys().collect::<Vec<_>>(), [&old.subnet]);
    assert_eq!(observed.routes.len(), 2);
    assert_eq!(diff(&full, &observed), []);
    // It gets a place, and loses it to one that is older.
    assert_eq!(diff(&all, &observed), [Op::PutMaps(new)]);
    let other = Desired { unmapped: [old.subnet].into(), ..all };
    assert_eq!(diff(&other, &observed), [Op::PutMaps(new), Op::RemoveMaps(old.subnet)]);
}
