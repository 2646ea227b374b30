//! What happens to etcd and what it holds.

use std::thread;
use std::time::Duration;

use super::{Act, Cluster, Fault};
use crate::faults::lease;
use flannel_core::health::Subject;
use serde_json::Value;

/// As the lab writes it.
const JSON: &str = r#"{"Network":"10.244.0.0/16","SubnetLen":24,"SubnetMax":"10.244.199.0","Backend":{"Type":"vxlan","VNI":1}}"#;

pub(in super::super) const STORE: &[Fault] = &[
    Fault::lasting(
        "etcd is killed",
        Act::Do(|cluster| cluster.pair.etcd.kill()),
        3000,
        Act::Do(|cluster| cluster.pair.etcd.restart()),
    )
    .told(Subject::Store)
    .restored(5000),
    Fault::lasting(
        "etcd hangs",
        Act::Do(|cluster| cluster.pair.etcd.freeze()),
        4000,
        Act::Do(|cluster| cluster.pair.etcd.thaw()),
    )
    .restored(5000),
    Fault::lasting(
        "etcd compacts while it is away",
        Act::Do(|cluster| cluster.pair.etcd.compact()),
        100,
        Act::Do(|cluster| cluster.pair.etcd.restart()),
    )
    .restored(5000),
    // The other node has no peer for a moment.
    Fault::lasting("our lease is deleted", Act::Do(delete_ours), 0, Act::Nothing)
        .loss(600)
        .rewrites(),
    Fault::lasting(
        "our lease is garbage",
        Act::Do(|cluster| put_ours(cluster, "{\"PublicIP\":\u{1b}[31m")),
        0,
        Act::Nothing,
    )
    .loss(600)
    .rewrites(),
    Fault::lasting(
        "another node takes our lease",
        Act::Do(|cluster| {
            put_ours(cluster, &lease("192.0.2.99", "02:00:5e:00:53:99"));
        }),
        2500,
        Act::Do(delete_ours),
    )
    // The other node sends to whom the lease names.
    .loss(4500)
    .rewrites()
    .told(Subject::LostLease),
    Fault::lasting(
        "a peer's lease is hostile",
        Act::Do(|cluster| {
            let hostile = format!("{{\"PublicIP\":\"{}\"}}", "\u{1b}]0;\\n".repeat(5000));
            cluster.pair.etcd.put_subnet("10.244.206.0-24", &hostile);
            cluster.pair.etcd.put_subnet("10.244.0.0-33", "[]");
            put_silent(cluster, &lease("192.0.2.11", "ff:ff:ff:ff:ff:ff"));
        }),
        2000,
        Act::Do(|cluster| {
            let ignored = cluster.pair.left.status().ignored.join(" ");
            for key in ["subnets/10.244.206.0-24 is not", "subnets/10.244.0.0-33 is not"] {
                assert!(ignored.contains(key), "{key}: {ignored}");
            }
            cluster.pair.etcd.delete_subnet("10.244.206.0-24");
            cluster.pair.etcd.delete_subnet("10.244.0.0-33");
            silent_again(cluster);
        }),
    ),
    Fault::lasting(
        "a peer's lease has our PublicIP",
        Act::Do(|cluster| put_silent(cluster, &lease("192.0.2.11", "02:00:5e:00:53:73"))),
        1000,
        Act::Do(|cluster| {
            let ignored = cluster.pair.left.status().ignored.join(" ");
            assert!(ignored.contains("PublicIP 192.0.2.11 is ours"), "{ignored}");
            silent_again(cluster);
        }),
    )
    .alone(),
    Fault::lasting(
        "a second peer has the peer's MAC",
        Act::Do(|cluster| {
            let mac = cluster.pair.right.vtep_mac();
            put_silent(cluster, &lease("192.0.2.73", &mac));
        }),
        1000,
        Act::Do(silent_again),
    )
    // The newer lease counts.
    .loss(2500)
    .told(Subject::Lease),
    // The next peer has its id in the programs' tables.
    Fault::lasting(
        "another peer comes where one was that the peer's packets were not of",
        Act::Do(|cluster| {
            let half = half_of_the_peer(cluster);
            cluster.pair.etcd.put_subnet(&half, &lease("192.0.2.77", "02:00:5e:00:53:77"));
            let named = || complains_of_the_source(cluster);
            flannel_tests::wait::holds("a complaint", Duration::from_secs(3), named);
            cluster.pair.etcd.delete_subnet(&half);
            cluster.pair.etcd.put_subnet(NEXT, &lease("192.0.2.78", "02:00:5e:00:53:78"));
        }),
        2000,
        Act::Do(|cluster| {
            assert!(!complains_of_the_source(cluster), "nothing came from the next one");
            cluster.pair.etcd.delete_subnet(NEXT);
        }),
    )
    .loss(4500)
    .programs(),
    Fault::lasting(
        "a peer comes and goes again and again",
        Act::Do(|cluster| {
            for _ in 0..30 {
                cluster.pair.etcd.delete_subnet(SILENT);
                silent_again(cluster);
            }
        }),
        0,
        Act::Nothing,
    ),
    Fault::lasting("our lease's time is taken away", Act::Try(revoke_ours), 0, Act::Nothing)
        .loss(600)
        .rewrites(),
    // Nothing can be written, and all can be read.
    Fault::lasting(
        "etcd is full, and our lease is deleted",
        Act::Do(|cluster| {
            cluster.pair.etcd.fill();
            delete_ours(cluster);
        }),
        2500,
        Act::Do(|cluster| cluster.pair.etcd.disarm()),
    )
    // The other node has no peer until the next try, which waits up to twice as long each
    // time.
    .loss(8000)
    .restored(6000)
    .told(Subject::Renewal)
    .rewrites()
    .alone(),
    Fault::lasting("etcd is slow", Act::Do(slow), 0, Act::Nothing).restored(5000),
    Fault::lasting(
        "etcd comes back empty, and then as it was",
        Act::Do(|cluster| cluster.pair.etcd.restart_with("elsewhere", "lab")),
        4000,
        Act::Do(|cluster| cluster.pair.etcd.restart_with("etcd", "lab")),
    )
    .restored(6000)
    .long(),
    Fault::lasting(
        "etcd is away for a minute",
        Act::Do(|cluster| cluster.pair.etcd.kill()),
        60_000,
        Act::Do(|cluster| cluster.pair.etcd.restart()),
    )
    .told(Subject::Store)
    .restored(8000)
    .long(),
];

