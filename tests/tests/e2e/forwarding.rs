//! Forwarding that is off for the underlay: who needs it, and what is said.

use std::time::Duration;

use flannel_core::check::{CheckReport, Condition, Id};
use flannel_core::health::Subject;
use flannel_tests::agent::Options;
use flannel_tests::lab::{Lab, NETWORK, OUTSIDE};
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::told::told;
use flannel_tests::wait;

const OFF: &str = "net.ipv4.conf.eth0.forwarding=0";
const ON: &str = "net.ipv4.conf.eth0.forwarding=1";
const SOON: Duration = Duration::from_secs(3);

fn complains(node: &Node) -> bool {
    node.status().health.iter().any(|line| line.subject == Subject::Forwarding)
}

/// What `check` says of forwarding.
fn checked(pair: &Pair) -> (Condition, String) {
    let endpoints = format!("--etcd-endpoints={}", pair.etcd.endpoint());
    let (_, report) = told::<CheckReport>(pair.left.agent_command("check").arg(endpoints));
    let of = report.findings.into_iter().find(|finding| finding.id == Id::Forwarding);
    of.map(|finding| (finding.state, finding.found)).expect("a finding")
}

#[test]
fn a_tunnel_alone_does_not_need_it_on_the_underlay() {
    let pair = Pair::agents(&Options::ebpf());
    pair.left.netns.sysctl(OFF);
    wait::holds("what check says", SOON, || checked(&pair).1.contains("published ports"));
    assert_eq!(checked(&pair).0, Condition::Well);
    assert!(!complains(&pair.left), "{:?}", pair.left.status().health);
    // New flows are the kernel's to carry.
    pair.client.ping(pair.server.address, "-c 3 -i 0.2");
    assert!(!complains(&pair.left), "{:?}", pair.left.status().health);
}

#[test]
fn answers_to_what_is_masqueraded_do() {
    let pair = Pair::agents(&Options { ip_masq: true, ..Options::ebpf() });
    let _outside = pair.lab.outside();
    let answered = || pair.client.netns.ping(OUTSIDE, "-c 1 -W 1").0;
    wait::holds("answers from outside", SOON, answered);
    pair.left.netns.sysctl(OFF);
    wait::holds("the complaint", SOON, || complains(&pair.left));
    assert!(!answered(), "the kernel forwards answers");
    pair.client.ping(pair.server.address, "-c 3 -i 0.2");
    let (state, found) = checked(&pair);
    assert_eq!(state, Condition::Broken);
    assert!(found.contains("answers from outside to pods are not forwarded"), "{found}");
    pair.left.netns.sysctl(ON);
    wait::holds("its end", SOON, || !complains(&pair.left));
    wait::holds("answers again", SOON, answered);
}

#[test]
fn peers_without_a_tunnel_do() {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    let backend = r#"{"Type":"vxlan","DirectRouting":true}"#;
    etcd.put_config(&format!(r#"{{"Network":"{NETWORK}","Backend":{backend}}}"#));
    let nodes = (lab.node(1), lab.node(2));
    let options = Options::kernel();
    // Before there is a peer, nothing comes that way.
    let mut left = nodes.0;
    left.netns.sysctl(OFF);
    left.start(&etcd, &options);
    assert!(!complains(&left), "{:?}", left.status().health);
    let mut right = nodes.1;
    right.start(&etcd, &options);
    left.wait_routes(&[&right]);
    wait::holds("the complaint", SOON, || complains(&left));
    left.netns.sysctl(ON);
    wait::holds("its end", SOON, || !complains(&left));
}
