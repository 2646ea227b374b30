//! What happens to the underlay.

use super::{Act, Cluster, Fault};
use flannel_core::health::Subject;

pub(in super::super) const UNDERLAY: &[Fault] = &[
    Fault::lasting(
        "the card has no carrier",
        Act::Do(|cluster| drop(cluster.pair.lab.underlay().ip("link set p1 down"))),
        1000,
        Act::Do(|cluster| drop(cluster.pair.lab.underlay().ip("link set p1 up"))),
    )
    .loss(2500),
    Fault::lasting(
        "the card is down",
        Act::Sh("ip link set eth0 down"),
        1000,
        Act::Sh("ip link set eth0 up; ip route replace default via 192.0.2.1"),
    )
    .loss(2500)
    .told(Subject::Underlay),
    Fault::lasting(
        "the card's address goes for a moment",
        Act::Sh("ip address flush dev eth0"),
        1500,
        Act::Sh("ip address add $OWN_IP/24 dev eth0; ip route replace default via 192.0.2.1"),
    )
    .loss(3000)
    .restored(2000)
    .told(Subject::Underlay),
    // Tunnel packets of new flows are not taken in, and neither is what etcd says.
    Fault::lasting(
        "the card's address is not local",
        Act::Sh("ip route delete table local local $OWN_IP dev eth0"),
        1500,
        Act::Sh(
            "ip route replace table local local $OWN_IP dev eth0 proto kernel scope host \
             src $OWN_IP",
        ),
    )
    .loss(3000)
    .restored(2000)
    .told(Subject::Underlay),
    Fault::lasting(
        "the card has another address, and the old one again",
        Act::Do(|cluster| readdress(cluster, "192.0.2.11", "192.0.2.61")),
        2500,
        Act::Do(|cluster| readdress(cluster, "192.0.2.61", "192.0.2.11")),
    )
    .loss(4000)
    .restored(4000)
    .alone(),
    // The lease cannot follow, and the other node does not know where we are.
    Fault::lasting(
        "the card has another address while etcd hangs, and the old one again",
        Act::Do(|cluster| {
            cluster.pair.etcd.freeze();
            address(cluster, "192.0.2.11", "192.0.2.61");
        }),
        2500,
        Act::Do(|cluster| {
            address(cluster, "192.0.2.61", "192.0.2.11");
            cluster.pair.etcd.thaw();
        }),
    )
    .loss(5000)
    .restored(5000)
    .alone(),
    Fault::lasting(
        "the card is renamed",
        Act::Sh("ip link set eth0 name wan0"),
        1000,
        Act::Sh("ip link set wan0 name eth0"),
    )
    .loss(600),
    // The device goes with it, and cannot be made meanwhile.
    Fault::lasting(
        "the card is in another network namespace for long",
        Act::Sh("ip link set eth0 netns $OTHER name lent1"),
        30_000,
        Act::Sh(
            "ip -n $OTHER link set lent1 netns $$ name eth0; ip address add $OWN_IP/24 dev eth0; \
             ip link set eth0 up; ip route add default via 192.0.2.1",
        ),
    )
    .loss(33_000)
    .restored(2000)
    .told(Subject::Underlay)
    .long(),
    Fault::lasting(
        "the card's MTU is another",
        Act::Sh("ip link set eth0 mtu 1400"),
        1000,
        Act::Sh("ip link set eth0 mtu 1500"),
    ),
];

/// Nobody but the lease tells the other node where we are.
fn readdress(cluster: &mut Cluster, from: &str, to: &str) {
    address(cluster, from, to);
    let lease = || cluster.pair.etcd.subnets().iter().any(|(_, value)| value.contains(to));
    // A second, and what asking costs on a busy machine.
    flannel_tests::wait::holds("the lease", std::time::Duration::from_millis(1700), lease);
}

fn address(cluster: &Cluster, from: &str, to: &str) {
    let netns = &cluster.pair.left.netns;
    netns.ip(&format!("address delete {from}/24 dev eth0"));
    netns.ip(&format!("address add {to}/24 dev eth0"));
    netns.ip("route replace default via 192.0.2.1");
}
