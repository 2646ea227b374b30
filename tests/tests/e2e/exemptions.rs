//! Rules that judge each packet: from the node's firewall into the programs' map.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use flannel_core::firewall::packet_rules::exempt::{Effect, RuleLine};
use flannel_core::firewall::packet_rules::ruleset::Family;
use flannel_core::health::Subject;
use flannel_core::status::{PacketRulesMode, PacketRulesStatus};
use flannel_ebpf::abi::Exemption;
use flannel_tests::agent::Options;
use flannel_tests::etcd::Etcd;
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::process::run;
use flannel_tests::rules::Rules;
use flannel_tests::wait;

/// Half a second between two readings, and what looking from outside costs.
const LIMIT: Duration = Duration::from_secs(3);

/// An exemption of any address.
fn exemption(proto: u8, ports: [u16; 2], direction: u8, both_ways: u8) -> Exemption {
    let [dport_min, dport_max] = ports;
    Exemption { dport_min, dport_max, proto, direction, both_ways, ..Exemption::default() }
}

fn everything() -> Exemption {
    exemption(0, [0, 65535], 0, 0)
}

/// What status says of rules that judge each packet.
fn packet_rules(node: &Node) -> PacketRulesStatus {
    node.status().packet_rules.expect("rules are followed")
}

#[track_caller]
fn wait_for(node: &Node, what: &str, expected: &[Exemption]) {
    wait::holds(&format!("{what}: {expected:?}"), LIMIT, || node.exemptions() == expected);
}

fn started(options: &Options) -> (Lab, Etcd, Node) {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.start(&etcd, options);
    (lab, etcd, node)
}

#[test]
fn rules_of_nftables_are_followed() {
    let (_lab, _etcd, node) = started(&Options::ebpf());
    wait_for(&node, "no rules", &[]);
    let before = node.config().generation;
    node.netns.nft(
        "table ip t { chain f { type filter hook forward priority 5; \
         udp dport 5300 limit rate over 100/second drop; log group 3; }; }",
    );
    wait_for(&node, "a limit", &[exemption(17, [5300, 5300], 0, 0)]);
    assert!(node.config().generation > before, "confirmations end");
    let rules = packet_rules(&node);
    assert_eq!((rules.mode, rules.read), (PacketRulesMode::Respect, true), "{rules:?}");
    assert_eq!(rules.exempt, ["UDP to port 5300"]);
    let [limit, log] = rules.rules.as_slice() else { panic!("{rules:?}") };
    let expected = RuleLine {
        effect: Effect::KernelPath,
        family: Some(Family::Ip),
        table: Some("t".to_owned()),
        chain: Some("f".to_owned()),
        handle: limit.handle,
        rule: "udp dport 5300 limit rate over 100/second drop".to_owned(),
        why: "limit".to_owned(),
        matches: "UDP to port 5300".to_owned(),
    };
    assert_eq!(*limit, expected);
    assert!(limit.handle.is_some() && log.effect == Effect::Log, "{rules:?}");
    assert_eq!(node.not_well(), []);
    let text = run(&mut node.agent_command("status"));
    assert!(text.contains("ip t f handle") && text.contains("one packet of a flow"), "{text}");

    node.netns.nft("flush table ip t");
    wait_for(&node, "no rules again", &[]);
    // What stands on the kernel path's own devices only.
    node.netns.nft("add rule ip t f iifname lo limit rate 1/second drop");
    node.netns.nft("add rule ip t f iifname flannel.1 tcp dport 80 quota over 5 mbytes drop");
    wait_for(&node, "inwards", &[exemption(6, [80, 80], 2, 0)]);
}

