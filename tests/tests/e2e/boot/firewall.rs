//! Programs that write the firewall anew take our rules away. They are back at once.

use std::time::Duration;

use flannel_tests::debian::Debian;
use flannel_tests::lab::Lab;
use flannel_tests::wait;
use serde_json::Value;

use super::{boot, present};

/// Our table after a flush. A pass of the loop every half second puts it back.
const BACK: Duration = Duration::from_millis(1500);

#[track_caller]
fn rules_come_back_after(machine: &Debian, line: &str) {
    machine.sh(line);
    let took = wait::holds(&format!("rules after {line}"), BACK, || has_rules(machine));
    eprintln!("{line}: rules seen after {took:?}");
    // Not those from before, which a slow flush would still take.
    std::thread::sleep(Duration::from_millis(200));
    assert!(has_rules(machine), "{line}: the rules went again");
}

fn has_rules(machine: &Debian) -> bool {
    machine.try_sh("nft list table ip flannel-ipv4 | grep -q masquerade")
}

#[test]
fn rules_are_back_after_a_firewall_was_loaded() {
    let lab = Lab::new();
    let mut node = lab.node(1);
    let machine = boot(&mut node);
    machine.sh(&format!("dpkg -i {}", present()));
    machine.write("/etc/sysconfig/flanneld", "FLANNELD_IP_MASQ=true\n");
    machine.sh("systemctl start flannel-agent");
    assert!(has_rules(&machine), "{}", machine.sh("nft list ruleset"));
    rules_come_back_after_all(&machine, &["start", "reload", "restart", "reload", "stop"]);
    assert_eq!(machine.property("flannel-agent", "NRestarts"), "0");

    machine.sh("systemctl stop flannel-agent");
    wait::holds("the unit that keeps the rules", Duration::from_secs(5), || machine.try_sh(KEPT));
    let exposed = "systemd-analyze security --no-pager --threshold=25 flannel-rules.service";
    machine.sh(exposed);
    rules_come_back_after_all(&machine, &["restart", "reload", "stop"]);
    machine.sh("systemctl start flannel-agent");
    wait::holds("the end of the unit when an agent runs", Duration::from_secs(10), || {
        !machine.try_sh(KEPT)
    });
    assert_eq!(machine.property("flannel-rules", "Result"), "success");
    // What has been cleaned up stays so.
    machine.sh("systemctl stop flannel-agent && flannel-agent cleanup");
    wait::holds("its end after cleanup", Duration::from_secs(10), || !machine.try_sh(KEPT));
    assert!(!machine.try_sh("nft list table ip flannel-ipv4"), "rules after cleanup");
}

/// Whether the rules of an agent that has been stopped are kept.
const KEPT: &str = "systemctl is-active --quiet flannel-rules";

#[track_caller]
fn rules_come_back_after_all(machine: &Debian, verbs: &[&str]) {
    for verb in verbs {
        rules_come_back_after(machine, &format!("systemctl {verb} nftables"));
    }
    rules_come_back_after(machine, "systemctl start firewalld");
    for line in ["firewall-cmd --reload", "firewall-cmd --complete-reload"] {
        rules_come_back_after(machine, line);
    }
    rules_come_back_after(machine, "systemctl stop firewalld");
}

/// What `check` finds about firewalld and ufw: the first finding's state and remedy.
#[track_caller]
fn firewall_service(machine: &Debian) -> (String, String) {
    let report = machine.sh("flannel-agent check --json || :");
    let report: Value = serde_json::from_str(&report).expect("a report");
    let findings = report["findings"].as_array().expect("findings");
    let found = findings.iter().find(|finding| finding["id"] == "firewall-service");
    let found = found.expect("a finding about firewalls");
    let word = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    (word("state"), word("remedy"))
}

#[test]
fn firewalld_takes_the_commands_that_check_names() {
    let lab = Lab::new();
    let mut node = lab.node(1);
    let machine = boot(&mut node);
    machine.sh(&format!("dpkg -i {}", present()));
    machine.sh("systemctl start flannel-agent");
    assert_eq!(firewall_service(&machine).0, "well");
    machine.sh("systemctl start firewalld && firewall-cmd --state");
    let (state, remedy) = firewall_service(&machine);
    assert_eq!(state, "degraded");
    machine.sh(&format!("set -e; {remedy}"));
    assert_eq!(firewall_service(&machine).0, "well", "after {remedy}");
}

/// Both are started at boot: the firewall first, so that it flushes nothing of ours.
#[test]
fn the_units_start_after_the_firewalls() {
    for unit in ["flannel-agent.service", "flanneld.service"] {
        let text = flannel_tests::root::packaged(unit);
        let after: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("After="))
            .flat_map(str::split_whitespace)
            .collect();
        for firewall in ["nftables", "firewalld", "netfilter-persistent", "iptables", "ufw"] {
            let firewall = format!("{firewall}.service");
            assert!(after.contains(&firewall.as_str()), "{unit}: {firewall} is not in {after:?}");
        }
    }
}
