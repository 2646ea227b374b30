//! The store is away, comes back, holds nonsense.

use std::thread;
use std::time::Duration;

use flannel_core::status::Status;
use flannel_tests::agent::Options;
use flannel_tests::etcd::PREFIX;
use flannel_tests::lab::Lab;
use flannel_tests::load::SPACED;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::told::words;
use flannel_tests::wait;

const SECOND: Duration = Duration::from_secs(1);

fn connected(node: &Node) -> bool {
    node.status().store.connected
}

fn value(public_ip: &str, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

fn has_peer(node: &Node, subnet: &str, public_ip: &str, mac: &str) -> bool {
    let network = subnet.split('/').next().expect("an address");
    let fdb = node.netns.sh("bridge fdb show dev flannel.1");
    node.netns.ip("route show dev flannel.1").contains(&format!("{subnet} via {network}"))
        && node.netns.ip("neigh show dev flannel.1").contains(&format!("{network} lladdr {mac}"))
        && fdb.contains(&format!("{mac} dst {public_ip}"))
}

/// Nothing of a peer is left, by its subnet, address or MAC.
fn has_nothing_of(node: &Node, words: &[&str]) -> bool {
    let all = [
        node.netns.ip("route show dev flannel.1"),
        node.netns.ip("neigh show dev flannel.1"),
        node.netns.sh("bridge fdb show dev flannel.1"),
    ];
    !all.iter().any(|text| words.iter().any(|word| text.contains(word)))
}

#[test]
fn etcd_away_for_ten_seconds() {
    let mut pair = Pair::agents(&Options::ebpf());
    let running = pair.start_spaced(15 * SECOND);
    pair.etcd.kill();
    wait::holds("status to tell", 10 * SECOND, || !connected(&pair.left));
    let detail = pair.left.status().store.detail.expect("a reason");
    assert!(detail.contains("192.0.2.1:2379"), "{detail}");
    assert_eq!(pair.left.peers().len(), 1, "peers stay");
    thread::sleep(10 * SECOND);
    pair.etcd.restart();
    wait::holds("reconnection", 15 * SECOND, || connected(&pair.left));
    assert_eq!(running.finish().lost, 0);
    // And what is written now is followed.
    pair.etcd.put_subnet("10.244.203.0-24", &value("192.0.2.77", "02:00:5e:00:53:77"));
    wait::holds("the new peer", 5 * SECOND, || {
        has_peer(&pair.left, "10.244.203.0/24", "192.0.2.77", "02:00:5e:00:53:77")
    });
}

#[test]
fn etcd_that_hangs_for_ten_seconds() {
    let pair = Pair::agents(&Options::ebpf());
    let running = pair.start_spaced(12 * SECOND);
    pair.etcd.freeze();
    thread::sleep(10 * SECOND);
    pair.etcd.thaw();
    pair.etcd.put_subnet("10.244.203.0-24", &value("192.0.2.77", "02:00:5e:00:53:77"));
    wait::holds("the new peer", 20 * SECOND, || {
        has_peer(&pair.left, "10.244.203.0/24", "192.0.2.77", "02:00:5e:00:53:77")
    });
    assert_eq!(running.finish().lost, 0);
}

#[test]
fn compaction_while_disconnected() {
    let mut pair = Pair::agents(&Options::ebpf());
    pair.etcd.put_subnet("10.244.203.0-24", &value("192.0.2.73", "02:00:5e:00:53:73"));
    pair.etcd.put_subnet("10.244.204.0-24", &value("192.0.2.74", "02:00:5e:00:53:74"));
    let left = &pair.left;
    wait::holds("both peers", 5 * SECOND, || {
        has_peer(left, "10.244.203.0/24", "192.0.2.73", "02:00:5e:00:53:73")
            && has_peer(left, "10.244.204.0/24", "192.0.2.74", "02:00:5e:00:53:74")
    });
    left.netns.nft(
        "table inet apart { chain out { type filter hook output priority 0; tcp dport 2379 drop; };
            chain in { type filter hook input priority 0; tcp sport 2379 drop; }; }",
    );
    // Without this the old connection would go on where it was.
    pair.etcd.restart();
    pair.etcd.put_subnet("10.244.203.0-24", &value("192.0.2.83", "02:00:5e:00:53:83"));
    pair.etcd.delete_subnet("10.244.204.0-24");
    pair.etcd.put_subnet("10.244.205.0-24", &value("192.0.2.75", "02:00:5e:00:53:75"));
    pair.etcd.compact();
    wait::holds("status to tell", 40 * SECOND, || !connected(left));
    assert_eq!(pair.traffic(SPACED, "--seconds 0.5").lost, 0);
    left.netns.sh("nft delete table inet apart");
    wait::holds("the changed peer", 40 * SECOND, || {
        has_peer(left, "10.244.203.0/24", "192.0.2.83", "02:00:5e:00:53:83")
    });
    wait::holds("the added peer", SECOND, || {
        has_peer(left, "10.244.205.0/24", "192.0.2.75", "02:00:5e:00:53:75")
    });
    wait::holds("the end of what is old", SECOND, || {
        has_nothing_of(left, &["10.244.204.0", "02:00:5e:00:53:74", "02:00:5e:00:53:73"])
    });
    assert_eq!(pair.traffic(SPACED, "--seconds 0.5").lost, 0);
}

