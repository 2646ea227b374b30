//! What happens to the agent itself.

use std::fs;
use std::path::Path;

use flannel_tests::cgroup::MemoryGroup;
use nix::sys::signal::Signal;

use super::{Act, Cluster, Fault};

/// What an agent may need more that does nothing new: 4 MB.
const LITTLE: u64 = 4 << 20;

pub(in super::super) const PROCESS: &[Fault] = &[
    Fault::lasting(
        "the agent is killed",
        Act::Do(|cluster| cluster.pair.left.kill_agent()),
        1000,
        Act::Do(|cluster| cluster.start()),
    ),
    Fault::lasting(
        "the agent is stopped",
        Act::Do(|cluster| assert!(cluster.pair.left.stop_agent().success())),
        1000,
        Act::Do(|cluster| cluster.start()),
    ),
    Fault::lasting(
        "the agent is killed, and its device deleted",
        Act::Do(|cluster| {
            cluster.pair.left.kill_agent();
            // Another fault may have taken them away, or put something in their place.
            let script = "ip link delete flannel.1 || :; rm -rf $FILE";
            cluster.shell(script).expect("a shell");
        }),
        0,
        Act::Do(|cluster| cluster.start()),
    )
    .loss(2500),
    Fault::lasting(
        "the agent hangs",
        Act::Do(|cluster| {
            cluster.signal(Signal::SIGSTOP);
            // Nothing else happens to this one, unless the device has gone.
            let script = "ip neigh delete 10.244.203.0 dev flannel.1 || :";
            cluster.shell(script).expect("a shell");
        }),
        2000,
        Act::Do(|cluster| cluster.signal(Signal::SIGCONT)),
    ),
    Fault::lasting(
        "the agent hangs while its lease ends",
        Act::Do(|cluster| {
            cluster.signal(Signal::SIGSTOP);
            let key = flannel_tests::plain::key(cluster.subnet);
            cluster.pair.etcd.delete_subnet(&key);
        }),
        2500,
        Act::Do(|cluster| cluster.signal(Signal::SIGCONT)),
    )
    // The other node has no peer meanwhile.
    .loss(4000)
    .rewrites()
    .restored(3000),
    Fault::lasting(
        "the agent may open nothing more, and a route and a file are deleted",
        Act::Do(|cluster| {
            limit_files(cluster, 3);
            cluster.shell("ip route delete $PEER || :; rm -rf $FILE").expect("a shell");
        }),
        2000,
        Act::Do(|cluster| limit_files(cluster, FILES)),
    )
    .loss(600)
    .restored(3000),
    Fault::lasting(
        "there is hardly any memory left, and a device and a pin are deleted",
        Act::Do(|cluster| {
            // Where there are no such groups, the rest happens all the same.
            if let Some(group) = MemoryGroup::new() {
                enter(cluster, &group.door());
                group.allow(LITTLE);
                // It is removed at the end, when it is empty.
                std::mem::forget(group);
            }
            let script = "ip link delete flannel.1 || :; rm -f $PINS/v*/fl_peers4";
            cluster.shell(script).expect("a shell");
        }),
        2000,
        Act::Do(|cluster| {
            if let Some(group) = MemoryGroup::new() {
                enter(cluster, &group.way_out());
            }
        }),
    )
    .loss(1000),
    Fault::lasting(
        "the agent hangs for longer than its sign of life holds",
        Act::Do(|cluster| cluster.signal(Signal::SIGSTOP)),
        70_000,
        Act::Do(|cluster| cluster.signal(Signal::SIGCONT)),
    )
    .restored(3000)
    .programs()
    .long(),
];

/// How many files the agent may have open at the end.
const FILES: u32 = 1024;

fn limit_files(cluster: &mut Cluster, most: u32) {
    let pid = cluster.pair.left.agent_pid();
    cluster.shell(&format!("prlimit --pid {pid} --nofile={most}:")).expect("a limit");
}

fn enter(cluster: &mut Cluster, door: &Path) {
    fs::write(door, cluster.pair.left.agent_pid().to_string()).expect("the group takes the agent");
}
