use proptest::prelude::*;

use super::*;
use crate::backend::Published;
use crate::lease::attrs::LeaseAttrs;
use crate::mac::MacAddr;

const OWN_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 11);

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn lease(subnet: &str, ip: [u8; 4], mac: u8, revision: i64) -> Lease {
    let attrs = LeaseAttrs::vxlan(ip.into(), 1, MacAddr([2, 0, 0, 0, 0, mac]));
    Lease { subnet: net(subnet), attrs, expires: None, revision }
}

fn put(lease: Lease) -> LeaseUpdate {
    LeaseUpdate::Put { lease }
}

fn removed(subnet: &str, revision: i64) -> LeaseUpdate {
    LeaseUpdate::Removed { subnet: net(subnet), revision }
}

fn snapshot(leases: &[Lease], revision: i64) -> LeaseUpdate {
    LeaseUpdate::Snapshot { leases: leases.to_vec(), revision }
}

fn table() -> LeaseTable {
    table_of(r#"{"Type":"vxlan"}"#)
}

fn table_of(backend: &str) -> LeaseTable {
    let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
    let backend = crate::config::NetworkConfig::parse(&text).unwrap().backend;
    let mut table = LeaseTable::new(net("10.5.0.0/16"), backend);
    table.set_own(Some(net("10.5.27.0/24")), OWN_IP);
    table
}

fn changed(subnets: &[&str]) -> BTreeSet<Ipv4Network> {
    subnets.iter().map(|subnet| net(subnet)).collect()
}

/// A table with three peers after revision 30, and the store of another history.
fn table_of_three() -> LeaseTable {
    let mut table = table();
    let known: Vec<_> =
        (1..=3).map(|n| lease(&format!("10.5.{n}.0/24"), [10, 99, 0, n], n, 20)).collect();
    table.apply(snapshot(&known, 30));
    table.apply(LeaseUpdate::OtherHistory { reason: "it went back".to_owned() });
    table
}

#[test]
fn a_store_that_lost_its_data_removes_no_peer() {
    let mut table = table_of_three();
    let own = Some(OwnChange::Removed { revision: 1 });
    assert_eq!(
        table.apply(snapshot(&[], 1)),
        Changes { peers: changed(&[]), leases: true, own: own.clone() }
    );
    assert_eq!((table.peers().count(), table.held()), (3, 3));
    // Nor does it with the next list.
    let first = lease("10.5.1.0/24", [10, 99, 0, 1], 1, 3);
    assert_eq!(table.apply(snapshot(&[first], 3)).peers, changed(&[]));
    assert_eq!((table.peers().count(), table.held()), (3, 2));
    // One comes back, one has moved, and then all is as the store says.
    assert_eq!(table.apply(put(lease("10.5.2.0/24", [10, 99, 0, 2], 2, 4))).peers, changed(&[]));
    let moved = put(lease("10.5.9.0/24", [10, 99, 0, 3], 3, 5));
    assert_eq!(table.apply(moved).peers, changed(&["10.5.3.0/24", "10.5.9.0/24"]));
    assert_eq!((table.peers().count(), table.held()), (3, 0));
    let listed = [lease("10.5.1.0/24", [10, 99, 0, 1], 1, 3)];
    assert_eq!(table.apply(snapshot(&listed, 6)).peers, changed(&["10.5.2.0/24", "10.5.9.0/24"]));
}

#[test]
fn an_older_state_of_a_peer_does_not_count_until_it_is_written() {
    let mut table = table_of_three();
    let old = lease("10.5.1.0/24", [10, 99, 0, 77], 77, 10);
    let same = lease("10.5.2.0/24", [10, 99, 0, 2], 2, 11);
    // What would be in the way of a held one takes its place.
    let wide = lease("10.5.3.0/25", [10, 99, 0, 8], 8, 12);
    let changes = table.apply(snapshot(&[old.clone(), same, wide], 15));
    assert_eq!(changes.peers, changed(&["10.5.3.0/24", "10.5.3.0/25"]));
    assert_eq!(table.held(), 1);
    let known = table.peers().find(|peer| peer.subnet == net("10.5.1.0/24")).unwrap();
    assert_eq!(known.public_ip, Ipv4Addr::new(10, 99, 0, 1));
    assert_eq!(table.apply(put(Lease { revision: 16, ..old })).peers, changed(&["10.5.1.0/24"]));
    assert_eq!(table.held(), 0);
}

#[test]
fn what_is_held_can_be_removed_and_let_go() {
    let mut table = table_of_three();
    table.apply(snapshot(&[], 1));
    assert_eq!(table.apply(removed("10.5.1.0/24", 2)).peers, changed(&["10.5.1.0/24"]));
    assert_eq!(table.held(), 2);
    assert_eq!(table.release_held().peers, changed(&["10.5.2.0/24", "10.5.3.0/24"]));
    assert_eq!((table.held(), table.peers().count()), (0, 0));
}

#[test]
fn puts_and_removals_tell_which_peers_changed() {
    let mut table = table();
    let first = lease("10.5.1.0/24", [10, 99, 0, 12], 1, 5);
    assert_eq!(table.apply(put(first.clone())).peers, changed(&["10.5.1.0/24"]));
    let renewed = Lease { revision: 6, ..first };
    assert_eq!(table.apply(put(renewed)), Changes::default());
    let moved = lease("10.5.1.0/24", [10, 99, 0, 13], 1, 7);
    assert_eq!(table.apply(put(moved)).peers, changed(&["10.5.1.0/24"]));
    let other_mac = lease("10.5.1.0/24", [10, 99, 0, 13], 2, 8);
    assert_eq!(table.apply(put(other_mac)).peers, changed(&["10.5.1.0/24"]));
    assert_eq!(table.apply(removed("10.5.1.0/24", 9)).peers, changed(&["10.5.1.0/24"]));
    assert_eq!(table.apply(removed("10.5.1.0/24", 9)), Changes::default());
}

#[test]
fn each_backend_takes_its_own_leases() {
    let ip = |last| [10, 99, 0, last].into();
    let host_gw = Backend::HostGw.facts().publishes(MacAddr::default());
    let with =
        |subnet: &str, attrs| Lease { subnet: net(subnet), attrs, expires: None, revision: 1 };
    let leases = [
        lease("10.5.1.0/24", [10, 99, 0, 12], 1, 1),
        with("10.5.2.0/24", LeaseAttrs::new(ip(13), host_gw)),
        with("10.5.3.0/24", LeaseAttrs::new(ip(14), Published::default())),
        with("10.5.27.0/24", LeaseAttrs::new(OWN_IP, Published::default())),
    ];
    for (backend, peers, oddity) in [
        ("vxlan", &["10.5.1.0/24"] as &[&str], Some("BackendType is `host-gw`, not `vxlan`")),
        ("host-gw", &["10.5.2.0/24"], Some("BackendType is `vxlan`, not `host-gw`")),
        ("udp", &["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"], None),
        ("alloc", &[], None),
    ] {
        let mut table = table_of(&format!(r#"{{"Type":"{backend}"}}"#));
        table.apply(snapshot(&leases, 1));
        let found: Vec<_> = table.peers().map(|peer| peer.subnet.to_string()).collect();
        assert_eq!(found, peers, "{backend}");
        let oddities = table.oddities();
        assert_eq!(oddities.len(), if oddity.is_some() { 2 } else { 0 }, "{oddities:?}");
        if let Some(oddity) = oddity {
            assert!(oddities.iter().any(|text| text.contains(oddity)), "{oddities:?}");
        }
    }
}

#[test]
fn a_snapshot_tells_what_differs() {
    let mut table = table();
    let same = lease("10.5.1.0/24", [10, 99, 0, 12], 1, 5);
    let moves = lease("10.5.2.0/24", [10, 99, 0, 13], 2, 6);
    let goes = lease("10.5.3.0/24", [10, 99, 0, 14], 3, 7);
    table.apply(snapshot(&[same.clone(), moves, goes], 7));
    let moved = lease("10.5.2.0/24", [10, 99, 0, 23], 2, 8);
    let new = lease("10.5.4.0/24", [10, 99, 0, 15], 4, 9);
    let changes = table.apply(snapshot(&[same, moved, new], 9));
    assert_eq!(changes.peers, changed(&["10.5.2.0/24", "10.5.3.0/24", "10.5.4.0/24"]));
    assert_eq!(changes.own, Some(OwnChange::Removed { revision: 9 }));
}

#[test]
fn a_lost_connection_changes_nothing() {
    let mut table = table();
    table.apply(put(lease("10.5.1.0/24", [10, 99, 0, 12], 1, 5)));
    let before = table.clone();
    let update = LeaseUpdate::Disconnected { reason: "gone".to_owned() };
    assert_eq!(table.apply(update), Changes::default());
    assert_eq!(table, before);
}

#[test]
fn our_own_lease_is_told_apart_and_is_never_a_peer() {
    let mut table = table();
    let ours = lease("10.5.27.0/24", OWN_IP.octets(), 9, 5);
    let changes = table.apply(put(ours.clone()));
    let own = Some(OwnChange::Put(ours.clone()));
    assert_eq!(changes, Changes { own, leases: true, ..Changes::default() });
    assert_eq!(table.own(), Some(&ours));
    let changes = table.apply(snapshot(std::slice::from_ref(&ours), 6));
    assert_eq!(changes.own, Some(OwnChange::Put(ours)));

    let theirs = lease("10.5.27.0/24", [10, 99, 0, 12], 1, 7);
    let taken = Some(OwnChange::Taken { lease: theirs.clone() });
    assert_eq!(table.apply(put(theirs.clone())).own, taken);
    assert_eq!(table.apply(snapshot(&[theirs], 8)).own, taken);
    assert_eq!(table.peers().count(), 0);
    assert!(table.oddities()[0].contains("its subnet is ours"), "{:?}", table.oddities());

    let gone = Some(OwnChange::Removed { revision: 9 });
    assert_eq!(table.apply(removed("10.5.27.0/24", 9)).own, gone);
}

#[test]
fn who_we_are_decides_anew_about_leases_that_are_known() {
    let mut table = table();
    let other = lease("10.5.30.0/24", [192, 0, 2, 30], 30, 5);
    table.apply(put(other.clone()));
    assert_eq!(table.peers().count(), 1);
    table.set_own(Some(other.subnet), other.attrs.public_ip);
    assert_eq!((table.peers().count(), table.own()), (0, Some(&other)));
    table.set_own(None, OWN_IP);
    assert_eq!((table.peers().count(), table.own()), (1, None));
}

#[test]
fn a_renewal_says_nothing_new() {
    let mut table = table();
    assert!(table.apply(put(lease("10.5.1.0/24", [10, 99, 0, 12], 1, 5))).leases);
    let changes = table.apply(put(lease("10.5.1.0/24", [10, 99, 0, 12], 1, 6)));
    assert_eq!(changes, Changes::default());
    let changes = table.apply(put(lease("10.5.1.0/24", [10, 99, 0, 13], 1, 7)));
    assert!(changes.leases && !changes.peers.is_empty());
}

#[test]
fn peers_come_oldest_first() {
    let mut table = table();
    table.apply(put(lease("10.5.1.0/24", [10, 99, 0, 12], 1, 9)));
    table.apply(put(lease("10.5.2.0/24", [10, 99, 0, 13], 2, 5)));
    let subnets: Vec<_> = table.peers().map(|peer| peer.subnet).collect();
    assert_eq!(subnets, [net("10.5.2.0/24"), net("10.5.1.0/24")]);
}

#[test]
fn leases_that_are_no_peers_are_told_with_key_and_cause() {
    let good = lease("10.5.1.0/24", [10, 99, 0, 12], 1, 5);
    let with = |edit: &dyn Fn(&mut Lease)| {
        let mut lease = good.clone();
        edit(&mut lease);
        lease
    };
    let backend = |name: &str| with(&|lease| lease.attrs.backend_type = name.to_owned());
    let group = LeaseAttrs::vxlan(good.attrs.public_ip, 1, MacAddr([1, 0, 0, 0, 0, 1]));
    let cases = [
        (backend("host-gw"), "`host-gw`, not `vxlan`"),
        (with(&|lease| lease.attrs.backend_data = None), "BackendData is missing"),
        (with(&|lease| lease.attrs = group.clone()), "VtepMAC 01:00:00:00:00:01 is no unicast"),
        (lease("10.5.1.0/24", [10, 99, 0, 12], 0, 5), ""),
        (lease("10.6.1.0/24", [10, 99, 0, 12], 1, 5), "not within the overlay network 10.5.0.0/16"),
        (lease("10.5.1.0/24", [0, 0, 0, 0], 1, 5), "PublicIP 0.0.0.0 is no unicast"),
        (lease("10.5.1.0/24", [224, 0, 0, 9], 1, 5), "PublicIP 224.0.0.9 is no unicast"),
        (lease("10.5.1.0/24", [255, 255, 255, 255], 1, 5), "255.255.255.255 is no unicast"),
        (lease("10.5.1.0/24", [127, 0, 0, 1], 1, 5), "PublicIP 127.0.0.1 is no unicast"),
        (lease("10.5.1.0/24", [10, 5, 1, 1], 1, 5), "PublicIP 10.5.1.1 is an address of its own"),
        (backend(""), "BackendType is missing"),
        (lease("10.5.1.0/24", OWN_IP.octets(), 1, 5), "PublicIP 10.99.0.11 is ours"),
    ];
    for (odd, cause) in cases {
        let key = SubnetKey::new(odd.subnet).to_string();
        let mut table = table();
        let changes = table.apply(put(odd));
        if cause.is_empty() {
            assert_eq!((table.peers().count(), table.oddities().len()), (1, 0));
            continue;
        }
        assert_eq!(changes, Changes { leases: true, ..Changes::default() }, "{cause}");
        assert_eq!(table.peers().count(), 0, "{cause}");
        let oddities = table.oddities();
        assert!(oddities[0].contains(&key) && oddities[0].contains(cause), "{oddities:?}");
    }
}

#[test]
fn shared_addresses_and_overlaps_are_told() {
    let mut table = table();
    table.apply(put(lease("10.5.0.0/20", [10, 99, 0, 12], 1, 5)));
    table.apply(put(lease("10.5.1.0/24", [10, 99, 0, 13], 2, 6)));
    table.apply(put(lease("10.5.9.0/24", [10, 99, 0, 13], 3, 7)));
    table.apply(put(lease("10.5.16.0/24", [10, 99, 0, 14], 4, 8)));
    assert_eq!(
        table.oddities(),
        [
            "PublicIP 10.99.0.13 is in 2 leases: 10.5.1.0-24, 10.5.9.0-24",
            "lease 10.5.0.0-20 overlaps 10.5.1.0-24, 10.5.9.0-24",
        ]
    );
    assert_eq!(table.peers().count(), 4);
    // One that overlaps all says so once, and the same with each further lease.
    for third in 0..100 {
        table.apply(put(lease(&format!("10.5.{third}.0/25"), [10, 99, 1, third], 9, 9)));
    }
    let oddities = table.oddities();
    assert!(oddities[1].ends_with("10.5.5.0-25, 10.5.6.0-25 and others"), "{oddities:?}");
}

#[test]
fn oddities_are_bounded() {
    let mut table = table();
    for third in 0..200 {
        table.apply(put(lease(&format!("10.6.{third}.0/24"), [10, 99, 0, 12], 1, 5)));
    }
    let oddities = table.oddities();
    assert_eq!(oddities.len(), ODDITIES + 1);
    assert_eq!(oddities[ODDITIES], "168 more are not listed");
}

#[test]
fn what_a_lease_says_stays_on_its_line() {
    let mut table = table();
    let mut hostile = lease("10.5.1.0/24", [10, 99, 0, 12], 1, 5);
    hostile.attrs.backend_type = format!("x\nERROR all is lost\x1b[2J{}", "y".repeat(1 << 20));
    table.apply(put(hostile));
    let oddities = table.oddities();
    assert!(oddities[0].contains("x\\nERROR all is lost\\u{1b}[2Jyyy"), "{oddities:?}");
    assert!(oddities[0].len() < 2 * text::REASON, "{}", oddities[0].len());
}

/// One step of a store's life: which subnet, and who holds it from then on.
fn steps() -> impl Strategy<Value = Vec<(u8, Option<(u8, u8)>)>> {
    prop::collection::vec((0u8..6, prop::option::of((10u8..14, 0u8..4))), 0..40)
}

fn nth(n: u8) -> String {
    // Two of them nest, one is ours, one is outside the network.
    ["10.5.1.0/24", "10.5.2.0/24", "10.5.0.0/22", "10.5.27.0/24", "10.6.0.0/24", "10.5.9.0/24"]
        [usize::from(n)]
    .to_owned()
}

proptest! {
    #[test]
    fn a_snapshot_gives_the_table_that_the_single_steps_give(
        steps in steps(),
        snapshot_at in 0usize..40,
    ) {
        let mut stepwise = table();
        let mut resynced = table();
        let mut store: BTreeMap<Ipv4Network, Lease> = BTreeMap::new();
        let mut reported: BTreeMap<Ipv4Network, Peer> = BTreeMap::new();
        for (n, (subnet, holder)) in steps.iter().enumerate() {
            let revision = i64::try_from(n).unwrap() + 1;
            let text = nth(*subnet);
            let update = match holder {
                Some((ip, mac)) => {
                    let lease = lease(&text, [10, 99, 0, *ip], *mac, revision);
                    store.insert(lease.subnet, lease.clone());
                    put(lease)
                }
                None => {
                    store.remove(&net(&text));
                    removed(&text, revision)
                }
            };
            let changes = stepwise.apply(update.clone());
            // Following only what the changes name gives all peers.
            let peers: BTreeMap<_, _> = stepwise.peers().map(|peer| (peer.subnet, peer)).collect();
            for subnet in changes.peers {
                match peers.get(&subnet) {
                    Some(peer) => prop_assert_ne!(reported.insert(subnet, *peer), Some(*peer)),
                    None => prop_assert!(reported.remove(&subnet).is_some()),
                }
            }
            prop_assert_eq!(&reported, &peers);
            // The other table misses everything up to its snapshot.
            if n > snapshot_at {
                resynced.apply(update);
            } else if n == snapshot_at {
                let leases: Vec<_> = store.values().cloned().collect();
                resynced.apply(snapshot(&leases, revision));
            }
        }
        let all: Vec<_> = store.into_values().collect();
        let revision = i64::try_from(steps.len()).unwrap();
        if snapshot_at >= steps.len() {
            resynced.apply(snapshot(&all, revision));
        }
        prop_assert_eq!(&stepwise, &resynced);
        prop_assert_eq!(stepwise.oddities(), resynced.oddities());
        prop_assert!(stepwise.apply(snapshot(&all, revision)).peers.is_empty());
    }
}

#[test]
fn a_link_local_public_ip_is_told_and_used() {
    let mut table = table();
    table.apply(snapshot(&[lease("10.5.7.0/24", [169, 254, 3, 7], 7, 2)], 30));
    assert_eq!(table.peers().count(), 1);
    let told = "lease 10.5.7.0-24 has the link-local PublicIP 169.254.3.7";
    assert!(table.oddities()[0].starts_with(told), "{:?}", table.oddities());
    // All nodes may be on one such link.
    table.set_own(Some(net("10.5.27.0/24")), Ipv4Addr::new(169, 254, 3, 1));
    assert_eq!(table.oddities(), [""; 0]);
}