#[test]
fn peers_that_changed_while_the_agent_was_down() {
    let mut pair = Pair::agents(&Options::ebpf());
    pair.etcd.put_subnet("10.244.203.0-24", &value("192.0.2.73", "02:00:5e:00:53:73"));
    pair.etcd.put_subnet("10.244.204.0-24", &value("192.0.2.74", "02:00:5e:00:53:74"));
    wait::holds("both peers", 5 * SECOND, || pair.left.peers().len() == 3);
    pair.left.kill_agent();
    pair.etcd.put_subnet("10.244.203.0-24", &value("192.0.2.83", "02:00:5e:00:53:83"));
    pair.etcd.delete_subnet("10.244.204.0-24");
    // Somebody else's, on other devices: stay.
    pair.left.netns.ip("route add 10.99.0.0/24 via 192.0.2.1");
    pair.left.netns.ip("neigh replace 192.0.2.99 lladdr 02:00:5e:00:53:99 dev eth0 nud permanent");
    pair.left.start(&pair.etcd, &Options::ebpf());
    wait::holds("the changed peer", 5 * SECOND, || {
        has_peer(&pair.left, "10.244.203.0/24", "192.0.2.83", "02:00:5e:00:53:83")
    });
    wait::holds("the end of what is old", SECOND, || {
        has_nothing_of(&pair.left, &["10.244.204.0", "02:00:5e:00:53:74", "02:00:5e:00:53:73"])
    });
    assert!(pair.left.netns.ip("route show").contains("10.99.0.0/24"));
    assert!(pair.left.netns.ip("neigh show dev eth0").contains("192.0.2.99"));
}

#[test]
fn etcd_absent_at_the_start() {
    let lab = Lab::new();
    let mut etcd = lab.stopped_etcd();
    let mut node = lab.node(1);
    node.launch(&etcd, &Options::ebpf());
    wait::holds("status while waiting", 10 * SECOND, || {
        node.try_status().is_some_and(|Status { store, .. }| {
            !store.connected && store.detail.is_some_and(|why| why.contains("192.0.2.1:2379"))
        })
    });
    assert!(node.agent_log().contains("192.0.2.1:2379"), "{}", node.agent_log());
    assert!(!node.notifications().iter().any(|line| line == "READY=1"));
    assert!(node.agent_ended().is_none());
    etcd.restart();
    etcd.put_config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
    node.wait_ready(20 * SECOND);
}

/// An agent that meets `config` says `word` with the key's name, and is ready
/// soon after the config has become right.
#[track_caller]
fn says_and_recovers(config: &str, word: &str) {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    if !config.is_empty() {
        etcd.put_config(config);
    }
    let mut node = lab.node(1);
    node.launch(&etcd, &Options::kernel());
    let said = |text: &str| text.contains(word) && text.contains(&format!("{PREFIX}/config"));
    wait::holds(word, 10 * SECOND, || said(&node.agent_log()));
    if node.agent_ended().is_some() {
        // Refused for good: after a clear word the agent may leave it to its
        // service manager to start it again.
        return;
    }
    let said = words(&node.status());
    assert!(said.contains(word), "{said}");
    etcd.put_config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
    node.wait_ready(20 * SECOND);
}

