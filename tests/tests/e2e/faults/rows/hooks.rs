//! What happens to programs, maps and pins.

use super::{Act, Fault};
use flannel_core::health::Subject;

pub(in super::super) const HOOKS: &[Fault] = &[
    Fault::once(
        "the hooks are detached",
        "for link in $PINS/v*/links/*; do bpftool link detach pinned $link; done",
        0,
    )
    .programs(),
    Fault::once(
        "a clsact qdisc comes and goes",
        "tc qdisc add dev flannel.1 clsact; sleep 0.5; tc qdisc delete dev flannel.1 clsact",
        600,
    )
    .programs(),
    Fault::once(
        "the peer's map entry is deleted",
        "bpftool map delete pinned $PINS/v*/fl_subnets4 key 24 0 0 0 $PEER_KEY",
        0,
    )
    .programs(),
    Fault::once(
        "the peer's map entry is another",
        "bpftool map update pinned $PINS/v*/fl_subnets4 key 24 0 0 0 $PEER_KEY value 2 0 94 0 83 \
         9 0 0 192 0 2 99 0 0 0 0",
        600,
    )
    .programs(),
    Fault::once(
        "the map has a stranger",
        "bpftool map update pinned $PINS/v*/fl_subnets4 key 24 0 0 0 10 244 220 0 value 2 0 94 0 \
         83 9 0 0 192 0 2 99 0 0 0 0",
        0,
    )
    .restored(4500)
    .programs(),
    Fault::once(
        "the peer's address has another id",
        "bpftool map update pinned $PINS/v*/fl_peers4 key $PEER_ADDRESS value 77 0 0 0",
        600,
    )
    .programs(),
    Fault::once(
        "the pod's map entry is deleted",
        "bpftool map delete pinned $PINS/v*/fl_veths key $POD_KEY",
        0,
    )
    .programs(),
    Fault::once(
        "the pod's map entry is another",
        "bpftool map update pinned $PINS/v*/fl_veths key $POD_KEY value 3 1 0 0 44 1 0 0",
        0,
    )
    .programs(),
    Fault::once(
        "the map of pods has a stranger",
        "bpftool map update pinned $PINS/v*/fl_veths key 1 0 0 0 value 2 0 0 0 170 5 0 0",
        0,
    )
    .restored(4500)
    .programs(),
    Fault::once(
        "the peers' addresses have a stranger",
        "bpftool map update pinned $PINS/v*/fl_peers4 key 192 0 2 99 value 1 0 0 0",
        0,
    )
    .restored(4500)
    .programs(),
    Fault::once(
        "the sign of life is from tomorrow",
        "bpftool map update pinned $PINS/v*/fl_attended key 0 0 0 0 value 255 255 255 255 255 255 \
         255 127 1 0 0 0 0 0 0 0",
        0,
    )
    .programs(),
    Fault::once(
        "the sign of life is from yesterday",
        "bpftool map update pinned $PINS/v*/fl_attended key 0 0 0 0 value 1 0 0 0 0 0 0 0 1 0 0 0 \
         0 0 0 0",
        0,
    )
    .programs(),
    Fault::once(
        "the programs' settings are zero",
        "size=$(bpftool -j map show pinned $PINS/v*/fl_cfg | sed 's/.*bytes_value\":\\([0-9]*\\).*/\\1/'); \
         bpftool map update pinned $PINS/v*/fl_cfg key 0 0 0 0 value $(yes 0 | head -n $size | tr '\\n' ' ')",
        600,
    )
    .programs(),
    Fault::once(
        "the programs' settings are garbage",
        "size=$(bpftool -j map show pinned $PINS/v*/fl_cfg | sed 's/.*bytes_value\":\\([0-9]*\\).*/\\1/'); \
         bpftool map update pinned $PINS/v*/fl_cfg key 0 0 0 0 value \
         $(head -c $size /dev/urandom | od -An -v -tu1)",
        600,
    )
    .programs(),
    Fault::once(
        "all flows are garbage",
        "bpftool -j map dump pinned $PINS/v*/fl_flows4 | tr -d '\n' | sed 's/\"key\":\\[/\\n/g' \
         | sed -n 's/^\\(\"0x[^]]*\\)\\].*/\\1/p' | tr -d '\",' | sed 's/0x/ 0x/g' | while read -r key; do \
         bpftool map update pinned $PINS/v*/fl_flows4 key $key value \
         $(head -c 120 /dev/urandom | od -An -v -tu1) || :; done",
        0,
    )
    .programs(),
    Fault::once("the pins are removed", "rm -rf $PINS", 0).restored(2000).programs(),
    // Time and again a link's pin has no place while the link is attached.
    Fault::once(
        "pins and hooks are removed again and again",
        "for turn in $(seq 25); do \
         for link in $PINS/v*/links/*; do bpftool link detach pinned $link || :; done; \
         rm -rf $PINS || :; sleep 0.0$((turn % 10)); done",
        300,
    )
    .restored(2500)
    .programs(),
    Fault::once("one pin is removed", "rm $PINS/v*/fl_peers4", 0).restored(2000).programs(),
    Fault::once(
        "one pin is a directory",
        "dir=$(echo $PINS/v*); rm $dir/fl_peers4; mkdir $dir/fl_peers4",
        0,
    )
    .restored(2000)
    .programs(),
    Fault::lasting(
        "one pin is a directory with something in it",
        Act::Sh("dir=$(echo $PINS/v*); rm $dir/fl_peers4; mkdir -p $dir/fl_peers4/other"),
        2000,
        Act::Sh("rmdir $PINS/v*/fl_peers4/other"),
    )
    .restored(2000)
    .told(Subject::Pins)
    .programs(),
    Fault::once(
        "one pin is another map's",
        "dir=$(echo $PINS/v*); rm $dir/fl_subnets4; bpftool map create $dir/fl_subnets4 type \
         lpm_trie key 8 value 16 entries 65536 flags 1 name fl_subnets4",
        0,
    )
    .restored(2000)
    .programs(),
    Fault::lasting(
        "the BPF file system is not mounted",
        Act::Sh("umount --lazy $BPF"),
        1500,
        Act::Sh("mount -t bpf -o mode=700 bpf $BPF"),
    )
    .restored(2500)
    .told(Subject::Pins)
    .programs(),
];
