//! The store is another one than before, or says something else.

use std::time::{Duration, Instant};

use flannel_core::health::Subject;
use flannel_tests::agent::Options;
use flannel_tests::etcd::PREFIX;
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::told::complaint;
use flannel_tests::wait;

const SECOND: Duration = Duration::from_secs(1);
const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn lease_of(n: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.0.2.{n}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:5e:00:53:{n}"}}}}"#
    )
}

/// The three peers that never write again.
fn silent(node: &Node) -> bool {
    let (routes, fdb) =
        (node.netns.ip("route show"), node.netns.sh("bridge fdb show dev flannel.1"));
    (71..=73).all(|n| {
        routes.contains(&format!("10.244.{}.0/24", 130 + n))
            && fdb.contains(&format!("02:00:5e:00:53:{n} dst 192.0.2.{n}"))
    })
}

fn unwell(node: &Node, subject: Subject) -> Option<String> {
    complaint(&node.try_status()?, subject).map(str::to_owned)
}

/// A pair, and three peers beside it, whose etcd is exchanged for what `arrange`
/// makes. Whatever that is, nobody loses a packet; and then the old one is back.
#[track_caller]
fn exchanged(api: &str, token: &'static str, subject: Subject, words: &[&str]) {
    let lab = Lab::new();
    let options = Options { extra: vec![format!("--etcd-api={api}")], ..Options::ebpf() };
    let etcd = lab.empty_etcd();
    let put = |etcd: &flannel_tests::etcd::Etcd, key: &str, value: &str| match api {
        "v2" => etcd.put_v2(&format!("{PREFIX}/{key}"), value, None),
        _ => drop(etcd.ctl(&["put", &format!("{PREFIX}/{key}"), value])),
    };
    put(&etcd, "config", CONFIG);
    for n in 71..=73 {
        put(&etcd, &format!("subnets/10.244.{}.0-24", 130 + n), &lease_of(n));
    }
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    left.start(&etcd, &options);
    right.start(&etcd, &options);
    left.wait_routes(&[&right]);
    right.wait_routes(&[&left]);
    assert!(silent(&left), "the peers");
    let mut pair = Pair::with_pods(lab, etcd, left, right);

    let running = pair.start_spaced(8 * SECOND);
    pair.etcd.restart_with("elsewhere", token);
    put(&pair.etcd, "config", CONFIG);
    for node in [&pair.left, &pair.right] {
        wait::holds(subject.text(), 15 * SECOND, || unwell(node, subject).is_some());
        wait::holds(&words.join(", "), 10 * SECOND, || {
            unwell(node, subject).is_some_and(|why| words.iter().all(|word| why.contains(word)))
        });
        assert!(node.agent_log().contains(" ERROR "), "{}", node.agent_log());
    }
    assert_eq!(running.finish().lost, 0);
    assert!(silent(&pair.left) && silent(&pair.right), "peers were removed");
    let errors = |node: &Node| node.agent_log().matches(" ERROR ").count();
    assert_eq!((errors(&pair.left), errors(&pair.right)), (1, 1), "{}", pair.left.agent_log());

    pair.etcd.restart_with("etcd", "lab");
    for node in [&pair.left, &pair.right] {
        wait::holds("all to be well", 15 * SECOND, || {
            unwell(node, subject).is_none() && node.status().store.connected
        });
        assert!(silent(node));
    }
    put(&pair.etcd, "subnets/10.244.204.0-24", &lease_of(74));
    wait::holds("the next peer", 5 * SECOND, || {
        pair.left.netns.ip("route show").contains("10.244.204.0/24")
    });
}

#[test]
fn etcd_comes_back_empty() {
    exchanged("v3", "lab", Subject::StoreHistory, &["went back", "restart the agent"]);
}

#[test]
fn etcd_comes_back_empty_by_v2() {
    exchanged("v2", "lab", Subject::StoreHistory, &["went back", "restart the agent"]);
}

#[test]
fn etcd_comes_back_as_another_cluster() {
    exchanged("v3", "other", Subject::Store, &["cluster", "restart the agent"]);
}

#[test]
fn connections_to_etcd_follow_the_address() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.start(&etcd, &Options::kernel());
    node.netns.ip("address del 192.0.2.11/24 dev eth0");
    node.netns.ip("address add 192.0.2.61/24 dev eth0");
    let changed = Instant::now();
    wait::holds("a connection from the new address", 2 * SECOND, || {
        node.netns.sh("ss -tnH state established dport = 2379").contains("192.0.2.61:")
    });
    // A second, and what looking costs on a busy machine.
    let limit = (2 * SECOND).saturating_sub(changed.elapsed());
    wait::holds("the lease", limit, || etcd.subnets()[0].1.contains("192.0.2.61"));
    etcd.put_subnet("10.244.203.0-24", &lease_of(73));
    wait::holds("a new peer", SECOND, || node.netns.ip("route show").contains("10.244.203.0/24"));
}

#[test]
fn a_config_that_changes_is_told_and_then_nothing_of_the_old_one_is_left() {
    let extra = vec!["--resync-interval=1".to_owned()];
    let options = Options { ip_masq: true, extra, ..Options::default() };
    for backend in ["vxlan", "udp", "host-gw"] {
        let lab = Lab::new();
        let etcd = lab.empty_etcd();
        let config = |network: &str| {
            format!(r#"{{"Network":"{network}","Backend":{{"Type":"{backend}"}}}}"#)
        };
        etcd.put_config(&config("10.244.0.0/16"));
        let (mut node, mut peer) = (lab.node(1), lab.node(2));
        for node in [&mut node, &mut peer] {
            node.start(&etcd, &options);
        }
        if backend != "udp" {
            node.wait_routes(&[&peer]);
        }
        etcd.put_config(&config("10.77.0.0/16"));
        wait::holds("a word", 15 * SECOND, || unwell(&node, Subject::NetworkConfig).is_some());
        let reason = unwell(&node, Subject::NetworkConfig).expect("a reason");
        assert!(reason.contains("Network 10.77.0.0/16 for 10.244.0.0/16"), "{reason}");
        for node in [&mut node, &mut peer] {
            node.stop_agent();
            node.start(&etcd, &options);
        }
        assert_eq!(node.subnet().to_string().split('.').nth(1), Some("77"));
        let left = || {
            let text = node.netns.ip("address show") + &node.netns.ip("route show table all");
            text + &node.netns.sh("nft list ruleset")
        };
        std::thread::sleep(2 * SECOND);
        let old: Vec<_> =
            left().lines().filter(|line| line.contains("10.244.")).map(str::to_owned).collect();
        assert!(old.is_empty(), "{backend}: {old:?}");
        etcd.ctl(&["del", &format!("{PREFIX}/config")]);
        wait::holds("a word", 15 * SECOND, || {
            unwell(&node, Subject::NetworkConfig)
                .is_some_and(|reason| reason.contains("was deleted"))
        });
    }
}

#[test]
fn a_lost_lease_ends_the_agent_if_that_is_wished() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    let extra = vec!["--on-lost-lease=exit".to_owned()];
    node.start(&etcd, &Options { extra, ..Options::kernel() });
    etcd.delete_subnet(&flannel_tests::plain::key(node.subnet()));
    let status = node.wait_end(5 * SECOND);
    assert_eq!(status.code(), Some(4));
    let log = node.agent_log();
    assert!(log.contains("is lost: it was deleted") && log.contains("on-lost-lease"), "{log}");
    assert!(etcd.subnets().is_empty(), "it was claimed again");
}
