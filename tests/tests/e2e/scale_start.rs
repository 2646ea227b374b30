//! Many nodes at once.

use std::collections::BTreeSet;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::wait;

#[test]
fn twenty_agents_share_twenty_subnets() {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    etcd.put_config(
        r#"{"Network":"10.244.0.0/16","SubnetLen":24,"SubnetMin":"10.244.1.0",
            "SubnetMax":"10.244.20.0","Backend":{"Type":"vxlan"}}"#,
    );
    let mut nodes: Vec<Node> = (1..=20).map(|number| lab.node(number)).collect();
    for node in &mut nodes {
        node.launch(&etcd, &Options::default());
    }
    for node in &mut nodes {
        node.wait_ready(Duration::from_secs(60));
    }
    let subnets: BTreeSet<_> = nodes.iter().map(Node::subnet).collect();
    assert_eq!(subnets.len(), 20, "{subnets:?}");
    assert_eq!(etcd.subnets().len(), 20);
    for node in &mut nodes {
        assert!(node.agent_ended().is_none(), "{} ended", node.address);
    }
    for node in &nodes {
        wait::holds("19 routes", Duration::from_secs(20), || {
            node.netns.ip("route show dev flannel.1").lines().count() == 19
        });
    }
    let pods = [nodes[0].pod(2), nodes[19].pod(2)];
    pods[0].ping(pods[1].address, "-c 3 -i 0.2 -W 2");
}

#[test]
fn a_systemd_that_does_not_listen_delays_nothing() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    // Nobody reads what comes after READY=1, and the kernel keeps some ten words.
    node.start(&etcd, &Options::kernel());
    for number in 200..230_u8 {
        let lease = format!(
            r#"{{"PublicIP":"192.0.2.{number}","BackendType":"vxlan","BackendData":{{"VtepMAC":"02:00:00:00:00:{number:02x}"}}}}"#
        );
        etcd.put_subnet(&format!("10.244.{number}.0-24"), &lease);
        wait::holds("the route of a lease", Duration::from_secs(2), || {
            node.netns.ip("route show dev flannel.1").contains(&format!("10.244.{number}.0/24"))
        });
    }
    node.stop_agent();
}

#[test]
fn one_node_too_many_waits_and_says_why() {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    etcd.put_config(
        r#"{"Network":"10.244.0.0/16","SubnetLen":24,"SubnetMin":"10.244.1.0",
            "SubnetMax":"10.244.1.0","Backend":{"Type":"vxlan"}}"#,
    );
    let (mut first, mut second) = (lab.node(1), lab.node(2));
    first.start(&etcd, &Options::kernel());
    second.launch(&etcd, &Options::kernel());
    wait::holds("a word about subnets", Duration::from_secs(10), || {
        second.agent_log().contains("out of subnets")
    });
    assert_eq!(etcd.subnets().len(), 1);
    first.netns.ip("link show flannel.1");
}