#[test]
fn rules_of_both_kinds_of_iptables_are_followed() {
    let (_lab, _etcd, node) =
        started(&Options { extra: vec!["--resync-interval=2".into()], ..Options::ebpf() });
    let ftp = exemption(6, [21, 21], 0, 1);
    let limited = exemption(17, [53, 53], 0, 0);
    for kind in ["iptables-nft", "iptables-legacy"] {
        let helper = "-t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp";
        let limit = "-A FORWARD -p udp -m multiport --dports 53 -m limit --limit 9/sec -j ACCEPT";
        node.netns.sh(&format!("{kind} {helper}"));
        node.netns.sh(&format!("{kind} {limit}"));
        wait_for(&node, kind, &[ftp, limited]);
        // Old tables tell nobody: they are compared at the resync.
        node.netns.sh(&format!("{kind} -t raw -F PREROUTING"));
        wait_for(&node, kind, std::slice::from_ref(&limited));
        node.netns.sh(&format!("{kind} -F FORWARD"));
        wait_for(&node, kind, &[]);
    }
}

#[test]
fn rules_on_devices_of_the_path() {
    let pair = Pair::agents(&Options::ebpf());
    let node = &pair.left;
    let chain = |family: &str, hook: &str, device: &str| {
        let device = if device.is_empty() { String::new() } else { format!("device {device}") };
        node.netns.nft(&format!(
            "table {family} t {{ chain c {{ type filter hook {hook} {device} priority 0; \
             limit rate over 1000000/second drop; }}; }}"
        ));
    };
    for (family, hook, device, direction) in [
        ("netdev", "ingress", "veth2", Some(1)),
        ("netdev", "ingress", "flannel.1", Some(2)),
        ("netdev", "ingress", "eth0", Some(2)),
        ("netdev", "egress", "eth0", None),
        ("netdev", "egress", "cni0", Some(2)),
        ("netdev", "ingress", "lo", None),
        ("bridge", "input", "", Some(0)),
        ("bridge", "forward", "", None),
        ("ip", "output", "", None),
        // Tunnel packets come to the node itself.
        ("ip", "input", "", Some(2)),
    ] {
        chain(family, hook, device);
        // Another rule tells that it was read.
        node.netns.nft(
            "table ip told { chain c { type filter hook forward priority 7; \
             udp dport 9 limit rate 7/second drop; }; }",
        );
        let told = exemption(17, [9, 9], 0, 0);
        let expected = match direction {
            Some(0) => vec![everything()],
            Some(direction) => vec![exemption(0, [0, 65535], direction, 0), told],
            None => vec![told],
        };
        let sorted = |mut all: Vec<Exemption>| {
            all.sort();
            all
        };
        let expected = sorted(expected);
        wait::holds(&format!("{family} {hook} {device}: {expected:?}"), LIMIT, || {
            sorted(node.exemptions()) == expected
        });
        node.netns.nft(&format!("delete table {family} t; delete table ip told"));
        wait_for(node, "no rules", &[]);
    }
}

#[test]
fn rules_of_services_keep_nothing_off() {
    for rules in [Rules::Iptables, Rules::Nftables] {
        let (_lab, _etcd, node) = started(&Options::ebpf());
        rules.load(&node.netns);
        // Chance chooses among a service's pods, once for a connection.
        node.netns
            .sh("iptables -t nat -A POSTROUTING -m statistic --mode random --probability 0.5 \
             -j ACCEPT");
        node.netns.nft(
            "table ip told { chain c { type filter hook forward priority 7; \
             udp dport 9 limit rate 7/second drop; }; }",
        );
        wait_for(&node, "only what is no service's", &[exemption(17, [9, 9], 0, 0)]);
    }
}

#[test]
fn rules_can_be_ignored() {
    let options = Options { extra: vec!["--packet-rules=ignore".into()], ..Options::ebpf() };
    let (_lab, _etcd, node) = started(&options);
    node.netns.nft(
        "table ip t { chain f { type filter hook forward priority 5; \
         limit rate over 100/second drop; }; }",
    );
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(node.exemptions(), []);
    assert_eq!(packet_rules(&node).mode, PacketRulesMode::Ignore);
    let text = run(&mut node.agent_command("status"));
    assert!(text.contains("ignored (--packet-rules)"), "{text}");
}

