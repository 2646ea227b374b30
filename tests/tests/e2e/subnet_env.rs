//! `subnet.env`, as docker and the CNI plugin find it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use flannel_core::health::Subject;
use flannel_tests::agent::Options;
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::wait;

/// Leaves one subnet to choose.
fn config(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.5.0.0/16","SubnetLen":24,"SubnetMin":"10.5.27.0","SubnetMax":"10.5.27.0"{backend}}}"#
    )
}

const VXLAN: &str = r#","Backend":{"Type":"vxlan"}"#;

fn golden(name: &str) -> String {
    let path = format!("{}/golden/subnet.env.{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn started(lab: &Lab, options: &Options) -> Node {
    started_with(lab, VXLAN, options)
}

fn started_with(lab: &Lab, backend: &str, options: &Options) -> Node {
    let etcd = lab.empty_etcd();
    etcd.put_config(&config(backend));
    let mut node = lab.node(1);
    node.start(&etcd, options);
    // The store goes with its handle: what is looked at here is on the node.
    node
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").permissions().mode() & 0o7777
}

#[test]
fn vxlan_byte_for_byte() {
    for (ip_masq, name) in [(false, "vxlan"), (true, "vxlan-ip-masq")] {
        let lab = Lab::new();
        let node = started(&lab, &Options { ip_masq, ..Options::kernel() });
        assert_eq!(fs::read_to_string(node.subnet_file()).expect("subnet.env"), golden(name));
        assert_eq!(mode(&node.subnet_file()), 0o644);
    }
}

#[test]
fn other_backends_byte_for_byte() {
    // Without a Backend it is udp.
    for (backend, name) in [(r#","Backend":{"Type":"host-gw"}"#, "host-gw"), ("", "udp")] {
        let lab = Lab::new();
        let node = started_with(&lab, backend, &Options::default());
        assert_eq!(fs::read_to_string(node.subnet_file()).expect("subnet.env"), golden(name));
    }
}

#[test]
fn readable_whatever_the_umask() {
    let lab = Lab::new();
    let dir = lab.dir().join("made/flannel");
    let file = dir.join("subnet.env");
    let options = Options {
        wrapper: ["sh", "-c", "umask 077; exec \"$@\"", "sh"].map(str::to_owned).to_vec(),
        extra: vec![format!("-subnet-file={}", file.display())],
        ..Options::kernel()
    };
    let _node = started(&lab, &options);
    assert_eq!(fs::read_to_string(&file).expect("subnet.env"), golden("vxlan"));
    assert_eq!((mode(&file), mode(&dir)), (0o644, 0o755));
    // No temporary file stays.
    let names: Vec<_> = fs::read_dir(&dir).expect("the directory").collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn a_file_that_cannot_be_written_is_only_warned_of() {
    let lab = Lab::new();
    let options = Options {
        extra: vec!["-subnet-file=/proc/nowhere/subnet.env".to_owned()],
        ..Options::kernel()
    };
    // Ready all the same.
    let node = started(&lab, &options);
    wait::holds("a warning", Duration::from_secs(5), || {
        let log = node.agent_log();
        log.contains("WARN") && log.contains("/proc/nowhere/subnet.env")
    });
    assert!(node.complaint(Subject::SubnetFile).is_some(), "{:?}", node.status());
}
