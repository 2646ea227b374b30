mod properties;
mod retire;
mod slabs;

use super::*;
use crate::desired::roster::Touched;
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
        checksum: None,
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
fn a_route_behind_anothers_comes_again_in_its_place() {
    let (tunnelled, near) = (peer("10.5.1.0/24", 1, 11), peer("10.5.2.0/24", 2, 12));
    let want = directly(&[tunnelled, near], &[near]);
    let mut observed = converged(&want, false);
    observed.behind = [tunnelled.subnet, near.subnet, net("10.5.9.0/24")].into();
    let ours = ObservedRoute::to_peer(tunnelled.subnet);
    let direct = DirectRoute::to_peer(near.subnet, near.public_ip, want.underlay);
    let ops = diff(&want, &observed);
    let puts = [Op::RemoveRoute(ours), Op::PutRoute(tunnelled.subnet)];
    assert_eq!(ops[..2], puts);
    assert_eq!(ops[2..], [Op::RemoveDirect(direct), Op::PutDirect(direct)]);
    let touched = Touched { subnets: [tunnelled.subnet].into(), macs: [tunnelled.vtep_mac].into() };
    assert_eq!(diff_of(&want, &observed, &touched), puts);
    settle(&mut observed, &ops);
    assert_eq!(diff(&want, &observed), []);
    assert_eq!(observed.behind, [net("10.5.9.0/24")].into(), "it is nobody's");
    // What comes first gives way, and not the one that is behind it.
    let wrong = ObservedRoute { gateway: Some(ip(9)), ..ours };
    observed.routes = [wrong].into();
    observed.behind = [tunnelled.subnet].into();
    let ops = diff(&want, &observed);
    assert_eq!(ops, [Op::PutRoute(tunnelled.subnet), Op::RemoveRoute(wrong)]);
    settle(&mut observed, &ops);
    assert_eq!(observed.routes, [ours].into());
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
    let outside = DirectRoute::to_peer(net("10.9.1.0/24"), ip(3), 2);
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
fn checksums_are_made_by_whom_they_are_wanted_from() {
    use TunnelChecksum::{Device as Card, Kernel};
    let wanted = |checksum| {
        let mut wanted = desired(&[]);
        wanted.device = Some(Device { checksum, ..device() });
        wanted
    };
    let mut observed = converged(&desired(&[]), false);
    for (want, have, ops) in [
        (None, Some(Kernel), vec![]),
        (Some(Card), Some(Kernel), vec![Op::SetChecksum(Card)]),
        (Some(Card), Some(Card), vec![]),
        (Some(Kernel), Some(Kernel), vec![]),
        (Some(Kernel), Some(Card), vec![Op::SetChecksum(Kernel)]),
        // The kernel does not tell; it is tried.
        (Some(Kernel), None, vec![Op::SetChecksum(Kernel)]),
    ] {
        observed.device.as_mut().unwrap().checksum = have;
        assert_eq!(diff(&wanted(want), &observed), ops, "{want:?} {have:?}");
    }
    // Before the first packet of a new device, and only if it is not so anyway.
    let set = |want| {
        let ops = diff(&wanted(want), &Observed::default());
        let place = |wanted: &Op| ops.iter().position(|op| op == wanted);
        (place(&Op::SetChecksum(Kernel)), place(&Op::SetChecksum(Card)), place(&Op::SetUp))
    };
    assert_eq!(set(Some(Kernel)), (Some(1), None, Some(3)));
    assert_eq!(set(Some(Card)), (None, None, Some(2)));
}

#[test]
fn a_device_that_does_not_fit_is_made_again_with_the_reason() {
    type Change = fn(&mut ObservedDevice);
    let changes: [(&str, Change); 10] = [
        ("it is no VXLAN device", |device| device.vxlan = None),
        ("VNI is 9, not 1", |device| device.vxlan.as_mut().unwrap().vni = 9),
        ("port is 4789, not 8472", |device| device.vxlan.as_mut().unwrap().port = 4789),
        ("local address is unset, not 192.0.2.1", |device| {
            device.vxlan.as_mut().unwrap().local = None;
        }),
        ("underlay ifindex is 3, not 2", |device| device.vxlan.as_mut().unwrap().underlay = 3),
        ("gbp is true, not false", |device| device.vxlan.as_mut().unwrap().gbp = true),
        ("learning is true, not false", |device| device.vxlan.as_mut().unwrap().learning = true),
        ("TTL is 1, not 0", |device| device.vxlan.as_mut().unwrap().ttl = 1),
        ("DF is true, not false", |device| device.vxlan.as_mut().unwrap().df = true),
        ("remote address is 192.0.2.9, not unset", |device| {
            device.vxlan.as_mut().unwrap().remote = Some([192, 0, 2, 9].into());
        }),
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
fn a_lost_route_to_the_own_address_is_put_back() {
    let mut observed = converged(&desired(&[]), false);
    observed.device.as_mut().unwrap().unrouted = [device().address].into();
    assert_eq!(diff(&desired(&[]), &observed), [Op::PutLocal(device().address)]);
    // The kernel puts it with the device up.
    observed.device.as_mut().unwrap().up = false;
    assert_eq!(diff(&desired(&[]), &observed), [Op::SetUp]);
}

#[test]
fn a_device_that_is_held_down_is_let_go() {
    let mut observed = converged(&desired(&[]), false);
    observed.device.as_mut().unwrap().proto_down = true;
    let ops = diff(&desired(&[]), &observed);
    assert_eq!(ops, [Op::EndProtoDown]);
    settle(&mut observed, &ops);
    assert_eq!(diff(&desired(&[]), &observed), []);
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
