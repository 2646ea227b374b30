//! Limits, classes and marks of the node hold for pods' traffic, whoever put
//! them there and when.

use std::time::Duration;

use aya::EbpfLoader;
use aya::programs::SchedClassifier;
use flannel_tests::agent::Options;
use flannel_tests::assembled::{self, EXIT, PRIORITY, jump_if};
use flannel_tests::beside::{Carried, Way, assert_five_mbit, beside, class_bytes, limited, pairs};
use flannel_tests::endpoint::Sink;
use flannel_tests::load::STREAM;
use flannel_tests::netns::Netns;
use flannel_tests::pair::Pair;
use flannel_tests::process::run;

/// A limit as bandwidth plugins and administrators set it.
const TBF: &str = "tbf rate 5mbit burst 32k latency 100ms";

/// What the bandwidth plugin of CNI makes for what a pod sends: its packets go
/// through an IFB device with a limit.
fn limit_sending(netns: &Netns, veth: &str) {
    for line in [
        "ip link add ifb0 mtu 1450 type ifb".to_owned(),
        "ip link set ifb0 up".to_owned(),
        format!("tc qdisc add dev ifb0 root {TBF}"),
        format!("tc qdisc add dev {veth} ingress"),
        format!(
            "tc filter add dev {veth} parent ffff: protocol all prio 1 u32 match u32 0 0 \
             action mirred egress redirect dev ifb0"
        ),
    ] {
        netns.sh(&line);
    }
}

/// What it makes for what a pod receives.
fn limit_receiving(netns: &Netns, veth: &str) {
    netns.sh(&format!("tc qdisc add dev {veth} root {TBF}"));
}

/// A limit that comes while a stream runs holds at once.
fn comes_late(limit: impl Fn(&Pair)) {
    pairs(&Options::default(), |pair, _| {
        let [before, after] = limited(pair, &limit);
        assert!(before > 50.0, "{before:.1} Mbit/s without a limit");
        assert_five_mbit(after);
    });
}

/// A limit that is there when the programs come holds from the first packet on.
fn is_there_before(limit: impl Fn(&Pair)) {
    beside(|way| {
        let mut pair = Pair::agents(&Options::kernel());
        limit(&pair);
        let options = way.options(&Options::default());
        for node in [&mut pair.left, &mut pair.right] {
            node.stop_agent();
            node.start(&pair.etcd, &options);
        }
        let sink = Sink::open(&pair.server.netns, pair.server.address, 7003);
        let _source = sink.source(&pair.client.netns, 0);
        assert_five_mbit(sink.rate(Duration::from_secs(2)));
    });
}

#[test]
fn a_pods_sending_is_limited_while_it_sends() {
    comes_late(|pair| limit_sending(&pair.left.netns, &pair.client.veth));
}

#[test]
fn a_pods_sending_is_limited_from_the_start() {
    is_there_before(|pair| limit_sending(&pair.left.netns, &pair.client.veth));
}

#[test]
fn a_pods_receiving_is_limited_while_it_receives() {
    comes_late(|pair| limit_receiving(&pair.right.netns, &pair.server.veth));
}

#[test]
fn a_pods_receiving_is_limited_from_the_start() {
    is_there_before(|pair| limit_receiving(&pair.right.netns, &pair.server.veth));
}

#[test]
fn a_limit_on_the_bridge_holds_while_it_comes() {
    comes_late(|pair| limit_receiving(&pair.right.netns, "cni0"));
}

#[test]
fn a_limit_on_the_bridge_holds_from_the_start() {
    is_there_before(|pair| limit_receiving(&pair.right.netns, "cni0"));
}

#[test]
fn a_limit_on_the_vxlan_device_holds() {
    comes_late(|pair| limit_receiving(&pair.left.netns, "flannel.1"));
}

#[test]
fn a_limit_within_the_pod_holds() {
    comes_late(|pair| limit_receiving(&pair.client.netns, "eth0"));
}

/// Classes on the underlay of `left`: 1:20 has 5 Mbit/s, all else has plenty.
fn classes(pair: &Pair) {
    for line in [
        "qdisc add dev eth0 root handle 1: htb default 10",
        "class add dev eth0 parent 1: classid 1:10 htb rate 10gbit quantum 60000",
        "class add dev eth0 parent 1: classid 1:20 htb rate 5mbit burst 32k cburst 32k",
    ] {
        pair.left.netns.sh(&format!("tc {line}"));
    }
}

