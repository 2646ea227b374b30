//! The firewall's rules come back, and cost nothing while nobody touches them.

use std::os::unix::fs::PermissionsExt as _;
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
        let pid = u64::from(pair.left.status().pid);
        thread::sleep(Duration::from_secs(2));
        let before = childrens_faults(pid);
        assert!(before > 0, "the children of the start are seen");
        thread::sleep(Duration::from_secs(5));
        assert_eq!(childrens_faults(pid), before, "{firewall}: a child has run");
    }
}

/// A directory with an `nft` that hangs, and fails then, while there is a file `hang`
/// beside it.
fn hanging_nft() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nft");
    let real = "PATH=\"${PATH#*:}\"";
    let hang = dir.path().join("hang");
    let script = format!(
        "#!/bin/sh\nif [ -e '{}' ]; then sleep 10; exit 1; fi\n{real} exec nft \"$@\"\n",
        hang.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn a_program_that_hangs_delays_nothing_but_its_rules() {
    let dir = hanging_nft();
    let path = std::env::var("PATH").unwrap();
    let environment = vec![("PATH".to_owned(), format!("{}:{path}", dir.path().display()))];
    let extra = vec!["--firewall=nftables".to_owned()];
    let pair = Pair::agents(&Options { ip_masq: true, environment, extra, ..Options::ebpf() });
    let netns = &pair.left.netns;
    let rules = || netns.sh("nft list ruleset").contains("flannel-ipv4");
    assert!(rules());
    let hang = dir.path().join("hang");
    std::fs::write(&hang, "").unwrap();
    netns.sh("nft delete table ip flannel-ipv4");
    wait::holds("the program to hang", Duration::from_secs(5), || {
        netns.sh("ps ax -o args").contains("sleep 10")
    });
    let routes = |subnet: &str| netns.ip("route show dev flannel.1").contains(subnet);
    let lease = r#"{"PublicIP":"192.0.2.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#;
    pair.etcd.put_subnet("10.244.250.0-24", lease);
    wait::holds("the route of a new lease", LIMIT, || routes("10.244.250.0/24"));
    let peer = pair.right.subnet().to_string();
    netns.ip(&format!("route del {peer} dev flannel.1"));
    wait::holds("the route that was deleted", LIMIT, || routes(&peer));
    assert_eq!(pair.left.status().peers, 2);
    assert!(!rules(), "all that was done while it hung");
    std::fs::remove_file(&hang).unwrap();
    wait::holds("the rules", Duration::from_secs(60), rules);
}
