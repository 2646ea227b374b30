//! The harness itself, on plain Linux nodes: what the other cases rely on.

use std::fs;
use std::path::Path;
use std::process::Command;

use flannel_tests::lab::{Lab, OUTSIDE};
use flannel_tests::load::{
    BULK, CONNECTS, ECHOES, FLOOD, MESSAGES, REQUESTS, SPACED, STREAM, assert_whole,
};
use flannel_tests::netns;
use flannel_tests::packet::Wire;
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
