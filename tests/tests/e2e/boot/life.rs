//! From the installation to the purge.

use std::fs;
use std::time::Duration;

use flannel_core::status::DatapathKind;
use flannel_tests::debian::Debian;
use flannel_tests::first_edition::carried;
use flannel_tests::lab::Lab;
use flannel_tests::load::SPACED;
use flannel_tests::pair::Pair;
use flannel_tests::skip::skip;
use flannel_tests::wait;

use crate::editions::{all_new, programs};

use super::{EARLIER_VERSION, boot, earlier, first_edition, present, start_peer};

const UNIT: &str = "flannel-agent.service";
/// How long pods talk while something is done to the agent.
const STREAM: Duration = Duration::from_secs(5);

/// What systemd-analyze finds at most, in tenths: a sandbox that lets more through has a
/// reason, or is a mistake.
const EXPOSURE: &str = "29";

/// All that is left of a package, other than dpkg's own notes, caches and logs.
const LIST: &str = "find /etc /opt /run/flannel* /usr /var/lib ! -type d \
    ! -path '/var/lib/dpkg/*' ! -path '/var/lib/etcd/*' ! -path '/var/lib/systemd/*' \
    ! -path '/etc/default/etcd' 2>/dev/null | sort";

/// What the agent sets or makes outside files.
const STATE: &str = "sysctl net.netfilter.nf_conntrack_tcp_be_liberal \
    net.netfilter.nf_conntrack_tcp_timeout_unacknowledged \
    net.netfilter.nf_conntrack_tcp_timeout_max_retrans; \
    ip -brief link show type vxlan; nft list ruleset; ls -A /sys/fs/bpf; \
    systemctl list-unit-files 'flannel*' --no-legend || :";

#[track_caller]
fn wait_active(machine: &Debian) {
    wait::holds("the service", Duration::from_secs(20), || {
        machine.property(UNIT, "ActiveState") == "active"
    });
}

#[test]
fn a_node_from_an_earlier_version_to_the_purge() {
    if first_edition().is_none() {
        skip("boot::life, the first edition", "it needs the repository's whole history");
    }
    let lab = Lab::new();
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    let machine = boot(&mut left);
    let (files, state) = (machine.sh(LIST), machine.sh(STATE));

    machine.sh(&format!("dpkg -i {}", earlier()));
    assert_eq!(machine.property(UNIT, "ActiveState"), "inactive", "installing starts nothing");
    // Comes back with READY=1.
    machine.sh(&format!("systemctl enable --now {UNIT}"));
    assert_eq!(machine.property(UNIT, "ActiveState"), "active");
    start_peer(&lab, &mut right, &left);
    let etcd = lab.stopped_etcd();
    let mut pair = Pair::with_pods(lab, etcd, left, right);
    the_earlier_version_carries(&pair);

    upgrade(&machine, &mut pair);
    machine.sh(&format!("systemd-analyze security --no-pager --threshold={EXPOSURE} {UNIT}"));
    pair.check_integrity(8);
    let running = programs(&pair.left);
    pair.nothing_lost(STREAM, |_| drop(machine.sh(&format!("systemctl restart {UNIT}"))));
    assert_eq!(programs(&pair.left), running, "a restart takes over the programs");
    nothing_was_kept(&machine);
    pair.nothing_lost(STREAM, |_| {
        machine.sh(&format!("systemctl kill --signal=KILL {UNIT}"));
        wait::holds("systemd to start it again", Duration::from_secs(10), || {
            machine.property(UNIT, "NRestarts") == "1"
        });
        wait_active(&machine);
    });
    let install = "apt-get install --quiet=2 --allow-downgrades";
    replace(&machine, &mut pair, &format!("{install} {}", earlier()), EARLIER_VERSION);
    the_earlier_version_carries(&pair);
    upgrade(&machine, &mut pair);
    pair.nothing_lost(STREAM, |_| drop(machine.sh(&format!("systemctl stop {UNIT}"))));
    assert_eq!(machine.property(UNIT, "Result"), "success");
    machine.sh(&format!("systemctl start {UNIT}"));

    machine.sh("dpkg --purge flannel-ebpf");
    assert_eq!(machine.sh(LIST), files, "purge leaves no file");
    assert_eq!(machine.sh(STATE), state, "purge leaves nothing in the kernel");
}

