//! What holds for every plan.

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option::of;
use proptest::prelude::*;

use super::*;

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
        extra in proptest::bool::weighted(0.2),
    ) -> ObservedRoute {
        let gateway = if own_gateway { Some(destination.network()) } else { gateway };
        ObservedRoute { destination, gateway, onlink, metric, extra }
    }
}

prop_compose! {
    fn some_direct()(
        destination in some_network(),
        gateway in some_ip(),
        ifindex in prop_oneof![4 => Just(2_u32), 1 => Just(3)],
        extra in proptest::bool::weighted(0.2),
    ) -> DirectRoute {
        DirectRoute { destination, gateway, ifindex, extra }
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
        own in of(any::<bool>()),
        checksum in of(prop_oneof![Just(TunnelChecksum::Device), Just(TunnelChecksum::Kernel)]),
    ) -> ObservedDevice {
        let mut made = created(&Device { underlay, ..device() });
        if !vxlan {
            made.vxlan = None;
        }
        let mut addresses = addresses;
        addresses.extend(own.map(|_| Ipv4Network::from(device().address)));
        let unrouted = own.filter(|unrouted| *unrouted).map(|_| device().address);
        let unrouted = unrouted.into_iter().collect();
        ObservedDevice { mac, mtu, up, addresses, unrouted, checksum, ..made }
    }
}

prop_compose! {
    fn some_observed()(
        device in proptest::option::weighted(0.9, some_device()),
        neighbours in btree_map(some_network().prop_map(|net| net.network()), some_mac(), 0..7),
        fdb in btree_set((some_mac(), some_ip()), 0..7),
        routes in btree_set(some_route(), 0..7),
        direct in btree_set(some_direct(), 0..5),
        behind in btree_set(some_subnet(), 0..3),
        maps in proptest::option::of(
            btree_map(some_subnet(), (some_mac(), some_ip()), 0..7)
        ),
    ) -> Observed {
        let maps = maps.map(|maps| maps.into_iter().map(|(subnet, (vtep_mac, public_ip))| {
            (subnet, Peer { subnet, vtep_mac, public_ip })
        }).collect());
        if device.is_none() {
            return Observed { maps, direct, behind, ..Observed::default() };
        }
        Observed { device, neighbours, fdb, routes, direct, behind, maps }
    }
}

/// Peers' subnets whose packets find a route, a MAC and a destination.
fn reachable(desired: &Desired, observed: &Observed) -> BTreeSet<Ipv4Network> {
    let works = |subnet: &Ipv4Network| {
        if observed.behind.contains(subnet) {
            return false;
        }
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
            None => Observed {
                direct: observed.direct,
                behind: observed.behind,
                ..Observed::default()
            },
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
        // removals come last, by rank. A removal that may take another route with it is
        // followed by that one, and so is that of a route behind another one's.
        let put_again = |at: usize| match (at.checked_sub(1).map(|before| &ops[before]), &ops[at]) {
            (Some(Op::RemoveRoute(gone)), Op::PutRoute(subnet)) => gone.destination == *subnet,
            (Some(Op::RemoveDirect(gone)), Op::PutDirect(route)) => {
                *route == DirectRoute { extra: false, ..*gone }
            }
            _ => false,
        };
        let behind = |at: usize| match (&ops[at], ops.get(at + 1)) {
            (Op::RemoveRoute(gone), Some(Op::PutRoute(_))) => {
                observed.behind.contains(&gone.destination)
            }
            (Op::RemoveDirect(gone), Some(Op::PutDirect(_))) => {
                observed.behind.contains(&gone.destination)
            }
            _ => false,
        };
        let put: BTreeSet<MacAddr> = desired.tunnelled().map(|peer| peer.vtep_mac).collect();
        let late: Vec<Option<u8>> = ops
            .iter()
            .enumerate()
            .filter(|(at, op)| {
                !put_again(*at)
                    && !behind(*at)
                    && !matches!(op, Op::RemoveFdb(mac, _) if put.contains(mac))
            })
            .map(|(_, op)| rank_of_removal(op))
            .skip_while(Option::is_none)
            .collect();
        prop_assert!(late.iter().all(Option::is_some), "{ops:?}");
        prop_assert!(late.is_sorted(), "{ops:?}");
    }
}
