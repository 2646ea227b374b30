//! What operators and other programs read.

use std::process::Command;

use flannel_core::status::{Attachment, DatapathKind};
use flannel_tests::agent::Options;
use flannel_tests::lab::Lab;
use flannel_tests::pair::Pair;
use flannel_tests::plain::key;
use flannel_tests::process::{output, run};

#[test]
fn lease_byte_for_byte() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.start(&etcd, &Options::kernel());
    let mac = node.vtep_mac();
    let expected = format!(
        r#"{{"PublicIP":"192.0.2.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    assert_eq!(etcd.subnets(), [(key(node.subnet()), expected)]);
    let leases = etcd.ctl(&["lease", "list"]);
    let id = leases.lines().last().expect("a lease");
    let text = etcd.ctl(&["lease", "timetolive", id, "--keys"]);
    assert!(text.contains("granted with TTL(86400s)") && text.contains("subnets/"), "{text}");
}

#[test]
fn device_as_flannel_makes_it() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.start(&etcd, &Options::kernel());
    let text = node.netns.ip("-d link show flannel.1");
    for words in [
        "mtu 1450",
        "vxlan id 1 local 192.0.2.11 dev eth0",
        "dstport 8472",
        "nolearning",
        "ageing 300",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let address = node.netns.ip("-4 -br address show flannel.1");
    assert!(address.contains(&format!("{}/32", node.subnet().network())), "{address}");
}

#[test]
fn service_manager_is_told() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.launch(&etcd, &Options::ebpf());
    let mut said = Vec::new();
    flannel_tests::wait::holds("READY=1 and STATUS=", std::time::Duration::from_secs(15), || {
        said.extend(node.notifications());
        said.iter().any(|line| line == "READY=1")
            && said.iter().any(|line| line.starts_with("STATUS="))
    });
    // Ready means usable: the file for CNI is there.
    assert!(node.environment("FLANNEL_SUBNET").is_some());
}

#[test]
fn status_and_peers() {
    let pair = Pair::agents(&Options::ebpf());
    let status = pair.left.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::Ebpf), "{status:?}");
    assert_eq!(status.datapath.reason, None, "nothing had to be given up: {status:?}");
    let attached = [Some(Attachment::Tcx), Some(Attachment::Clsact)];
    assert!(attached.contains(&status.datapath.attach), "{status:?}");
    let lease = status.lease.as_ref().expect("a lease");
    assert_eq!((lease.subnet, lease.public_ip), (pair.left.subnet(), pair.left.address));
    let seconds = lease.expires_in_seconds.expect("seconds");
    assert!((86_000..=86_400).contains(&seconds), "{status:?}");
    assert!(status.store.connected, "{status:?}");
    assert_eq!(status.health, [], "{status:?}");

    let peer = pair.left.peer(&pair.right);
    assert_eq!(peer.subnet, pair.right.subnet(), "{peer:?}");
    assert_eq!(peer.vtep_mac.map(|mac| mac.to_string()), Some(pair.right.vtep_mac()), "{peer:?}");

    let table = |command: &str| run(&mut pair.left.agent_command(command));
    let text = table("status");
    for word in ["ebpf", &pair.left.subnet().to_string(), "192.0.2.11"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let text = table("peers");
    let subnet = pair.right.subnet().to_string();
    for word in [subnet.as_str(), "192.0.2.12", &pair.right.vtep_mac()] {
        assert!(text.contains(word), "{word}: {text}");
    }
    // bpftool prints names of fields.
    let pins = flannel_tests::hooks::pins(pair.left.pin_dir());
    let map = pins.iter().find(|pin| pin.ends_with("fl_subnets4")).expect("a pinned map");
    let dump = run(Command::new("bpftool").args(["map", "dump", "pinned"]).arg(map));
    assert!(dump.contains("public_ip") && dump.contains("vtep_mac"), "{dump}");
}

#[test]
fn status_without_an_agent() {
    let lab = Lab::new();
    let node = lab.node(1);
    let output = output(&mut node.agent_command("status"));
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Nothing of it is there to go on forwarding.
    assert!(text.contains("not running; none has held a lease with --state-dir="), "{text}");
    assert!(!text.contains("goes on"), "{text}");
}

#[test]
fn status_after_an_agent() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.start(&etcd, &Options::kernel());
    node.stop_agent();
    let status = || output(&mut node.agent_command("status")).stdout;
    let text = String::from_utf8_lossy(&status()).into_owned();
    assert!(text.contains("not running; what it set up goes on forwarding"), "{text}");
    // As after the machine's start.
    node.netns.ip("link delete flannel.1");
    let text = String::from_utf8_lossy(&status()).into_owned();
    assert!(text.contains("not running, and flannel.1 is not there"), "{text}");
}

#[test]
fn flags_in_both_forms_and_environment() {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    etcd.ctl(&[
        "put",
        "/other/config",
        r#"{"Network":"10.7.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#,
    ]);
    let mut node = lab.node(1);
    let options = Options {
        extra: vec!["-etcd-prefix=/other".into(), "-ip-masq".into()],
        environment: vec![("FLANNELD_PUBLIC_IP".into(), "192.0.2.11".into())],
        ..Options::kernel()
    };
    node.start(&etcd, &options);
    node.netns.ip("link show flannel.7");
    assert_eq!(node.environment("FLANNEL_IPMASQ").as_deref(), Some("true"));
    assert_eq!(node.environment("FLANNEL_NETWORK").as_deref(), Some("10.7.0.0/16"));
    let keys = etcd.ctl(&["get", "--prefix", "--keys-only", "/other/subnets/"]);
    assert!(keys.contains("/other/subnets/10.7."), "{keys}");
}

#[test]
fn several_endpoints_of_which_one_answers() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    let endpoints = Some(format!("http://192.0.2.1:1,{}", etcd.endpoint()));
    node.start(&etcd, &Options { endpoints, ..Options::kernel() });
}