/// The first edition's programs of ABI 1 do, and no others are there.
#[track_caller]
fn the_earlier_version_carries(pair: &Pair) {
    if first_edition().is_none() {
        return pair.fast_both_ways();
    }
    let mut before = carried(&pair.left);
    wait::holds("the first edition's fast path", Duration::from_secs(5), || {
        let spaced = pair.traffic(SPACED, "--seconds 0.5");
        assert_eq!(spaced.lost, 0, "{spaced:?}");
        let then = std::mem::replace(&mut before, carried(&pair.left));
        ["encap", "decap"].iter().all(|way| before[way] > then[way] + 400)
    });
    let versions = fs::read_dir(pair.left.pin_dir()).expect("the pin directory");
    let versions: Vec<_> = versions.map(|entry| entry.expect("a version").file_name()).collect();
    assert_eq!(versions, ["v1"]);
}

/// From the earlier version to the present package, whose programs take over.
#[track_caller]
fn upgrade(machine: &Debian, pair: &mut Pair) {
    let (subnet, before) = (pair.left.subnet(), programs(&pair.left));
    replace(machine, pair, &format!("dpkg -i {}", present()), env!("CARGO_PKG_VERSION"));
    assert_eq!(pair.left.subnet(), subnet);
    if first_edition().is_some() {
        all_new(&pair.left, &before);
    }
    nothing_was_kept(machine);
    pair.fast_both_ways();
    let status = pair.left.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::Ebpf), "{status:?}");
    assert!(status.health.is_empty(), "{:?}", status.health);
}

/// Since its start the agent has called no program of the run before somebody else's.
#[track_caller]
fn nothing_was_kept(machine: &Debian) {
    let events = machine.sh("flannel-agent events");
    assert!(events.contains("ready with") && !events.contains("the kernel carries"), "{events}");
}

/// What runs is replaced by the package's, once, and no packet of the pods' stream is
/// lost.
#[track_caller]
fn replace(machine: &Debian, pair: &mut Pair, install: &str, version: &str) {
    let process = machine.property(UNIT, "MainPID");
    pair.nothing_lost(STREAM, |_| {
        machine.sh(install);
        wait::holds("another process", Duration::from_secs(20), || {
            let now = machine.property(UNIT, "MainPID");
            now != process && now != "0"
        });
        wait_active(machine);
    });
    assert_eq!(machine.sh("dpkg-query -W -f '${Version}' flannel-ebpf"), version);
    assert_eq!(machine.sh(&format!("systemctl is-enabled {UNIT}")).trim(), "enabled");
}

/// As when an interface comes long after the boot. More starts in a row than systemd allows
/// by itself.
#[test]
fn a_start_that_fails_is_tried_until_it_works() {
    let lab = Lab::new();
    let mut node = lab.node(1);
    let machine = boot(&mut node);
    machine.sh(&format!("dpkg -i {}", present()));
    let restart = format!("systemctl restart {UNIT}");
    machine.write("/etc/sysconfig/flanneld", "FLANNEL_OPTIONS=--no-such-flag\n");
    assert!(!machine.try_sh(&restart));
    assert_eq!(machine.property(UNIT, "ActiveState"), "failed", "a wrong flag is not tried again");

    machine.write("/etc/sysconfig/flanneld", "FLANNELD_IFACE=late0\n");
    for _ in 0..8 {
        assert!(!machine.try_sh(&restart), "there is no such interface");
    }
    assert_eq!(machine.property(UNIT, "Result"), "exit-code");
    machine.sh(
        "ip link add late0 type veth peer name late1 && ip address add 198.51.100.1/24 dev late0 \
         && ip link set late1 up && ip link set late0 up",
    );
    wait_active(&machine);
}
