//! Files of the packages that other programs read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use flannel_tests::agent;
use flannel_tests::process::output;
use flannel_tests::root::packaged;
use flannel_tests::unit::variables;

/// Checks a unit in a directory; complaints about other units are theirs.
#[track_caller]
fn verify(unit: &Path) {
    let name = unit.file_name().expect("a name").to_string_lossy().into_owned();
    let stem = name.split('.').next().expect("a name").to_owned();
    let output = output(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(unit));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<_> = said.lines().filter(|line| line.contains(&stem)).collect();
    assert!(output.status.success() && ours.is_empty(), "{name}: {said}");
}

#[test]
fn units_are_valid() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let agent = agent::program().display().to_string();
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging");
    // systemd looks whether the programs exist: where packages put them is
    // where this machine has none.
    let programs = [
        ("/usr/bin/flannel-agent ", format!("{agent} ")),
        ("/usr/bin/flanneld-start ", format!("{scripts}/flanneld-start ")),
        ("/usr/libexec/flannel/mk-docker-opts.sh ", format!("{scripts}/mk-docker-opts.sh ")),
    ];
    // The others name it.
    let units =
        [("flannel-rules.service", 1), ("flannel-agent.service", 2), ("flanneld.service", 2)];
    for (name, count) in units {
        let mut text = packaged(name);
        let mut found = 0;
        for (program, here) in &programs {
            for sign in ["=", "=-"] {
                found += text.matches(&format!("{sign}{program}")).count();
                text = text.replace(&format!("{sign}{program}"), &format!("{sign}{here}"));
            }
        }
        assert_eq!(found, count, "{name}");
        let copy = dir.path().join(name);
        fs::write(&copy, text).expect("write the unit");
        verify(&copy);
    }
}

#[test]
fn docker_drop_in_is_valid() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let drop_in = dir.path().join("docker.service.d");
    fs::create_dir(&drop_in).expect("a directory");
    // flanneld is wanted, and has to be known for that.
    fs::write(dir.path().join("flanneld.service"), "[Service]\nExecStart=/bin/true\n")
        .expect("write a unit");
    let text = packaged("docker.service.d/flannel.conf");
    let hint: String = text.replace("#ExecStart", "ExecStart");
    assert_eq!(hint.matches("\nExecStart=").count(), 2, "{hint}");
    for text in [text, hint] {
        // Docker's own unit, as its package brings it.
        let unit = dir.path().join("docker.service");
        fs::copy("/lib/systemd/system/docker.service", &unit).expect("docker's unit");
        fs::write(drop_in.join("flannel.conf"), text).expect("write the drop-in");
        verify(&unit);
    }
}

#[test]
fn sysconfig_has_the_packages_defaults() {
    let found: BTreeMap<_, _> = variables(&packaged("sysconfig/flanneld")).into_iter().collect();
    let expected = [
        ("FLANNEL_ETCD_ENDPOINTS", "http://127.0.0.1:2379"),
        ("FLANNEL_ETCD_PREFIX", "/atomic.io/network"),
    ];
    assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
}

#[test]
fn flanneld_start_hands_on_what_is_set() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let script = dir.path().join("flanneld-start");
    // Shows its arguments, one a line.
    let text = packaged("flanneld-start");
    assert!(text.contains("exec /usr/bin/flanneld \"$@\""), "{text}");
    fs::write(&script, text.replace("/usr/bin/flanneld", "printf '%s\\n'")).expect("a script");
    let new =
        [("FLANNEL_ETCD_ENDPOINTS", "http://a:1,http://b:1"), ("FLANNEL_ETCD_PREFIX", "/new")];
    let old = [("FLANNEL_ETCD", "http://old:1"), ("FLANNEL_ETCD_KEY", "/old")];
    let both = [new, old].concat();
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Variables<'_>, &[&str]); 5] = [
        (&new, &["-etcd-endpoints=http://a:1,http://b:1", "-etcd-prefix=/new"]),
        (&old, &["-etcd-endpoints=http://old:1", "-etcd-prefix=/old"]),
        (&both, &["-etcd-endpoints=http://a:1,http://b:1", "-etcd-prefix=/new"]),
        (&[new[0], old[1]], &["-etcd-endpoints=http://a:1,http://b:1", "-etcd-prefix=/old"]),
        (&[], &[]),
    ];
    for shell in [["dash"].as_slice(), &["busybox", "sh"]] {
        for (variables, expected) in cases {
            let mut command = Command::new(shell[0]);
            command.args(&shell[1..]).arg(&script).args(["-iface=eth0", "a b"]);
            let output = output(command.envs(variables.iter().copied()));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let expected = [expected, &["-iface=eth0", "a b"]].concat();
            assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{shell:?} {variables:?}");
        }
    }
}

#[test]
fn cni_configuration_is_flannels() {
    let text = packaged("cni/10-flannel.conflist");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let flannel = &value["plugins"][0];
    assert_eq!(flannel["type"], "flannel");
    assert_eq!(flannel["subnetFile"], "/run/flannel/subnet.env");
    // The plugin sets these itself and refuses a delegate that does.
    assert!(flannel["delegate"]["name"].is_null() && flannel["delegate"]["ipam"].is_null());
}
