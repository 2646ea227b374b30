//! Who a node is: its subnet and MAC stay with it, and nobody else's are taken.

use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::lab::Lab;
use flannel_tests::pair::Pair;
use flannel_tests::plain::key;
use flannel_tests::wait;

const SECOND: Duration = Duration::from_secs(1);

fn value(pair: &Pair, key: &str) -> Option<String> {
    pair.etcd.subnets().into_iter().find(|(found, _)| found == key).map(|(_, value)| value)
}

#[test]
fn an_address_that_changes_takes_lease_subnet_and_mac_along() {
    let pair = Pair::agents(&Options::kernel());
    let (subnet, mac) = (pair.left.subnet(), pair.left.vtep_mac());
    let netns = &pair.left.netns;
    netns.ip("address delete 192.0.2.11/24 dev eth0");
    netns.ip("address add 192.0.2.71/24 dev eth0");
    netns.ip("route replace default via 192.0.2.1");
    wait::holds("the lease to follow", 40 * SECOND, || {
        value(&pair, &key(subnet)).is_some_and(|text| text.contains(r#""PublicIP":"192.0.2.71""#))
    });
    let leases = pair.etcd.subnets();
    assert_eq!(leases.len(), 2, "{leases:?}");
    assert!(!leases.iter().any(|(_, value)| value.contains("192.0.2.11")), "{leases:?}");
    assert_eq!((pair.left.subnet(), pair.left.vtep_mac()), (subnet, mac.clone()));
    // The peer's FDB entry follows, and the old one does not stay.
    wait::holds("the peer to follow", 5 * SECOND, || {
        let entries = pair.right.netns.sh("bridge fdb show dev flannel.1");
        entries.contains(&format!("{mac} dst 192.0.2.71")) && !entries.contains("192.0.2.11")
    });
    wait::holds("traffic again", 5 * SECOND, || {
        pair.client.netns.ping(pair.server.address, "-c 1 -W 1").0
    });
}

#[test]
fn a_stolen_lease_is_told_and_not_taken_back() {
    let mut pair = Pair::agents(&Options::kernel());
    let subnet = pair.left.subnet();
    let thief = r#"{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:5e:00:53:99"}}"#;
    pair.etcd.put_subnet(&key(subnet), thief);
    wait::holds("the complaint", 10 * SECOND, || {
        let health = pair.left.status()["health"].to_string();
        health.contains("lost lease") && health.contains("192.0.2.99")
    });
    std::thread::sleep(2 * SECOND);
    assert_eq!(value(&pair, &key(subnet)).as_deref(), Some(thief), "nobody's lease is overwritten");
    assert!(pair.left.agent_ended().is_none(), "it goes on");
    // A restart gives another subnet, and the lease of the other one stays.
    assert!(pair.left.stop_agent().success());
    pair.left.start(&pair.etcd, &Options::kernel());
    assert_ne!(pair.left.subnet(), subnet);
    assert_eq!(value(&pair, &key(subnet)).as_deref(), Some(thief));
}

#[test]
fn two_nodes_with_one_public_ip_are_told_so() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    let same = Options { extra: vec!["--public-ip=192.0.2.77".to_owned()], ..Options::kernel() };
    for node in [&mut left, &mut right] {
        // With an address of its own first, so that each has a MAC of its own.
        node.start(&etcd, &Options::kernel());
        assert!(node.stop_agent().success());
        node.start(&etcd, &same);
    }
    wait::holds("both to say so", 20 * SECOND, || {
        [&left, &right].iter().all(|node| {
            let health = node.status()["health"].to_string();
            health.contains("contested lease") && health.contains("192.0.2.77")
        })
    });
    assert!(left.agent_ended().is_none() && right.agent_ended().is_none());
}

#[test]
fn an_own_lease_that_was_deleted_is_claimed_again() {
    let mut pair = Pair::agents(&Options::kernel());
    let subnet = pair.left.subnet();
    let before = value(&pair, &key(subnet)).expect("a lease");
    pair.etcd.delete_subnet(&key(subnet));
    wait::holds("the lease", 5 * SECOND, || value(&pair, &key(subnet)).as_ref() == Some(&before));
    assert!(pair.left.agent_ended().is_none());
    wait::holds("traffic", 5 * SECOND, || {
        pair.client.netns.ping(pair.server.address, "-c 1 -W 1").0
    });
}
