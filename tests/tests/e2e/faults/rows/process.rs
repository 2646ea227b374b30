//! What happens to the agent itself.

use nix::sys::signal::Signal;

use super::{Act, Fault};

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
            cluster.shell("ip link delete flannel.1; rm $FILE").expect("a device");
        }),
        0,
        Act::Do(|cluster| cluster.start()),
    )
    .loss(2500),
    Fault::lasting(
        "the agent hangs",
        Act::Do(|cluster| {
            cluster.signal(Signal::SIGSTOP);
            cluster.shell("ip neigh delete 10.244.203.0 dev flannel.1").expect("a neighbour");
        }),
        2000,
        Act::Do(|cluster| cluster.signal(Signal::SIGCONT)),
    ),
    Fault::lasting(
        "the agent hangs for longer than its sign of life holds",
        Act::Do(|cluster| cluster.signal(Signal::SIGSTOP)),
        70_000,
        Act::Do(|cluster| cluster.signal(Signal::SIGCONT)),
    )
    .restored(3000)
    .long(),
];