/// Of the network config, which is read each minute, or each second in this suite.
pub(in super::super) const CONFIG: &[Fault] = &[
    Fault::lasting(
        "the network config is garbage",
        Act::Do(|cluster| cluster.pair.etcd.put_config("{\"Network\": garbage")),
        1500,
        Act::Do(|cluster| cluster.pair.etcd.put_config(JSON)),
    )
    .told(Subject::NetworkConfig),
    Fault::lasting(
        "the network config is deleted",
        Act::Do(|cluster| drop(cluster.pair.etcd.ctl(&["del", "/coreos.com/network/config"]))),
        1500,
        Act::Do(|cluster| cluster.pair.etcd.put_config(JSON)),
    )
    .told(Subject::NetworkConfig),
    Fault::lasting(
        "the network config is garbage, and then has another SubnetLen",
        Act::Do(|cluster| {
            cluster.pair.etcd.put_config("{\"Network\": garbage");
            thread::sleep(Duration::from_millis(1500));
            cluster.pair.etcd.put_config(&JSON.replace("\"SubnetLen\":24", "\"SubnetLen\":26"));
        }),
        1500,
        Act::Do(|cluster| cluster.pair.etcd.put_config(JSON)),
    )
    .told(Subject::NetworkConfig),
];

/// For four seconds it answers in one tenth of the time.
fn slow(cluster: &mut Cluster) {
    for _ in 0..4 {
        cluster.pair.etcd.freeze();
        thread::sleep(Duration::from_millis(900));
        cluster.pair.etcd.thaw();
        thread::sleep(Duration::from_millis(100));
    }
}

/// A peer without a node, as the cluster has it.
const SILENT: &str = "10.244.203.0-24";

fn put_silent(cluster: &Cluster, value: &str) {
    cluster.pair.etcd.put_subnet(SILENT, value);
}

fn silent_again(cluster: &mut Cluster) {
    put_silent(cluster, &lease("192.0.2.73", "02:00:5e:00:53:73"));
}

/// A subnet that nobody has.
const NEXT: &str = "10.244.207.0-24";

/// The key of the first half of the peer's subnet, in which its pod is.
fn half_of_the_peer(cluster: &Cluster) -> String {
    format!("{}-25", cluster.pair.right.subnet().network())
}

fn complains_of_the_source(cluster: &Cluster) -> bool {
    let health = cluster.pair.left.try_status().unwrap_or_default().health;
    health.iter().any(|line| line.subject == Subject::PeerSource)
}

/// Ends the etcd lease that ours hangs on.
fn revoke_ours(cluster: &mut Cluster) -> Result<(), String> {
    let etcd = &cluster.pair.etcd;
    let key = format!("{}/subnets/{}", etcd.prefix, key(cluster));
    let found: Value = serde_json::from_str(&etcd.ctl(&["get", &key, "-w", "json"])).expect("JSON");
    let id = found["kvs"][0]["lease"].as_i64().ok_or("our lease has no time")?;
    etcd.ctl(&["lease", "revoke", &format!("{id:x}")]);
    Ok(())
}

fn key(cluster: &Cluster) -> String {
    flannel_tests::plain::key(cluster.subnet)
}

fn delete_ours(cluster: &mut Cluster) {
    cluster.pair.etcd.delete_subnet(&key(cluster));
}

fn put_ours(cluster: &Cluster, value: &str) {
    cluster.pair.etcd.put_subnet(&key(cluster), value);
}
