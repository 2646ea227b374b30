//! Who a node is: its subnet and MAC stay with it, and nobody else's are taken.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use flannel_core::health::Subject;
use flannel_tests::agent::Options;
use flannel_tests::etcd::{Etcd, PREFIX};
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::plain::key;
use flannel_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
        pair.left.complains(Subject::LostLease, "192.0.2.99")
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

/// Forgets all that a node keeps, as a new installation does.
fn install_anew(node: &mut Node) {
    node.kill_agent();
    node.netns.ip("link delete flannel.1");
    fs::remove_file(node.subnet_file()).expect("remove subnet.env");
    fs::remove_dir_all(node.state_dir()).expect("remove the state directory");
}

/// Gives a stopped node another address, as a new DHCP lease does.
fn readdress(node: &mut Node, address: Ipv4Addr) {
    node.netns.ip(&format!("address delete {}/24 dev eth0", node.address));
    node.netns.ip(&format!("address add {address}/24 dev eth0"));
    node.netns.ip("route replace default via 192.0.2.1");
    node.address = address;
}

/// Keys and values without questions, by this API.
fn leases(etcd: &Etcd, api: &str) -> Vec<(String, String)> {
    let leases = if api == "v2" { etcd.subnets_v2() } else { etcd.subnets() };
    assert!(!leases.iter().any(|(_, value)| value.contains("AskedBy")), "{leases:?}");
    leases
}

/// An etcd with the same config by both APIs.
fn both_apis(lab: &Lab) -> Etcd {
    let etcd = lab.etcd();
    let config = etcd.ctl(&["get", "--print-value-only", &format!("{PREFIX}/config")]);
    etcd.put_v2(&format!("{PREFIX}/config"), config.trim(), None);
    etcd
}

fn refuses_a_duplicate(api: &str) {
    let lab = Lab::new();
    let etcd = both_apis(&lab);
    let by = format!("--etcd-api={api}");
    let own = Options { extra: vec![by.clone()], ..Options::kernel() };
    let same = Options { extra: vec![by, "--public-ip=192.0.2.11".into()], ..Options::kernel() };
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    left.start(&etcd, &own);
    let (subnet, mac) = (left.subnet(), left.vtep_mac());
    let before = leases(&etcd, api);
    // As often as a service manager starts it again.
    for _ in 0..5 {
        right.launch(&etcd, &same);
        assert_eq!(right.wait_end(20 * SECOND).code(), Some(1));
        assert_eq!(leases(&etcd, api), before, "the lease is what it was");
    }
    let log = right.agent_log();
    for word in ["PublicIP 192.0.2.11 is another node's", &subnet.to_string(), &mac, "-public-ip"] {
        assert!(log.contains(word), "no {word} in {log}");
    }
    assert!(!right.subnet_file().exists() && !right.netns.ip("link").contains("flannel.1"));
    assert!(left.agent_log().contains("another node was started with our PublicIP"));
    assert_eq!((left.subnet(), left.vtep_mac()), (subnet, mac));
    assert_eq!(left.not_well(), []);
    // Put right, it starts.
    right.start(&etcd, &own);
    assert_ne!(right.subnet(), subnet);
    assert_eq!(leases(&etcd, api).len(), 2);
}

#[test]
fn a_duplicate_public_ip_is_refused_with_v3() {
    refuses_a_duplicate("v3");
}

#[test]
fn a_duplicate_public_ip_is_refused_with_v2() {
    refuses_a_duplicate("v2");
}

#[test]
fn a_duplicate_public_ip_is_refused_while_both_apis_are_used() {
    let lab = Lab::new();
    let etcd = both_apis(&lab);
    let options = |api: &str, flag: &str| Options {
        extra: vec![format!("--etcd-api={api}"), flag.to_owned()],
        ..Options::kernel()
    };
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    left.start(&etcd, &options("both", "--ip-masq=false"));
    let before = (etcd.subnets(), etcd.subnets_v2());
    for api in ["both", "v3", "v2"] {
        right.launch(&etcd, &options(api, "--public-ip=192.0.2.11"));
        assert_eq!(right.wait_end(20 * SECOND).code(), Some(1), "{api}");
        wait::holds("the lease as it was", 5 * SECOND, || {
            (etcd.subnets(), etcd.subnets_v2()) == before
        });
    }
}

