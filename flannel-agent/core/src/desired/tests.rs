use super::*;

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn underlay() -> Underlay {
    Underlay {
        mac: None,
        ifindex: 2,
        name: "eth0".to_owned(),
        address: Ipv4Addr::new(10, 99, 0, 11),
        public_ip: Ipv4Addr::new(203, 0, 113, 11),
        mtu: 1500,
        ethernet: true,
    }
}

fn vxlan() -> VxlanConfig {
    VxlanConfig {
        vni: 7,
        port: 8472,
        gbp: false,
        learning: false,
        mtu: None,
        direct_routing: false,
    }
}

fn build(vxlan: &VxlanConfig, peers: &[Peer]) -> Result<(Desired, Vec<Rejected>), MtuTooSmall> {
    with(&Backend::Vxlan(vxlan.clone()), &BTreeMap::new(), peers)
}

fn with(
    backend: &Backend,
    next_hops: &BTreeMap<Ipv4Addr, NextHop>,
    peers: &[Peer],
) -> Result<(Desired, Vec<Rejected>), MtuTooSmall> {
    let node = Node {
        subnet: net("10.5.27.0/24"),
        network: net("10.5.0.0/16"),
        vtep_mac: MacAddr([2, 0, 0, 0, 0, 0xff]),
        underlay: &underlay(),
        addresses: &NodeAddresses::default(),
        backend,
        next_hops,
        checksum: None,
    };
    desired(node, peers.iter().copied())
}

fn without_vtep(subnet: &str, ip: [u8; 4]) -> Peer {
    Peer { vtep_mac: MacAddr::default(), ..peer(subnet, 0, ip) }
}

#[test]
fn only_peers_on_the_link_are_direct_and_the_others_stay_in_the_tunnel() {
    let peers = [
        peer("10.5.1.0/24", 1, [10, 99, 0, 12]),
        peer("10.5.2.0/24", 2, [10, 98, 0, 13]),
        peer("10.5.3.0/24", 3, [10, 97, 0, 14]),
    ];
    let next_hops = BTreeMap::from([
        (peers[0].public_ip, NextHop::OnLink),
        (peers[1].public_ip, NextHop::Gateway([10, 99, 0, 1].into())),
    ]);
    let config = VxlanConfig { direct_routing: true, ..vxlan() };
    let (desired, rejected) = with(&Backend::Vxlan(config), &next_hops, &peers).unwrap();
    assert_eq!((desired.peers.len(), rejected.len()), (3, 0));
    let reach = peers.map(|peer| desired.reach(&peer.subnet));
    assert_eq!(reach, [PeerReach::Direct, PeerReach::Tunnel, PeerReach::Tunnel]);
    assert_eq!(desired.tunnelled().count(), 2);
    let (desired, _) = with(&Backend::Vxlan(vxlan()), &next_hops, &peers).unwrap();
    assert!(desired.direct.is_empty(), "DirectRouting was not asked for");
}

#[test]
fn host_gw_has_no_device_and_refuses_peers_behind_a_gateway() {
    let near = without_vtep("10.5.1.0/24", [10, 99, 0, 12]);
    let near_too = without_vtep("10.5.1.0/25", [10, 99, 0, 15]);
    let far = without_vtep("10.5.2.0/24", [10, 98, 0, 13]);
    let unknown = without_vtep("10.5.3.0/24", [10, 97, 0, 14]);
    let next_hops = BTreeMap::from([
        (near.public_ip, NextHop::OnLink),
        (near_too.public_ip, NextHop::OnLink),
        (far.public_ip, NextHop::Gateway([10, 99, 0, 1].into())),
    ]);
    let peers = [near, near_too, far, unknown];
    let (desired, rejected) = with(&Backend::HostGw, &next_hops, &peers).unwrap();
    assert_eq!((desired.device, desired.mtu, desired.underlay), (None, 1500, 2));
    assert_eq!(desired.direct, [near.subnet, near_too.subnet].into());
    assert_eq!(desired.peers.len(), 2, "nested subnets need no address of their own");
    let reasons: Vec<String> = rejected.iter().map(|r| r.reason.to_string()).collect();
    assert!(reasons[0].contains("it is reached by the gateway 10.99.0.1"), "{reasons:?}");
    assert!(reasons[1].contains("there is no route to it"), "{reasons:?}");
}

