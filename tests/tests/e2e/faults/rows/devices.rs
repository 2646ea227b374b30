//! What happens to the device of the tunnel.

use super::{Act, Fault};
use flannel_core::health::Subject;

pub(in super::super) const DEVICES: &[Fault] = &[
    Fault::once("the device is deleted", "ip link delete flannel.1", 600),
    Fault::once("the device is set down", "ip link set flannel.1 down", 600),
    Fault::once("a protocol holds it down", "ip link set flannel.1 protodown on", 600),
    Fault::once("its MTU is another", "ip link set flannel.1 mtu 1300", 0),
    Fault::once("its MAC is another", "ip link set flannel.1 address 02:00:5e:00:53:01", 600),
    Fault::once("its address is removed", "ip address flush dev flannel.1", 300),
    Fault::once(
        "its address has another prefix length",
        "ip address delete $OWN_NET/32 dev flannel.1; ip address add $OWN_NET/16 dev flannel.1",
        600,
    ),
    Fault::once("it has a second address", "ip address add 10.244.99.7/32 dev flannel.1", 0),
    Fault::lasting(
        "another kind of device has its name",
        Act::Try(|cluster| {
            cluster.unseen("ip link delete flannel.1; ip link add flannel.1 type bridge")
        }),
        0,
        Act::Nothing,
    )
    .loss(1000),
    Fault::lasting(
        "its VNI is another",
        Act::Try(|cluster| {
            cluster.unseen(
                "ip link delete flannel.1; ip link add flannel.1 type vxlan id 7 dstport 8472 \
                 local $OWN_IP dev eth0 nolearning; ip link set flannel.1 up",
            )
        }),
        0,
        Act::Nothing,
    )
    .loss(1000),
    Fault::lasting(
        "another device has its VNI",
        Act::Try(|cluster| {
            cluster.unseen(
                "ip link delete flannel.1; ip link add odd1 type vxlan id 1 dstport 8472 \
                 local $OWN_IP dev eth0",
            )
        }),
        1500,
        Act::Sh("ip link delete odd1"),
    )
    .loss(4000)
    .restored(2500)
    .told(Subject::Device),
    Fault::once(
        "it is renamed",
        // It may be removed before it is up.
        "ip link set flannel.1 down; ip link set flannel.1 name gone0; ip link set gone0 up || :",
        800,
    ),
    Fault::once(
        "it is a port of a bridge",
        // The bridge stays.
        "ip link show odd0 || ip link add odd0 type bridge; ip link set odd0 up; \
         ip link set flannel.1 master odd0",
        800,
    ),
    Fault::once("it does no ARP", "ip link set flannel.1 arp off", 600),
    // Nothing that peers send is a multicast frame.
    Fault::lasting(
        "it has other flags",
        Act::Sh(
            "ip link set flannel.1 multicast off allmulticast on promisc on txqueuelen 1 group 7",
        ),
        500,
        Act::Sh(
            "ip link set flannel.1 multicast on allmulticast off promisc off txqueuelen 1000 \
             group 0",
        ),
    ),
    Fault::once("its packets have one hop", "ip link set flannel.1 type vxlan ttl 1", 600),
    Fault::once("it learns", "ip link set flannel.1 type vxlan learning", 600),
    Fault::once(
        "it is moved to another network namespace",
        "ip link set flannel.1 netns $OTHER name lent0",
        800,
    ),
    Fault::once(
        "its queueing is another",
        "tc qdisc replace dev flannel.1 root pfifo limit 100; tc qdisc delete dev flannel.1 root",
        // The kernel stops the device's queues to exchange it.
        100,
    ),
];
