//! The firewall's rules come back, and cost nothing while nobody touches them.

use std::thread;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::pair::Pair;
use flannel_tests::wait;

/// A second, and what looking from outside costs on a busy machine.
const LIMIT: Duration = Duration::from_millis(1500);

fn pair(firewall: &str) -> Pair {
    let extra = vec![format!("--firewall={firewall}")];
    Pair::agents(&Options { ip_masq: true, extra, ..Options::kernel() })
}

fn comes_back(firewall: &str, rules: &str, damage: &[&str]) {
    let pair = pair(firewall);
    let netns = &pair.left.netns;
    let looks = || netns.sh(rules).matches("flanneld").count();
    let before = looks();
    assert!(before >= 10, "{before}");
    for line in damage {
        netns.sh(line);
        wait::holds(&format!("repair of `{line}`"), LIMIT, || looks() == before);
    }
}

#[test]
fn rules_in_nftables_come_back() {
    comes_back(
        "nftables",
        "nft list ruleset",
        &[
            "nft flush ruleset",
            "nft delete table ip flannel-ipv4",
            "nft flush table ip flannel-ipv4",
        ],
    );
}

#[test]
fn rules_of_iptables_come_back() {
    comes_back(
        "iptables",
        "iptables-save",
        &["iptables -F", "iptables -t nat -F", "iptables -F FORWARD", "nft flush ruleset"],
    );
}

/// Page faults of a process's ended children: a program that runs has many, be
/// it ever so short.
fn childrens_faults(pid: u64) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, fields) = stat.rsplit_once(") ").expect("its name");
    fields.split(' ').nth(8).and_then(|faults| faults.parse().ok()).expect("a number")
}

#[test]
fn nothing_is_run_while_nothing_changes() {
    for firewall in ["nftables", "iptables"] {
        let pair = pair(firewall);
        let pid = pair.left.status()["pid"].as_u64().expect("a pid");
        thread::sleep(Duration::from_secs(2));
        let before = childrens_faults(pid);
        assert!(before > 0, "the children of the start are seen");
        thread::sleep(Duration::from_secs(5));
        assert_eq!(childrens_faults(pid), before, "{firewall}: a child has run");
    }
}
