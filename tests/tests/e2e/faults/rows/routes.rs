//! What happens to routes, neighbours and the FDB.

use flannel_core::health::Subject;

use super::{Act, Cluster, Fault, nothing_passes};

/// Nothing passed the local table, whose route is deleted.
fn local_route_goes(cluster: &mut Cluster) {
    nothing_passes(cluster);
    cluster.shell("ip route delete blackhole $PEER table local").expect("a route");
}

pub(in super::super) const ROUTES: &[Fault] = &[
    Fault::once("the peer's route is deleted", "ip route delete $PEER", 600),
    Fault::once("the device's address is not local", "ip route delete table local $OWN_NET", 0),
    Fault::once(
        "the device's address is another device's",
        "ip route replace table local local $OWN_NET dev eth0",
        0,
    ),
    Fault::once(
        "the device's address is a black hole",
        "ip route replace table local blackhole $OWN_NET",
        0,
    ),
    Fault::once(
        "a black hole goes before the device's address",
        "ip route prepend table local blackhole $OWN_NET",
        0,
    ),
    Fault::once(
        "another device goes before the device's address",
        "ip route prepend table local local $OWN_NET dev eth0",
        0,
    ),
    Fault::once("all routes of the device are deleted", "ip route flush dev flannel.1", 600),
    Fault::once("another device has the route", "ip route replace $PEER dev eth0", 600),
    Fault::once(
        "another gateway has the route",
        "ip route replace $PEER via 192.0.2.1 dev eth0",
        600,
    ),
    Fault::once(
        "another gateway of the same device has the route",
        "ip route replace $PEER via 10.244.203.0 dev flannel.1 onlink",
        600,
    ),
    Fault::once("the route is a black hole", "ip route replace blackhole $PEER", 600),
    Fault::once("the route is prohibited", "ip route replace prohibit $PEER", 600),
    // What comes behind ours, if another fault was there before, is nobody's to remove.
    Fault::once(
        "a black hole goes before the peer's route",
        "ip route prepend blackhole $PEER; sleep 1; ip route flush exact $PEER type blackhole; \
         ip route flush exact $PEER dev eth0",
        600,
    )
    .restored(2500),
    Fault::once(
        "another device goes before the peer's route",
        "ip route prepend $PEER dev eth0; sleep 1; ip route flush exact $PEER type blackhole; \
         ip route flush exact $PEER dev eth0",
        600,
    )
    .restored(2500),
    Fault::once("the route has no gateway", "ip route replace $PEER dev flannel.1", 600),
    Fault::once(
        "the route has another metric",
        "ip route delete $PEER; ip route add $PEER via $PEER_NET dev flannel.1 onlink metric 50",
        600,
    ),
    Fault::once(
        "the route has another MTU",
        "ip route replace $PEER via $PEER_NET dev flannel.1 onlink mtu lock 600",
        0,
    ),
    Fault::once(
        "the route has another source",
        "ip route replace $PEER via $PEER_NET dev flannel.1 onlink src $OWN_IP",
        0,
    ),
    Fault::once(
        "the route is in another table",
        "ip route delete $PEER; ip route add $PEER via $PEER_NET dev flannel.1 onlink table 77; \
         sleep 0.7; ip route flush table 77",
        600,
    )
    .restored(2000),
    Fault::lasting(
        "the local table has a black hole for the peer",
        Act::Sh("ip route add blackhole $PEER table local"),
        1500,
        Act::Do(local_route_goes),
    )
    .loss(6000)
    .told(Subject::Detour),
    Fault::lasting(
        "a part of the peer's subnet is a black hole",
        Act::Sh("ip route add blackhole $PEER_NET/25"),
        1500,
        Act::Do(|cluster| {
            nothing_passes(cluster);
            cluster.shell("ip route delete blackhole $PEER_NET/25").expect("a route");
        }),
    )
    .loss(6000)
    .told(Subject::Detour),
    Fault::lasting(
        "a part of the peer's subnet is on another device",
        // With the device its route goes, and nobody says so.
        Act::Sh(
            "ip link add odd2 type bridge; ip link set odd2 up; ip route add $PEER_NET/25 dev odd2",
        ),
        1500,
        Act::Do(|cluster| {
            nothing_passes(cluster);
            cluster.shell("ip link delete odd2").expect("a device");
        }),
    )
    .loss(6000)
    .told(Subject::Detour),
    Fault::once(
        "the peer's route is deleted among 20,000 changes of others",
        "seq 10000 | awk '{ printf \"route add 198.18.%d.%d dev eth0 table 79\\n\", $1/256, $1%256 }' \
         | ip -batch -; ip route delete $PEER; ip route flush table 79",
        1500,
    )
    .restored(3000),
    Fault::once("the neighbour is deleted", "ip neigh delete $PEER_NET dev flannel.1", 600),
    Fault::once(
        "the neighbour has another MAC",
        "ip neigh replace $PEER_NET lladdr 02:00:5e:00:53:09 dev flannel.1 nud permanent",
        600,
    ),
    Fault::once(
        "the neighbour is not permanent",
        "ip neigh replace $PEER_NET lladdr $PEER_MAC dev flannel.1 nud stale",
        0,
    ),
    Fault::once(
        "the neighbour has failed",
        "ip neigh replace $PEER_NET dev flannel.1 nud failed",
        600,
    ),
    // Flags that change no packet's way are left.
    Fault::once(
        "the neighbour has flags",
        "ip neigh replace $PEER_NET lladdr $PEER_MAC dev flannel.1 nud permanent router \
         extern_learn",
        0,
    ),
    Fault::once(
        "the kernel manages the neighbour",
        "ip neigh replace $PEER_NET dev flannel.1 managed",
        600,
    ),
    Fault::once("all neighbours are deleted", "ip neigh flush dev flannel.1 nud all", 600),
    Fault::once("the FDB entry is deleted", "bridge fdb delete $PEER_MAC dev flannel.1 self", 600),
    Fault::once(
        "the FDB entry has another address",
        "bridge fdb replace $PEER_MAC dev flannel.1 dst 192.0.2.99 self permanent",
        600,
    ),
    Fault::once(
        "the FDB entry has a second address",
        "bridge fdb append $PEER_MAC dev flannel.1 dst 192.0.2.99 self permanent",
        600,
    ),
    Fault::once(
        "the FDB entry has another port",
        "bridge fdb replace $PEER_MAC dev flannel.1 dst $PEER_IP port 9999 self permanent",
        600,
    ),
    Fault::once(
        "the FDB entry is not permanent",
        "bridge fdb replace $PEER_MAC dev flannel.1 dst $PEER_IP self dynamic",
        0,
    ),
    Fault::once(
        "the FDB has a stranger",
        "bridge fdb append 02:00:5e:00:53:08 dev flannel.1 dst 192.0.2.98 self permanent",
        0,
    ),
    // No peer's packets go there, and it is left alone.
    Fault::lasting(
        "the FDB has a stranger for all other MACs",
        Act::Sh("bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.98 self permanent"),
        1000,
        Act::Sh("bridge fdb delete 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.98 self"),
    ),
    Fault::once(
        "the FDB entry has flags",
        "bridge fdb replace $PEER_MAC dev flannel.1 dst $PEER_IP self permanent router sticky \
         extern_learn",
        0,
    ),
    Fault::once("the FDB is empty", "bridge fdb flush dev flannel.1 self", 600),
];
