//! The harness itself, on plain Linux nodes: what the other cases rely on.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use flannel_tests::lab::{Lab, OUTSIDE};
use flannel_tests::load::{
    BULK, CONNECTS, ECHOES, FLOOD, MESSAGES, REQUESTS, SPACED, STREAM, assert_whole,
};
use flannel_tests::netns;
use flannel_tests::packet::Wire;
use flannel_tests::process::run;
use flannel_tests::wait;
use std::time::Duration;

#[test]
fn plain_nodes_talk() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut first = lab.node(1);
    let mut second = lab.node(2);
    first.make_plain(&etcd, "10.244.1.0/24");
    second.make_plain(&etcd, "10.244.2.0/24");
    first.sync_plain(&etcd);
    second.sync_plain(&etcd);
    let client = first.pod(2);
    let mut server = second.pod(2);
    let target = server.serve();

    let text = client.ping(server.address, "-c 3 -i 0.05 -W 2");
    assert!(text.contains("ttl=62"), "{text}");

    let requests = client.traffic(REQUESTS, target, "--seconds 0.3");
    assert!(requests.transactions > 100, "{requests:?}");
    let connects = client.traffic(CONNECTS, target, "--seconds 0.3");
    assert!(connects.transactions > 50, "{connects:?}");
    let flood = client.traffic(FLOOD, target, "--seconds 0.3");
    assert!(flood.received > 1000, "{flood:?}");
    let stream = client.traffic(STREAM, target, "--seconds 0.3 --connections 2");
    assert!(stream.gbits > 0.1, "{stream:?}");
    let spaced = client.traffic(SPACED, target, "--seconds 0.5");
    assert_eq!(spaced.lost, 0, "{spaced:?}");
    assert_eq!(spaced.sent, 500, "{spaced:?}");
    for (load, options) in [
        (MESSAGES, "--upto 300"),
        (ECHOES, "--upto 300"),
        (ECHOES, "--from 20000 --upto 20002 --segment 1000"),
        (BULK, "--megabytes 20"),
    ] {
        let result = client.traffic(load, target, options);
        assert_whole(&result);
    }

    let wire = Wire::open(&second.netns, "eth0");
    client.ping(server.address, "-c 1 -W 2");
    let frames = wire.frames(Duration::from_secs(2), 2, |frame| {
        frame.len() > 50 && frame[23] == 17 && frame[36..38] == 8472_u16.to_be_bytes()
    });
    assert_eq!(frames.len(), 2, "request and answer in the tunnel");

    let outside = lab.outside();
    let (answered, text) = first.netns.ping(OUTSIDE, "-c 1 -W 2");
    assert!(answered, "{text}");
    drop(outside);
}

#[test]
fn loss_is_seen() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut first = lab.node(1);
    first.make_plain(&etcd, "10.244.1.0/24");
    let client = first.pod(2);
    let mut server = first.pod(3);
    let target = server.serve();
    let running = client.start_traffic(SPACED, target, "--seconds 1");
    std::thread::sleep(Duration::from_millis(300));
    first.netns.ip("link set veth3 down");
    std::thread::sleep(Duration::from_millis(200));
    first.netns.ip("link set veth3 up");
    let spaced = running.finish();
    assert!(spaced.lost > 50, "{spaced:?}");
}

/// What a killed run leaves in a control group, systems that it booted above all, ends
/// with the next run.
#[test]
fn a_killed_runs_processes_are_ended() {
    let mut ended = Command::new("true").spawn().expect("true");
    let pid = ended.id();
    ended.wait().expect("its end");
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"];
    let mut hierarchies = places.map(Path::new).into_iter();
    let hierarchy = hierarchies.find(|place| place.join("cgroup.procs").exists());
    let group = hierarchy.expect("a hierarchy").join(format!("flt-{pid}-0-n1"));
    let below = group.join("below");
    fs::create_dir_all(&below).expect("a group");
    let mut left = Command::new("sleep").arg("600").spawn().expect("sleep");
    fs::write(below.join("cgroup.procs"), left.id().to_string()).expect("a member");
    netns::sweep(false);
    assert!(!group.exists(), "{} is left", group.display());
    assert!(!left.wait().expect("its end").success(), "it was ended");
}

/// Stands for cargo and for xtask: what would be long has a child, and both are noted.
const BUSY: &str = r#"#!/bin/sh
case "$*" in
*clippy* | *build-ebpf*) ;;
*) exit 0 ;;
esac
sleep 60 &
echo $$ $! >> "$(dirname "$0")/pids"
wait
"#;

/// Whether a process runs; one that has ended and was not waited for does not.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn a_signal_to_ci_ends_all_that_it_started() {
    const CI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/run");
    for signal in ["TERM", "INT", "HUP"] {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |path: &str| dir.path().join(path);
        for (path, text) in [
            (".ci/run", fs::read_to_string(CI).expect("the script")),
            ("bin/cargo", BUSY.to_owned()),
            ("target/debug/xtask", BUSY.to_owned()),
        ] {
            fs::create_dir_all(at(path).parent().expect("a folder")).expect("make it");
            fs::write(at(path), text).expect("write it");
            fs::set_permissions(at(path), fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").expect("PATH"));
        let mut ci = Command::new(at(".ci/run"));
        let mut ci = ci.env("PATH", path).stdout(Stdio::null()).spawn().expect("start it");
        let pids = |file: &str| -> Vec<String> {
            let text = fs::read_to_string(at(file)).unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect()
        };
        let all = || [pids("bin/pids"), pids("target/debug/pids")].concat();
        wait::holds("both begin", Duration::from_secs(20), || all().len() == 4);
        assert!(all().iter().all(|pid| runs(pid)), "{:?}", all());
        run(Command::new("kill").args(["-s", signal, &ci.id().to_string()]));
        let status = ci.wait().expect("its end");
        assert!(!status.success(), "{signal}: {status}");
        wait::holds("the end of all", Duration::from_secs(5), || {
            !all().iter().any(|pid| runs(pid))
        });
    }
}
