//! What happens to the firewall.

use std::fs;

use flannel_core::health::Subject;

use super::{Act, Cluster, Fault};

pub(in super::super) const RULES: &[Fault] = &[
    Fault::once("our table is flushed", "nft flush table ip flannel-ipv4", 0).restored(1500),
    Fault::once("our table is deleted", "nft delete table ip flannel-ipv4", 0).restored(1500),
    Fault::once("all rules are deleted", "nft flush ruleset", 0).restored(1500),
    Fault::once(
        "all rules are deleted again and again",
        "for turn in $(seq 40); do nft flush ruleset; sleep 0.05; done",
        0,
    )
    .restored(2500),
    Fault::lasting("nft hangs", Act::Do(hang), 4000, Act::Do(go_on)).restored(2500),
    Fault::lasting(
        "nft hangs while a route is deleted",
        Act::Do(|cluster| {
            hang(cluster);
            let script = "nft flush table ip flannel-ipv4; ip route delete $PEER";
            cluster.shell(script).expect("a route");
            let way = || cluster.pair.left.netns.ip("route show dev flannel.1");
            let peer = cluster.pair.right.subnet().to_string();
            flannel_tests::wait::holds("the route", std::time::Duration::from_millis(1500), || {
                way().contains(&peer)
            });
        }),
        3000,
        Act::Do(go_on),
    )
    .loss(600)
    .restored(2500)
    .alone(),
    // It says that it has done what it was told.
    failing("nft does nothing", "echo vain > $FAIL; nft flush table ip flannel-ipv4"),
    failing("nft is killed", "echo killed > $FAIL; nft flush table ip flannel-ipv4"),
    failing("nft prints garbage", "echo garbage > $FAIL; nft flush table ip flannel-ipv4"),
    failing("nft prints without end", "echo flood > $FAIL; nft flush table ip flannel-ipv4"),
    failing("nft complains at length", "echo grumbling > $FAIL; nft flush table ip flannel-ipv4"),
];

/// With iptables, of which nothing tells: it is looked at each minute, or each
/// second in this suite.
pub(in super::super) const CHAINS: &[Fault] = &[
    Fault::once("our chains are flushed", "iptables -t nat -F FLANNEL-POSTRTG", 0).restored(2500),
    Fault::once("the jump is deleted", "iptables -t nat -F POSTROUTING", 0).restored(2500),
    Fault::once(
        "our chains are deleted",
        "iptables -t nat -F; iptables -t nat -X; iptables -F; iptables -X",
        0,
    )
    .restored(2500),
    Fault::lasting("iptables hangs", Act::Do(hang), 4000, Act::Do(go_on)).restored(2500),
    failing("iptables does nothing", "echo vain > $FAIL; iptables -t nat -F FLANNEL-POSTRTG"),
    failing("iptables is killed", "echo killed > $FAIL; iptables -t nat -F FLANNEL-POSTRTG"),
    failing("iptables prints without end", "echo flood > $FAIL"),
];

/// A program of the firewall fails for a while, and says so.
const fn failing(name: &'static str, begin: &'static str) -> Fault {
    Fault::lasting(name, Act::Sh(begin), 2500, Act::Do(go_on))
        .restored(3500)
        .told(Subject::Firewall)
}

fn hang(cluster: &mut Cluster) {
    fs::write(cluster.fail(), "").expect("a file");
}

fn go_on(cluster: &mut Cluster) {
    fs::remove_file(cluster.fail()).expect("the file");
}