/// A rule of `left`'s FORWARD hook for a stream to `server`.
fn rule(pair: &Pair, statement: &str) {
    pair.left.netns.nft(&format!(
        "table ip classes {{ chain forward {{ type filter hook forward priority 0;
            ip daddr {} tcp dport 7003 {statement}
        }}; }}",
        pair.server.address
    ));
}

/// A stream from pod to pod with this TOS goes through class 1:20 and no other, on the fast
/// path where there is one.
fn is_classed(pair: &Pair, way: Way, tos: u8) {
    let netns = &pair.left.netns;
    let bytes = || ["1:10", "1:20"].map(|class| class_bytes(netns, "eth0", class));
    let (before, carried) = (bytes(), Carried::of(&pair.left));
    let sink = Sink::open(&pair.server.netns, pair.server.address, 7003);
    let source = sink.source(&pair.client.netns, tos);
    std::thread::sleep(Duration::from_millis(500));
    assert_five_mbit(sink.rate(Duration::from_millis(2500)));
    drop(source);
    let (after, share) = (bytes(), Carried::of(&pair.left).share_since(&carried));
    let [plenty, limited] = [0, 1].map(|class| after[class] - before[class]);
    // The agent's own connections go through the other class.
    assert!(limited > 1_000_000 && plenty < 200_000, "1:20 {limited}, 1:10 {plenty} bytes");
    assert!(way == Way::Kernel || share > 0.8, "a share of {share} on the fast path");
    // Others are in the class of all others.
    pair.traffic(STREAM, "--seconds 0.3");
    let others = class_bytes(netns, "eth0", "1:10") - after[0];
    assert!(others > 1_000_000, "{others} bytes of another stream in 1:10");
}

#[test]
fn a_priority_set_by_a_rule_picks_the_class() {
    pairs(&Options::default(), |pair, way| {
        classes(pair);
        rule(pair, "meta priority set 1:20");
        is_classed(pair, way, 0);
    });
}

/// A filter on the mark 0x20, which the u32 classifier of some kernels ignores:
/// load the mark, compare, the class or none.
const MARKED: &str = "4,32 0 0 4294963220,21 0 1 32,6 0 0 4294967295,6 0 0 0";

#[test]
fn a_mark_set_by_a_rule_picks_the_class() {
    pairs(&Options::default(), |pair, way| {
        classes(pair);
        let mut filter = pair.left.netns.command("tc");
        filter.args(["filter", "add", "dev", "eth0", "parent", "1:", "protocol", "ip"]);
        run(filter.args(["bpf", "bytecode", MARKED, "classid", "1:20"]));
        rule(pair, "meta mark set 0x20");
        is_classed(pair, way, 0);
    });
}

#[test]
fn a_rule_that_comes_late_moves_a_running_stream_to_its_class() {
    pairs(&Options::default(), |pair, _| {
        classes(pair);
        let [before, after] = limited(pair, |pair| rule(pair, "meta priority set 1:20"));
        assert!(before > 50.0, "{before:.1} Mbit/s without a limit");
        assert_five_mbit(after);
    });
}

/// A filter on the priority of interactive traffic (6), which is what a queueing
/// discipline with a map of priorities goes by: the class or none.
fn interactive(pair: &Pair) {
    let code = [PRIORITY, jump_if(6, 2), assembled::answer(0), EXIT, assembled::answer(-1), EXIT];
    let object = assembled::object("classifier", "interactive", &code);
    let mut ebpf = EbpfLoader::new().load(&object).expect("an object with a classifier");
    let program: &mut SchedClassifier =
        ebpf.program_mut("interactive").expect("the program").try_into().expect("a classifier");
    program.load().expect("load it");
    let pin = pair.left.pin_dir().with_file_name("interactive");
    std::fs::create_dir_all(pair.left.pin_dir()).expect("a directory for pins");
    program.pin(&pin).expect("pin it");
    pair.left.netns.sh(&format!(
        "tc filter add dev eth0 parent 1: protocol ip bpf object-pinned {} classid 1:20",
        pin.display()
    ));
}

#[test]
fn a_priority_from_the_tos_byte_picks_the_class() {
    pairs(&Options::default(), |pair, way| {
        classes(pair);
        interactive(pair);
        is_classed(pair, way, 0x10);
    });
}