#[test]
fn each_backend_has_its_mtu() {
    let mtu = |backend| with(&backend, &BTreeMap::new(), &[]).unwrap().0.mtu;
    assert_eq!(mtu(Backend::Vxlan(vxlan())), 1450);
    assert_eq!(mtu(Backend::HostGw), 1500);
    assert_eq!(mtu(Backend::Udp(Default::default())), 1472);
    assert_eq!(mtu(Backend::Alloc), 1500);
}

fn peer(subnet: &str, mac: u8, ip: [u8; 4]) -> Peer {
    Peer { subnet: net(subnet), vtep_mac: MacAddr([2, 0, 0, 0, 0, mac]), public_ip: ip.into() }
}

#[test]
fn the_device_follows_lease_underlay_and_config() {
    let (desired, _) = build(&vxlan(), &[]).unwrap();
    assert_eq!(
        desired.device.unwrap(),
        Device {
            name: "flannel.7".to_owned(),
            vni: 7,
            port: 8472,
            // Not the PublicIP: it may be behind NAT and not ours to bind.
            local: Ipv4Addr::new(10, 99, 0, 11),
            underlay: 2,
            mac: MacAddr([2, 0, 0, 0, 0, 0xff]),
            mtu: 1450,
            gbp: false,
            learning: false,
            address: Ipv4Addr::new(10, 5, 27, 0),
            checksum: None,
        }
    );
    let config = VxlanConfig { mtu: Some(1400), ..vxlan() };
    assert_eq!(build(&config, &[]).unwrap().0.mtu, 1350);
    for (configured, cut) in [(1500, None), (1501, Some(1501)), (9000, Some(9000))] {
        let config = VxlanConfig { mtu: Some(configured), ..vxlan() };
        let desired = build(&config, &[]).unwrap().0;
        assert_eq!((desired.mtu, desired.cut_mtu), (1450, cut));
    }
}

#[test]
fn an_mtu_without_room_is_refused() {
    let config = VxlanConfig { mtu: Some(117), ..vxlan() };
    let error = build(&config, &[]).unwrap_err();
    assert!(error.to_string().starts_with("MTU 117 of Backend.MTU leaves 67 bytes"), "{error}");
    assert!(build(&VxlanConfig { mtu: Some(118), ..vxlan() }, &[]).is_ok());
}

#[test]
fn unusable_leases_are_left_out_with_a_reason() {
    let good = peer("10.5.1.0/24", 1, [10, 99, 0, 12]);
    let cases = [
        (peer("10.6.1.0/24", 2, [10, 99, 0, 13]), "not within the overlay"),
        (peer("10.5.0.0/15", 2, [10, 99, 0, 13]), "not within the overlay"),
        (peer("10.5.27.0/24", 2, [10, 99, 0, 13]), "overlaps ours"),
        (peer("10.5.27.128/25", 2, [10, 99, 0, 13]), "overlaps ours"),
        (peer("10.5.16.0/20", 2, [10, 99, 0, 13]), "overlaps ours"),
        (peer("10.5.2.0/24", 0xff, [10, 99, 0, 13]), "cloned"),
        (peer("10.5.2.0/24", 2, [10, 99, 0, 11]), "is ours"),
        (peer("10.5.2.0/24", 2, [203, 0, 113, 11]), "is ours"),
        (peer("10.5.2.0/24", 2, [0, 0, 0, 0]), "is no unicast"),
        (peer("10.5.2.0/24", 2, [224, 0, 0, 1]), "is no unicast"),
        (Peer { vtep_mac: MacAddr([1, 0, 0, 0, 0, 1]), ..good }, "is no unicast"),
    ];
    for (bad, reason) in cases {
        let (desired, rejected) = build(&vxlan(), &[bad]).unwrap();
        assert!(desired.peers.is_empty(), "{bad:?}");
        assert!(rejected[0].reason.to_string().contains(reason), "{:?}", rejected[0].reason);
    }
    let (desired, rejected) = build(&vxlan(), &[good]).unwrap();
    assert_eq!((desired.peers.len(), rejected.len()), (1, 0));
}

