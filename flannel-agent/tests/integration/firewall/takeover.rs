//! The firewall's rules take the place of flannel's.

use std::time::Duration;

use super::{Node, rules, ruleset};
use crate::netns::{in_netns, run};
use flannel_agent::firewall::Mode;
use flannel_agent::firewall::chosen::{self, Chosen};
use flannel_core::firewall::names::Mine;
use flannel_core::firewall::upstream::Place as Former;

/// What flannel's newest version writes with iptables.
pub(super) const CHAINS: &str = "*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.1.0/24 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.1.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.1.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
COMMIT
";

/// What 0.11 wrote for subnet 10.5.7.0/24.
const STRAIGHT: &str = "*filter
-A FORWARD -s 10.5.0.0/16 -j ACCEPT
-A FORWARD -d 10.5.0.0/16 -j ACCEPT
COMMIT
*nat
-A POSTROUTING -s 10.5.0.0/16 -d 10.5.0.0/16 -j RETURN
-A POSTROUTING -s 10.5.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING ! -s 10.5.0.0/16 -d 10.5.7.0/24 -j RETURN
-A POSTROUTING ! -s 10.5.0.0/16 -d 10.5.0.0/16 -j MASQUERADE
COMMIT
";

/// What 0.5 wrote.
const FIRST: &str = "*nat
:FLANNEL - [0:0]
-A POSTROUTING -s 10.5.0.0/16 -j FLANNEL
-A POSTROUTING ! -s 10.5.0.0/16 -d 10.5.0.0/16 -j MASQUERADE
-A FLANNEL -d 10.5.0.0/16 -j ACCEPT
-A FLANNEL ! -d 224.0.0.0/4 -j MASQUERADE
COMMIT
";

/// Somebody's own rules that resemble flannel's.
pub(super) const SOMEONES: &str = "*filter
-A FORWARD -s 10.5.0.0/16 -i eth9 -j ACCEPT
COMMIT
*nat
-A POSTROUTING -s 10.5.0.0/16 -o eth9 -j MASQUERADE
COMMIT
";

pub(super) fn restore(iptables: &str, text: &str) {
    let file = std::env::temp_dir().join(format!("rules-{}", nix::unistd::gettid()));
    std::fs::write(&file, text).unwrap();
    run(&format!("{iptables}-restore --noflush {}", file.display()));
    std::fs::remove_file(file).unwrap();
}

/// The rules without what differs from call to call.
fn saved(iptables: &str) -> Vec<String> {
    let text = run(&format!("{iptables}-save"));
    text.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
}

fn former() -> Vec<Former> {
    vec![Former { network: rules().network, subnet: "10.5.7.0/24".parse().unwrap() }]
}

async fn takes_over(iptables: &'static str, mode: Mode) {
    for old in [CHAINS, STRAIGHT, FIRST] {
        restore(iptables, SOMEONES);
        let before = saved(iptables);
        restore(iptables, old);
        run("nft add table ip6 flannel-ipv6");
        let firewall = Chosen::choose(mode, former()).await.unwrap();
        firewall.ensure(&rules()).await.unwrap();
        let written = (saved("iptables-legacy"), ruleset());
        firewall.ensure(&rules()).await.unwrap();
        assert_eq!((saved("iptables-legacy"), ruleset()), written, "written once");
        assert!(!written.1.contains("flannel-ipv6"), "{}", written.1);
        chosen::remove_all(&[], &Mine::default()).await.unwrap();
        assert_eq!(saved(iptables), before, "{mode:?} after {old}");
        run(&format!("{iptables} -F FORWARD"));
        run(&format!("{iptables} -t nat -F POSTROUTING"));
    }
}

#[test]
fn nftables_takes_over_from_flannel_in_iptables_nft() {
    in_netns(takes_over("iptables-nft", Mode::Nftables));
}

#[test]
fn nftables_takes_over_from_flannel_in_legacy_iptables() {
    in_netns(takes_over("iptables-legacy", Mode::Nftables));
}

#[test]
fn iptables_takes_over_from_flannel_in_iptables_nft() {
    in_netns(takes_over("iptables-nft", Mode::Iptables));
}

#[test]
fn iptables_takes_over_from_flannel_in_legacy_iptables() {
    in_netns(takes_over("iptables-legacy", Mode::Iptables));
}

#[test]
fn legacy_iptables_takes_over_from_flannel_where_it_is_in_use() {
    in_netns(takes_over("iptables-legacy", Mode::Auto));
}

/// A ping every millisecond to the outside, which has no route back to pods,
/// while flannel's rules give way to ours.
async fn loses_nothing(iptables: &'static str, mode: Mode) {
    let node = Node::new();
    node.outside.sh("ip route del 10.5.1.0/24");
    run(&format!("{iptables} -P FORWARD DROP"));
    restore(iptables, CHAINS);
    let ping = node.pod.run(|| {
        std::process::Command::new("ping")
            .args(["-q", "-i", "0.001", "-c", "1500", "-W", "1", "192.0.2.2"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let firewall = Chosen::choose(mode, Vec::new()).await.unwrap();
    firewall.ensure(&rules()).await.unwrap();
    let output = ping.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1500 received"), "{iptables} {mode:?}: {text}");
    assert!(node.udp(6000, [192, 0, 2, 2]).is_some());
}

#[test]
fn no_packet_is_lost_when_flannels_rules_give_way() {
    in_netns(loses_nothing("iptables-nft", Mode::Nftables));
    in_netns(loses_nothing("iptables-nft", Mode::Iptables));
    in_netns(loses_nothing("iptables-legacy", Mode::Auto));
    in_netns(loses_nothing("iptables-legacy", Mode::Nftables));
}
