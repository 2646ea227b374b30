//! Programs that write the firewall anew take our rules away. They are back at once.

use std::time::Duration;

use flannel_tests::debian::Debian;
use flannel_tests::lab::Lab;
use flannel_tests::wait;

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
    for verb in ["start", "reload", "restart", "reload", "stop"] {
        rules_come_back_after(&machine, &format!("systemctl {verb} nftables"));
    }
    rules_come_back_after(&machine, "systemctl start firewalld");
    for line in ["firewall-cmd --reload", "firewall-cmd --complete-reload"] {
        rules_come_back_after(&machine, line);
    }
    rules_come_back_after(&machine, "systemctl stop firewalld");
    assert_eq!(machine.property("flannel-agent", "NRestarts"), "0");
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
