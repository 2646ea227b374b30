//! A revision is what looking at everything gives, or there is none.

use std::net::Ipv4Addr;

use proptest::collection::btree_map;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::config::{Backend, VxlanConfig};
use crate::desired::desired;
use crate::lease::judge::NodeAddresses;
use crate::model;
use crate::observed::Observed;
use crate::plan::{diff, diff_of};
use crate::underlay::Underlay;

type Leases = BTreeMap<Ipv4Network, Peer>;

fn with_node<T>(work: impl FnOnce(Node<'_>) -> T) -> T {
    let underlay = Underlay {
        ifindex: 2,
        name: "eth0".to_owned(),
        address: Ipv4Addr::new(192, 0, 2, 1),
        public_ip: Ipv4Addr::new(192, 0, 2, 1),
        mtu: 1500,
        mac: None,
        ethernet: true,
    };
    let vxlan = VxlanConfig {
        vni: 1,
        port: 8472,
        gbp: false,
        learning: false,
        mtu: None,
        direct_routing: false,
    };
    work(Node {
        subnet: "10.5.0.0/24".parse().unwrap(),
        network: "10.5.0.0/16".parse().unwrap(),
        vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        underlay: &underlay,
        addresses: &NodeAddresses::default(),
        backend: &Backend::Vxlan(vxlan),
        next_hops: &BTreeMap::new(),
        checksum: None,
    })
}

fn peer(third: u8, prefix: u8, mac: u8, address: u8) -> Peer {
    Peer {
        subnet: Ipv4Network::new(Ipv4Addr::new(10, 5, third, 0), prefix).unwrap(),
        vtep_mac: MacAddr([2, 0, 0, 0, 0, mac]),
        public_ip: Ipv4Addr::new(192, 0, 2, address),
    }
}

/// What is there when this is as it should be, with a neighbour of somebody else's.
fn settled(desired: &Desired, foreign: u8) -> Observed {
    let mut observed = Observed { maps: Some(BTreeMap::new()), ..Observed::default() };
    for op in diff(desired, &observed) {
        model::apply(&mut observed, &op);
    }
    let mac = MacAddr([2, 0, 0, 0, 0, foreign]);
    observed.neighbours.insert(Ipv4Addr::new(10, 9, 0, 1), mac);
    observed.neighbours.insert(Ipv4Addr::new(10, 4, 0, 1), mac);
    observed
}

/// Revises and compares; whether there was a revision.
fn revises(before: &Leases, changes: &[PeerChange], foreign: u8) -> bool {
    with_node(|node| {
        let (mut now, rejected) = desired(node, before.values().copied()).unwrap();
        let Some(mut roster) = Roster::of(node, &now, rejected.is_empty()) else { return false };
        let observed = settled(&now, foreign);
        let Some(touched) = roster.revise(node, &mut now, changes) else { return false };
        let mut after = before.clone();
        for (subnet, peer) in changes {
            match peer {
                Some(peer) => after.insert(*subnet, *peer),
                None => after.remove(subnet),
            };
        }
        let (all, rejected) = desired(node, after.into_values()).unwrap();
        assert_eq!((&now, rejected.len()), (&all, 0));
        assert_eq!(Roster::of(node, &all, true).as_ref(), Some(&roster));
        assert_eq!(diff_of(&now, &observed, &touched), diff(&all, &observed));
        true
    })
}

#[test]
fn peers_come_move_and_go() {
    let before: Leases = (2..9).map(|n| peer(n, 24, n, n)).map(|p| (p.subnet, p)).collect();
    let moved = peer(3, 24, 3, 99);
    let other = peer(4, 24, 77, 4);
    let new = peer(20, 24, 20, 20);
    let changes = [Some(moved), Some(other), Some(new)].map(|peer| (peer.unwrap().subnet, peer));
    assert!(revises(&before, &changes, 200));
    assert!(revises(&before, &[(moved.subnet, None), (new.subnet, None)], 3));
    // Two that change their MACs, in one go.
    let swapped = [peer(5, 24, 6, 5), peer(6, 24, 5, 6)].map(|peer| (peer.subnet, Some(peer)));
    assert!(revises(&before, &swapped, 200));
}

#[test]
fn contradictions_are_looked_at_as_a_whole() {
    let before: Leases = (2..5).map(|n| peer(n, 24, n, n)).map(|p| (p.subnet, p)).collect();
    for odd in [
        peer(9, 24, 2, 9),
        peer(2, 25, 9, 9),
        peer(2, 23, 9, 9),
        peer(0, 25, 9, 9),
        peer(9, 24, 1, 9),
        peer(9, 24, 9, 1),
    ] {
        assert!(!revises(&before, &[(odd.subnet, Some(odd))], 200), "{odd:?}");
    }
}

prop_compose! {
    fn some_peer()(third in 0u8..8, prefix in 23u8..=25, mac in 1u8..12, ip in 1u8..12) -> Peer {
        let mut peer = peer(third, prefix, mac, ip);
        peer.subnet = Ipv4Network::new(peer.subnet.network(), prefix).unwrap();
        peer
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 600, ..Default::default() })]

    #[test]
    fn a_revision_is_what_looking_at_everything_gives(
        before in btree_map(0u8..40, some_peer(), 0..6),
        changes in btree_map(0u8..40, (some_peer(), option::of(Just(()))), 1..4),
        foreign in 1u8..12,
    ) {
        let before: Leases = before.into_values().map(|peer| (peer.subnet, peer)).collect();
        let changes: BTreeMap<Ipv4Network, Option<Peer>> = changes
            .into_values()
            .map(|(peer, stays)| (peer.subnet, stays.map(|()| peer)))
            .collect();
        let changes: Vec<PeerChange> = changes.into_iter().collect();
        revises(&before, &changes, foreign);
    }
}