#[test]
fn a_node_that_was_installed_anew_has_its_subnet_again() {
    let mut pair = Pair::agents(&Options::kernel());
    let (subnet, mac) = (pair.left.subnet(), pair.left.vtep_mac());
    install_anew(&mut pair.left);
    let start = Instant::now();
    pair.left.start(&pair.etcd, &Options::kernel());
    let took = start.elapsed();
    assert!(took < 10 * SECOND, "{took:?}");
    assert_eq!(pair.left.subnet(), subnet);
    let new = pair.left.vtep_mac();
    assert_ne!(new, mac, "a MAC of its own");
    wait::holds("the peer to follow", 5 * SECOND, || {
        let entries = pair.right.netns.sh("bridge fdb show dev flannel.1");
        entries.contains(&new) && !entries.contains(&mac)
    });
    assert_eq!(leases(&pair.etcd, "v3").len(), 2);
    wait::holds("traffic again", 5 * SECOND, || {
        pair.client.netns.ping(pair.server.address, "-c 1 -W 1").0
    });
}

fn moves_while_stopped(api: &str) {
    let lab = Lab::new();
    let etcd = both_apis(&lab);
    let options = Options { extra: vec![format!("--etcd-api={api}")], ..Options::kernel() };
    let (mut node, mut peer) = (lab.node(1), lab.node(2));
    node.start(&etcd, &options);
    peer.start(&etcd, &options);
    let (subnet, mac) = (node.subnet(), node.vtep_mac());
    // As over a reboot.
    node.kill_agent();
    node.netns.ip("link delete flannel.1");
    fs::remove_file(node.subnet_file()).expect("remove subnet.env");
    readdress(&mut node, Ipv4Addr::new(192, 0, 2, 61));
    node.start(&etcd, &options);
    assert_eq!((node.subnet(), node.vtep_mac()), (subnet, mac.clone()));
    let apis: &[&str] = if api == "both" { &["v2", "v3"] } else { &[api] };
    for api in apis {
        let leases = leases(&etcd, api);
        let ours = leases.iter().find(|(at, _)| *at == key(subnet)).expect("the lease");
        assert!(ours.1.contains("192.0.2.61") && ours.1.contains(&mac), "{leases:?}");
        assert_eq!(leases.len(), 2, "{leases:?}");
    }
    wait::holds("the peer to follow", 5 * SECOND, || {
        let entries = peer.netns.sh("bridge fdb show dev flannel.1");
        entries.contains(&format!("{mac} dst 192.0.2.61")) && !entries.contains("192.0.2.11")
    });
}

#[test]
fn an_address_that_changed_while_stopped_takes_the_lease_along() {
    moves_while_stopped("v3");
}

#[test]
fn an_address_that_changed_while_stopped_takes_the_lease_along_with_v2() {
    moves_while_stopped("v2");
}

#[test]
fn an_address_that_changed_while_stopped_takes_both_leases_along() {
    moves_while_stopped("both");
}

#[test]
fn a_copy_of_a_running_node_gets_an_identity_of_its_own() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let (mut left, mut clone) = (lab.node(1), lab.node(2));
    left.start(&etcd, &Options::kernel());
    let before = leases(&etcd, "v3");
    fs::create_dir_all(clone.state_dir()).expect("a state directory");
    for (from, to) in [
        (left.state_dir().join("state.json"), clone.state_dir().join("state.json")),
        (left.subnet_file(), clone.subnet_file()),
    ] {
        fs::copy(from, to).expect("copy");
    }
    clone.start(&etcd, &Options::kernel());
    assert_ne!(clone.subnet(), left.subnet());
    assert_ne!(clone.vtep_mac(), left.vtep_mac());
    assert!(clone.agent_log().contains("is a copy of a running node's"));
    let after = leases(&etcd, "v3");
    assert!(after.len() == 2 && after.contains(&before[0]), "{after:?}");
    clone.wait_routes(&[&left]);
    left.wait_routes(&[&clone]);
}

#[test]
fn two_nodes_with_one_public_ip_are_told_so() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    let same = Options { extra: vec!["--public-ip=192.0.2.77".to_owned()], ..Options::kernel() };
    left.start(&etcd, &same);
    // A holder that cannot answer at the moment.
    let pid = Pid::from_raw(left.agent_pid().cast_signed());
    kill(pid, Signal::SIGSTOP).expect("SIGSTOP");
    right.start(&etcd, &same);
    assert_ne!(left.vtep_mac(), right.vtep_mac());
    kill(pid, Signal::SIGCONT).expect("SIGCONT");
    wait::holds("both to say so", 20 * SECOND, || {
        [&left, &right].iter().all(|node| node.complains(Subject::ContestedLease, "192.0.2.77"))
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