#[test]
fn too_many_rules_count_as_all() {
    let (_lab, _etcd, node) = started(&Options::ebpf());
    let rules: String = (0..65)
        .map(|number| format!("udp dport {} limit rate 9/second drop\n", 2 * number + 1))
        .collect();
    node.netns.nft(&format!(
        "table ip t {{ chain f {{ type filter hook forward priority 5; \n{rules} }}; }}"
    ));
    wait_for(&node, "too many", &[everything()]);
    // It is told once the programs know.
    wait::holds(
        "it is told",
        LIMIT,
        || matches!(&node.not_well()[..], [line] if line.subject == Subject::PacketRules),
    );
    assert_eq!(packet_rules(&node).rules.len(), 65);
}

#[test]
fn rules_that_came_while_no_agent_ran_are_read() {
    let (_lab, etcd, mut node) = started(&Options::ebpf());
    let limited = exemption(17, [5300, 5300], 0, 0);
    node.stop_agent();
    node.netns.nft(
        "table ip t { chain f { type filter hook forward priority 5; \
         udp dport 5300 limit rate over 100/second drop; }; }",
    );
    node.start(&etcd, &Options::ebpf());
    wait_for(&node, "the limit", &[limited]);
}

/// An nft that lists the table `slow` only when a file is gone.
fn slow_nft(lab: &Lab) -> (std::path::PathBuf, Vec<(String, String)>) {
    let (programs, flag) = (lab.dir().join("programs"), lab.dir().join("hold"));
    fs::create_dir(&programs).expect("a directory");
    fs::write(&flag, "").expect("a file");
    let path = std::env::var("PATH").expect("PATH");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *' slow') while [ -e '{}' ]; do sleep 0.1; done;; esac\n\
         PATH='{path}' exec nft \"$@\"\n",
        flag.display()
    );
    let program = programs.join("nft");
    fs::write(&program, script).expect("a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    (flag, vec![("PATH".to_owned(), format!("{}:{path}", programs.display()))])
}

#[test]
fn a_listing_that_hangs_delays_nothing() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let (flag, environment) = slow_nft(&lab);
    let mut node = lab.node(1);
    node.netns.nft(
        "table ip slow { chain f { type filter hook forward priority 5; \
         udp dport 5300 limit rate over 100/second drop; }; }",
    );
    node.start(&etcd, &Options { environment, ..Options::ebpf() });
    assert_eq!(node.exemptions(), [everything()]);
    assert!(!packet_rules(&node).read);
    let text = run(&mut node.agent_command("status"));
    assert!(text.contains("not read yet"), "{text}");
    // A peer is programmed meanwhile, and rules are healed.
    let mut other = lab.node(2);
    other.start(&etcd, &Options::kernel());
    node.wait_routes(&[&other]);
    node.netns.nft("delete table ip flannel-ipv4");
    wait::holds("the agent's own rules", LIMIT, || {
        node.netns.try_sh("nft list table ip flannel-ipv4")
    });
    assert_eq!(node.exemptions(), [everything()]);
    fs::remove_file(flag).expect("remove a file");
    wait_for(&node, "the limit", &[exemption(17, [5300, 5300], 0, 0)]);
    assert!(packet_rules(&node).read);
}

#[test]
fn rules_that_cannot_be_listed_are_told() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.netns.nft("table ip t { chain f { type filter hook forward priority 5; }; }");
    // There is no nft, and the rules are somebody else's business.
    let empty = lab.dir().join("programs");
    fs::create_dir(&empty).expect("a directory");
    for program in ["nsenter", "setpriv"] {
        let found = run(std::process::Command::new("which").arg(program));
        std::os::unix::fs::symlink(found.trim(), empty.join(program)).expect("a link");
    }
    let environment = vec![("PATH".to_owned(), empty.display().to_string())];
    let options = Options { environment, extra: vec!["--firewall=none".into()], ..Options::ebpf() };
    node.start(&etcd, &options);
    let complaint = || node.complaint(Subject::PacketRules);
    let reason = wait::until("a complaint", LIMIT, complaint).0;
    assert!(reason.contains("there is no program nft"), "{reason}");
    assert!(reason.contains("nothing takes the fast path"), "{reason}");
    assert_eq!(node.exemptions(), [everything()]);
    // With the last table nothing is left to be listed.
    node.netns.nft("delete table ip t");
    wait_for(&node, "no rules", &[]);
    wait::holds("no complaint", LIMIT, || complaint().is_none());
}
