//! What happens to etcd and what it holds.

use super::{Act, Cluster, Fault};
use crate::faults::lease;
use flannel_core::health::Subject;

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
    Fault::lasting("our lease is deleted", Act::Do(delete_ours), 0, Act::Nothing).loss(600),
    Fault::lasting(
        "our lease is garbage",
        Act::Do(|cluster| put_ours(cluster, "{\"PublicIP\":\u{1b}[31m")),
        0,
        Act::Nothing,
    )
    .loss(600),
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
    .told(Subject::LostLease),
    Fault::lasting(
        "a peer's lease is hostile",
        Act::Do(|cluster| {
            let hostile = format!("{{\"PublicIP\":\"{}\"}}", "\u{1b}]0;\\n".repeat(5000));
            cluster.pair.etcd.put_subnet("10.244.206.0-24", &hostile);
            cluster.pair.etcd.put_subnet("10.244.0.0-33", "[]");
            cluster
                .pair
                .etcd
                .put_subnet("10.244.203.0-24", &lease("192.0.2.11", "ff:ff:ff:ff:ff:ff"));
        }),
        1000,
        Act::Do(|cluster| {
            cluster.pair.etcd.delete_subnet("10.244.206.0-24");
            cluster.pair.etcd.delete_subnet("10.244.0.0-33");
            cluster
                .pair
                .etcd
                .put_subnet("10.244.203.0-24", &lease("192.0.2.73", "02:00:5e:00:53:73"));
        }),
    ),
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
];

fn key(cluster: &Cluster) -> String {
    flannel_tests::plain::key(cluster.subnet)
}

fn delete_ours(cluster: &mut Cluster) {
    cluster.pair.etcd.delete_subnet(&key(cluster));
}

fn put_ours(cluster: &Cluster, value: &str) {
    cluster.pair.etcd.put_subnet(&key(cluster), value);
}