#[test]
fn config_absent() {
    says_and_recovers("", "config");
}

#[test]
fn config_is_no_json() {
    says_and_recovers("{\"Network\": garbage", "line 1");
}

#[test]
fn config_network_too_small() {
    says_and_recovers(
        r#"{"Network":"10.244.0.0/29","Backend":{"Type":"vxlan"}}"#,
        "network is too small. Minimum useful network prefix is /28",
    );
}

#[test]
fn config_backend_unknown() {
    says_and_recovers(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"nope"}}"#, "nope");
}

#[test]
fn garbage_among_the_leases() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    etcd.put_subnet("hello", "world");
    etcd.put_subnet("10.244.230.0-24", "garbage");
    etcd.put_subnet("10.244.231.0-24", r#"{"PublicIP":"192.0.2.71","BackendType":"vxlan"}"#);
    etcd.put_subnet("10.244.232.0-24", r#"{"PublicIP":"192.0.2.72","BackendType":"host-gw"}"#);
    etcd.put_subnet("10.244.203.0-24", &value("192.0.2.73", "02:00:5e:00:53:73"));
    let mut node = lab.node(1);
    node.start(&etcd, &Options::ebpf());
    wait::holds("the one good peer", 5 * SECOND, || {
        has_peer(&node, "10.244.203.0/24", "192.0.2.73", "02:00:5e:00:53:73")
    });
    // While running, too; and a good one after it.
    etcd.put_subnet("10.244.233.0-24", "{\"PublicIP\":7}");
    etcd.put_subnet("10.244.204.0-24", &value("192.0.2.74", "02:00:5e:00:53:74"));
    wait::holds("the next good peer", 5 * SECOND, || {
        has_peer(&node, "10.244.204.0/24", "192.0.2.74", "02:00:5e:00:53:74")
    });
    assert_eq!(node.netns.ip("route show dev flannel.1").lines().count(), 2);
    for key in ["subnets/hello", "10.244.230.0-24", "10.244.231.0-24", "10.244.233.0-24"] {
        wait::holds(&format!("a word about {key}"), 5 * SECOND, || {
            node.status().ignored.join("\n").contains(key) && node.agent_log().contains(key)
        });
    }
    // What we cannot read is not ours to delete.
    assert_eq!(etcd.subnets().len(), 8, "{:?}", etcd.subnets());
}

#[test]
fn a_moved_and_a_leaving_peer() {
    let pair = Pair::agents(&Options::ebpf());
    let key = "10.244.203.0-24";
    pair.etcd.put_subnet(key, &value("192.0.2.73", "02:00:5e:00:53:73"));
    wait::holds("the peer", 5 * SECOND, || {
        has_peer(&pair.left, "10.244.203.0/24", "192.0.2.73", "02:00:5e:00:53:73")
    });
    pair.etcd.put_subnet(key, &value("192.0.2.83", "02:00:5e:00:53:83"));
    wait::holds("the moved peer", 5 * SECOND, || {
        has_peer(&pair.left, "10.244.203.0/24", "192.0.2.83", "02:00:5e:00:53:83")
            && has_nothing_of(&pair.left, &["192.0.2.73", "02:00:5e:00:53:73"])
    });
    pair.etcd.delete_subnet(key);
    wait::holds("the end of the peer", 5 * SECOND, || {
        has_nothing_of(&pair.left, &["10.244.203.0", "02:00:5e:00:53:83"])
            && pair.left.peers().len() == 1
    });
}

#[test]
fn the_same_subnet_after_a_reboot() {
    let mut pair = Pair::agents(&Options::kernel());
    let (subnet, mac) = (pair.left.subnet(), pair.left.vtep_mac());
    pair.left.kill_agent();
    pair.left.netns.ip("link delete flannel.1");
    std::fs::remove_file(pair.left.subnet_file()).expect("remove subnet.env");
    pair.left.start(&pair.etcd, &Options::kernel());
    assert_eq!((pair.left.subnet(), pair.left.vtep_mac()), (subnet, mac));
}
