//! What happens to files and their disk.

use super::{Act, Fault};
use flannel_core::health::Subject;

pub(in super::super) const FILES: &[Fault] = &[
    Fault::once("subnet.env is deleted", "rm $FILE", 0),
    Fault::once("subnet.env is overwritten", "echo FLANNEL_MTU=7 > $FILE", 0),
    Fault::once("subnet.env is empty", ": > $FILE", 0),
    Fault::once("subnet.env is a directory", "rm $FILE; mkdir $FILE", 0),
    Fault::once("subnet.env is a symbolic link", "ln -sf /dev/null $FILE", 0),
    Fault::once("subnet.env is a link to nothing", "ln -sf $DIR/nothing $FILE", 0),
    Fault::once("the state file is garbage", "echo garbage > $STATE/state.json", 0),
    Fault::once("the state file is deleted", "rm $STATE/state.json", 0),
    Fault::once("the state directory is removed", "rm -r $STATE", 0),
    Fault::once("the lock is removed", "rm $STATE/lock", 0),
    Fault::once("the lock is a directory", "rm $STATE/lock; mkdir $STATE/lock", 0),
    Fault::lasting(
        "the lock is a directory with something in it",
        Act::Sh("rm $STATE/lock; mkdir -p $STATE/lock/other"),
        2000,
        Act::Sh("rmdir $STATE/lock/other"),
    )
    .told(Subject::StateFile),
    Fault::once("the control socket is removed", "rm $STATE/agent.sock", 0),
    Fault::lasting(
        "the disk is full",
        // Before the disk is full, the agent would write them anew.
        Act::Try(|cluster| {
            let script = "rm $FILE $STATE/state.json; cat /dev/zero > $DIR/filler 2>&- || :";
            cluster.unseen(script)
        }),
        2000,
        Act::Sh("rm $DIR/filler"),
    )
    .told(Subject::SubnetFile),
    Fault::lasting(
        "the file system is read-only",
        Act::Try(|cluster| {
            cluster.unseen(
                "rm $FILE $STATE/state.json; mount --bind $DIR $DIR; \
                 mount -o remount,bind,ro $DIR",
            )
        }),
        2000,
        Act::Sh("umount $DIR"),
    )
    .told(Subject::SubnetFile),
    Fault::lasting(
        "subnet.env is a read-only mount",
        Act::Sh(
            "echo FLANNEL_MTU=7 > $DIR/other; mount --bind $DIR/other $FILE; \
                 mount -o remount,bind,ro $FILE",
        ),
        2000,
        Act::Sh("umount $FILE; echo > $FILE"),
    )
    .told(Subject::SubnetFile),
];
