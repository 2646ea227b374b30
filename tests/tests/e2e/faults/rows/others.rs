//! What others put in the way: rules of routing, and programs before ours.

use std::path::Path;

use aya::EbpfLoader;
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use flannel_core::health::Subject;
use flannel_tests::assembled;

use super::{Act, Cluster, Fault, nothing_passes};

/// TCX_NEXT, TCX_DROP (`linux/bpf.h`), TC_ACT_OK (`linux/pkt_cls.h`).
const NEXT: i32 = -1;
const DROP: i32 = 2;
const OK: i32 = 0;

/// Nothing passed the rule of routing, which is deleted.
fn rule_goes(cluster: &mut Cluster) {
    nothing_passes(cluster);
    cluster.shell("ip rule delete pref 50; ip route flush table 78").expect("a rule");
}

pub(in super::super) const OTHERS: &[Fault] = &[
    Fault::lasting(
        "a rule of routing leads to nowhere",
        Act::Sh("ip route add blackhole default table 78; ip rule add pref 50 to $PEER lookup 78"),
        1500,
        Act::Do(rule_goes),
    )
    .loss(6000)
    .told(Subject::Detour),
    Fault::lasting(
        "a rule of routing leads through the underlay",
        Act::Sh(
            "ip route add default via 192.0.2.1 table 78; ip rule add pref 50 to $PEER lookup 78",
        ),
        1500,
        Act::Do(rule_goes),
    )
    .loss(6000)
    .told(Subject::Detour),
    Fault::lasting(
        "a rule of routing loses what comes from the pods' bridge",
        Act::Sh("ip rule add pref 50 iif cni0 to $PEER unreachable"),
        1500,
        Act::Do(rule_goes),
    )
    .loss(6000)
    .told(Subject::Detour),
    Fault::lasting(
        "a rule of routing loses what goes to a port",
        Act::Sh("ip rule add pref 50 to $PEER ipproto tcp dport 9 blackhole"),
        1500,
        Act::Sh("ip rule delete pref 50"),
    )
    .told(Subject::Detour),
    Fault::lasting(
        "all rules of routing are the kernel's again",
        Act::Sh("ip rule add pref 60 fwmark 0x77 lookup 78; ip rule add pref 70 lookup main"),
        500,
        Act::Sh("ip rule delete pref 60; ip rule delete pref 70"),
    ),
    Fault::lasting(
        "a filter on the pod's veth lets everything through",
        Act::Do(|cluster| filter(cluster, OK)),
        1500,
        Act::Sh("tc qdisc delete dev veth2 clsact; rm -r $BPF/before"),
    )
    // A qdisc that comes or goes stops the device's queues.
    .loss(100),
    Fault::lasting(
        "a filter on the pod's veth drops everything",
        Act::Do(|cluster| filter(cluster, DROP)),
        1500,
        Act::Do(|cluster| {
            nothing_passes(cluster);
            let script = "tc qdisc delete dev veth2 clsact; rm -r $BPF/before";
            cluster.shell(script).expect("a qdisc");
        }),
    )
    .loss(6000),
    Fault::lasting(
        "a program before ours lets everything through",
        Act::Do(|cluster| put_before_ours(cluster, &[assembled::answer(NEXT)])),
        1500,
        Act::Sh("rm -r $BPF/before"),
    ),
    Fault::lasting(
        "a program before ours drops everything",
        Act::Do(|cluster| put_before_ours(cluster, &[assembled::answer(DROP)])),
        1500,
        Act::Do(|cluster| {
            nothing_passes(cluster);
            cluster.shell("rm -r $BPF/before").expect("its links");
        }),
    )
    .loss(6000),
    Fault::lasting(
        "a program before ours sends everything elsewhere",
        Act::Do(|cluster| {
            cluster.shell("ip link add odd1 type bridge; ip link set odd1 up").expect("a device");
            let odd = cluster.pair.left.netns.ifindex("odd1");
            put_before_ours(cluster, &assembled::redirect(odd));
        }),
        1500,
        Act::Do(|cluster| {
            nothing_passes(cluster);
            cluster.shell("rm -r $BPF/before; ip link delete odd1").expect("its links");
        }),
    )
    .loss(6000),
];

/// Loads a program of these instructions, for what is done with it in the node.
fn loaded(
    cluster: &Cluster,
    code: &[[u8; 8]],
    then: impl FnOnce(&mut SchedClassifier, &Path) + Send,
) {
    let object = assembled::object("classifier", "before", &[code, &[assembled::EXIT]].concat());
    let dir = cluster.pins.with_file_name("before");
    std::fs::create_dir_all(&dir).expect("a directory");
    cluster.pair.left.netns.inside(|| {
        let mut ebpf = EbpfLoader::new().load(&object).expect("an object with a classifier");
        let program = ebpf.program_mut("before").expect("the program");
        let program: &mut SchedClassifier = program.try_into().expect("a classifier");
        program.load().expect("load it");
        then(program, &dir);
    });
}

/// Puts a program before all others on the way in of the card, and of the pod's veth.
fn put_before_ours(cluster: &Cluster, code: &[[u8; 8]]) {
    loaded(cluster, code, |program, dir| {
        for device in ["eth0", "veth2"] {
            let first = TcAttachOptions::TcxOrder(LinkOrder::first());
            let link = program.attach_with_options(device, TcAttachType::Ingress, first);
            let link = program.take_link(link.expect("a link")).expect("a link");
            let link = FdLink::try_from(link).expect("a tcx link");
            link.pin(dir.join(device)).expect("pin it");
        }
    });
}

/// A filter with this answer on the way in of the pod's veth.
fn filter(cluster: &mut Cluster, answer: i32) {
    loaded(cluster, &[assembled::answer(answer)], |program, dir| {
        program.pin(dir.join("program")).expect("pin it");
    });
    let script = "tc qdisc add dev veth2 clsact; \
                  tc filter add dev veth2 ingress bpf da object-pinned $BPF/before/program";
    cluster.shell(script).expect("a filter");
}
