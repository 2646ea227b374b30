//! What the agent makes of conntrack's settings.

use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::etcd::Etcd;
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::wait;

const LIMIT: Duration = Duration::from_secs(3);
const UNACKNOWLEDGED: &str = "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged";
const MAX_RETRANS: &str = "net.netfilter.nf_conntrack_tcp_timeout_max_retrans";
const ESTABLISHED: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";

fn sysctl(node: &Node, name: &str) -> u64 {
    node.netns.sh(&format!("sysctl -n {name}")).trim().parse().expect("a number")
}

fn lab() -> (Lab, Etcd, Node) {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let node = lab.node(1);
    (lab, etcd, node)
}

#[test]
fn idle_connections_keep_the_timeout_of_established_ones() {
    let (_lab, etcd, mut node) = lab();
    node.netns.sysctl(&format!("{UNACKNOWLEDGED}=20"));
    let (established, before) = (sysctl(&node, ESTABLISHED), sysctl(&node, MAX_RETRANS));
    assert!(before < established, "{before} {established}");
    node.start(&etcd, &Options::ebpf());
    let raised = |node: &Node| [UNACKNOWLEDGED, MAX_RETRANS].map(|name| sysctl(node, name));
    assert_eq!(raised(&node), [established; 2]);

    // Corrected each time, and said once.
    for _ in 0..3 {
        node.netns.sysctl(&format!("{UNACKNOWLEDGED}=30"));
        wait::holds("the timeout again", LIMIT, || raised(&node) == [established; 2]);
    }
    let log = node.agent_log();
    assert_eq!(log.matches(UNACKNOWLEDGED).count(), 1, "{log}");

    // A later start keeps what was remembered first.
    node.stop_agent();
    node.netns.sysctl(&format!("{UNACKNOWLEDGED}=40"));
    node.start(&etcd, &Options::ebpf());
    assert_eq!(raised(&node), [established; 2]);
    node.stop_agent();
    let output = node.cleanup();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(raised(&node), [20, before]);
}

#[test]
fn without_a_fast_path_timeouts_stay() {
    let (_lab, etcd, mut node) = lab();
    for options in [Options::kernel(), Options { extra: off(), ..Options::ebpf() }] {
        node.start(&etcd, &options);
        assert!(sysctl(&node, UNACKNOWLEDGED) < sysctl(&node, ESTABLISHED));
        node.stop_agent();
    }
}

fn off() -> Vec<String> {
    vec!["--fast-path=off".to_owned()]
}

#[test]
fn the_window_of_udp_follows_conntracks_timeouts() {
    let (_lab, etcd, mut node) = lab();
    node.start(&etcd, &Options::ebpf());
    let windows = || {
        let config = node.config();
        [config.window_ns, config.udp_window_ns]
    };
    assert_eq!(windows(), [5_000_000_000; 2]);
    node.netns.sysctl("net.netfilter.nf_conntrack_udp_timeout=2");
    wait::holds("a window of 500 ms", LIMIT, || windows() == [5_000_000_000, 500_000_000]);
    node.netns.sysctl("net.netfilter.nf_conntrack_udp_timeout=30");
    node.netns.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream=8");
    wait::holds("a window of 2 s", LIMIT, || windows() == [5_000_000_000, 2_000_000_000]);
}