#[test]
fn the_newest_lease_of_a_mac_tells_where_it_is() {
    let old = peer("10.5.1.0/24", 1, [10, 99, 0, 12]);
    let new = peer("10.5.2.0/24", 1, [10, 99, 0, 13]);
    let (desired, rejected) = build(&vxlan(), &[old, new]).unwrap();
    assert_eq!(desired.peers, [(new.subnet, new)].into());
    assert_eq!(rejected, [Rejected { peer: old, reason: Rejection::MacMoved(new.subnet) }]);
    let (desired, _) = build(&vxlan(), &[new, old]).unwrap();
    assert_eq!(desired.peers, [(old.subnet, old)].into());
}

#[test]
fn a_node_with_two_subnets_keeps_both() {
    let peers = [peer("10.5.1.0/24", 1, [10, 99, 0, 12]), peer("10.5.2.0/24", 1, [10, 99, 0, 12])];
    assert_eq!(build(&vxlan(), &peers).unwrap().0.peers.len(), 2);
}

#[test]
fn a_later_lease_of_a_subnet_replaces_the_earlier() {
    let old = peer("10.5.1.0/24", 1, [10, 99, 0, 12]);
    let new = peer("10.5.1.0/24", 1, [10, 99, 0, 13]);
    let (desired, rejected) = build(&vxlan(), &[old, new]).unwrap();
    assert_eq!(desired.peers[&new.subnet], new);
    assert_eq!(rejected, []);
}

#[test]
fn of_nested_subnets_with_one_first_address_the_specific_one_stays() {
    let wide = peer("10.5.4.0/22", 1, [10, 99, 0, 12]);
    let narrow = peer("10.5.4.0/24", 2, [10, 99, 0, 13]);
    let inside = peer("10.5.5.0/24", 3, [10, 99, 0, 14]);
    let (desired, rejected) = build(&vxlan(), &[wide, narrow]).unwrap();
    assert_eq!(desired.peers, [(narrow.subnet, narrow)].into());
    assert_eq!(
        rejected,
        [Rejected { peer: wide, reason: Rejection::SameFirstAddress(narrow.subnet) }]
    );
    let (desired, rejected) = build(&vxlan(), &[wide, inside]).unwrap();
    assert_eq!((desired.peers.len(), rejected.len()), (2, 0));
}

#[test]
fn of_more_peers_than_the_tables_hold_the_newest_stay_out_of_them() {
    let numbered = |number: u32| Peer {
        // Those of the newest leases come first in the order of subnets.
        subnet: Ipv4Network::new(Ipv4Addr::from(0x0a7f_0000 - number * 16), 28).unwrap(),
        vtep_mac: MacAddr([2, 0, 0, (number >> 16) as u8, (number >> 8) as u8, number as u8]),
        public_ip: Ipv4Addr::from(0xac10_0000 + number),
    };
    let mut peers: Vec<Peer> = (0..MAX_PEERS + 3).map(numbered).collect();
    // One that is left out anyway takes nobody's place.
    peers[5].vtep_mac = MacAddr::default();
    let node = |peers: &[Peer]| {
        let node = Node {
            subnet: net("10.200.27.0/24"),
            network: net("10.0.0.0/8"),
            vtep_mac: MacAddr([2, 1, 0, 0, 0, 0xff]),
            underlay: &underlay(),
            addresses: &NodeAddresses::default(),
            backend: &Backend::Vxlan(vxlan()),
            next_hops: &BTreeMap::new(),
            checksum: None,
        };
        desired(node, peers.iter().copied()).unwrap().0
    };
    let wanted = node(&peers);
    assert_eq!(wanted.peers.len(), MAX_PEERS as usize + 2, "the kernel reaches all of them");
    let newest = [numbered(MAX_PEERS + 1), numbered(MAX_PEERS + 2)].map(|peer| peer.subnet);
    assert_eq!(wanted.unmapped, newest.into());
    peers.truncate(MAX_PEERS as usize + 1);
    assert!(node(&peers).unmapped.is_empty());
}
