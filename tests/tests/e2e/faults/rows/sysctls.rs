//! What happens to settings of the kernel.

use super::{Act, Fault, nothing_passes};
use flannel_core::health::Subject;

pub(in super::super) const SYSCTLS: &[Fault] = &[
    Fault::lasting(
        "nothing is forwarded",
        Act::Sh("echo 0 > /proc/sys/net/ipv4/ip_forward"),
        2000,
        Act::Do(|cluster| {
            nothing_passes(cluster);
            cluster.shell("echo 1 > /proc/sys/net/ipv4/ip_forward").expect("a setting");
        }),
    )
    .loss(6000)
    .told(Subject::Forwarding),
    Fault::lasting(
        "nothing is forwarded from the device",
        Act::Sh("echo 0 > /proc/sys/net/ipv4/conf/flannel.1/forwarding"),
        2000,
        Act::Do(|cluster| {
            nothing_passes(cluster);
            let script = "echo 1 > /proc/sys/net/ipv4/conf/flannel.1/forwarding";
            cluster.shell(script).expect("a setting");
        }),
    )
    .loss(6000)
    .told(Subject::Forwarding),
    Fault::once(
        "the device goes where new ones forward nothing",
        "echo 0 > /proc/sys/net/ipv4/conf/default/forwarding; ip link delete flannel.1; sleep 1; \
         echo 1 > /proc/sys/net/ipv4/conf/default/forwarding",
        600,
    )
    .restored(2000),
    Fault::lasting(
        "nothing is forwarded from the pods' bridge",
        Act::Sh("echo 0 > /proc/sys/net/ipv4/conf/cni0/forwarding"),
        2000,
        Act::Do(|cluster| {
            nothing_passes(cluster);
            cluster.shell("echo 1 > /proc/sys/net/ipv4/conf/cni0/forwarding").expect("a setting");
        }),
    )
    .loss(6000)
    .told(Subject::Forwarding),
    Fault::lasting(
        "nothing is forwarded from the card",
        Act::Sh("echo 0 > /proc/sys/net/ipv4/conf/eth0/forwarding"),
        1000,
        Act::Sh("echo 1 > /proc/sys/net/ipv4/conf/eth0/forwarding"),
    )
    .told(Subject::Forwarding),
    Fault::lasting(
        "the way back is looked at strictly",
        Act::Sh("for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $file; done"),
        1500,
        Act::Sh("for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $file; done"),
    ),
    Fault::lasting(
        "IPv6 is off",
        Act::Sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"),
        1000,
        Act::Sh("echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6"),
    ),
    Fault::lasting(
        "ARP answers to less",
        Act::Sh(
            "cd /proc/sys/net/ipv4/conf/all; echo 2 > arp_ignore; echo 2 > arp_announce; \
             echo 1 > arp_filter",
        ),
        1000,
        Act::Sh(
            "cd /proc/sys/net/ipv4/conf/all; echo 0 > arp_ignore; echo 0 > arp_announce; \
             echo 0 > arp_filter",
        ),
    ),
    Fault::once(
        "conntrack is strict again",
        "echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal",
        0,
    ),
    Fault::lasting(
        "conntrack forgets early",
        Act::Sh(
            "cd /proc/sys/net/netfilter; echo 1 > nf_conntrack_udp_timeout; \
             echo 1 > nf_conntrack_udp_timeout_stream; \
             echo 1 > nf_conntrack_tcp_timeout_unacknowledged",
        ),
        2500,
        Act::Sh(
            "cd /proc/sys/net/netfilter; echo 30 > nf_conntrack_udp_timeout; \
             echo 120 > nf_conntrack_udp_timeout_stream",
        ),
    ),
    Fault::once("conntrack forgets everything", "conntrack -F", 0),
];
