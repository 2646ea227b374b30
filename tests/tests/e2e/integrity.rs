//! What arrives is what was sent, whatever cuts and merges packets on the way.

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::load::{ECHOES, assert_whole};
use flannel_tests::pair::Pair;

#[test]
fn all_sizes_and_aggregates() {
    Pair::agents(&Options::ebpf()).check_integrity(200);
}

#[test]
fn all_sizes_and_aggregates_with_clsact_filters() {
    Pair::agents(&Options { attach: Some("clsact"), ..Options::ebpf() }).check_integrity(100);
}

/// Switches segmentation and merging off or on at one place.
fn offloads(pair: &Pair, place: &str, state: &str) {
    let features = format!("tso {state} gso {state} gro {state}");
    match place {
        "pod" => {
            for pod in [&pair.client, &pair.server] {
                pod.netns.sh(&format!("ethtool -K eth0 {features}"));
            }
        }
        "veth" => {
            for (node, pod) in [(&pair.left, &pair.client), (&pair.right, &pair.server)] {
                node.netns.sh(&format!("ethtool -K {} {features}", pod.veth));
            }
        }
        "underlay" => {
            for node in [&pair.left, &pair.right] {
                node.netns.sh(&format!("ethtool -K eth0 {features}"));
            }
        }
        _ => panic!("no such place: {place}"),
    }
}

#[test]
fn offloads_off_anywhere() {
    let pair = Pair::agents(&Options::ebpf());
    let places = ["pod", "veth", "underlay"];
    for chosen in 0..8_u8 {
        for (bit, place) in places.iter().enumerate() {
            let off = chosen & (1 << bit) != 0;
            offloads(&pair, place, if off { "off" } else { "on" });
        }
        println!("off at {chosen:03b} of {places:?}");
        pair.check_integrity(20);
    }
}

#[test]
fn a_wire_of_small_packets_merged_by_the_receiver() {
    let pair = Pair::agents(&Options::ebpf());
    for node in [&pair.left, &pair.right] {
        node.netns.sh("ethtool -K eth0 tso off gso off gro on");
    }
    pair.check_integrity(100);
}

#[test]
fn fragments() {
    let pair = Pair::agents(&Options::ebpf());
    let before = pair.left.outcomes();
    pair.client.ping(pair.server.address, "-c 5 -i 0.1 -W 2 -s 3000");
    pair.server.ping(pair.client.address, "-c 5 -i 0.1 -W 2 -s 3000");
    let echoes = pair.traffic(ECHOES, "--from 3990 --upto 4010");
    assert_whole(&echoes);
    let since = pair.left.outcomes().since(&before);
    assert!(since.get(Outcome::KernelFragment) >= 21 * 3, "{since:?}");
}

#[test]
fn too_big_with_df_gets_fragmentation_needed() {
    let pair = Pair::agents(&Options::ebpf());
    // A pod that does not know the overlay's MTU.
    pair.left.netns.ip(&format!("link set {} mtu 1500", pair.client.veth));
    pair.client.netns.ip("link set eth0 mtu 1500");
    let (_, text) = pair.client.netns.ping(pair.server.address, "-c 3 -i 0.2 -W 1 -M do -s 1472");
    assert!(text.contains("mtu = 1450") || text.contains("mtu=1450"), "{text}");

    // A confirmed flow that grows over the MTU: the pod learns it, and the
    // datagrams arrive in fragments.
    pair.client.netns.ip("route flush cache");
    let echoes = pair.traffic(ECHOES, "--from 1400 --upto 1470");
    assert_whole(&echoes);
    let route = pair.client.netns.ip(&format!("route get {}", pair.server.address));
    assert!(route.contains("mtu 1450"), "{route}");
    assert!(pair.left.outcomes().get(Outcome::KernelTooBig) > 0, "{:?}", pair.left.outcomes());
}

#[test]
fn largest_packet_without_fragments() {
    let pair = Pair::agents(&Options::ebpf());
    pair.client.ping(pair.server.address, "-c 3 -i 0.1 -W 2 -M do -s 1422");
    let before = pair.left.outcomes();
    let echoes = pair.traffic(ECHOES, "--from 1422 --upto 1422");
    assert_eq!(echoes.lost, 0, "{echoes:?}");
    assert_eq!(pair.left.outcomes().since(&before).get(Outcome::KernelTooBig), 0);
}
