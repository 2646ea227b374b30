//! Pods on different nodes talk, whatever the nodes run.

use std::time::Duration;

use flannel_core::status::DatapathKind;
use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::load::{BULK, CONNECTS, REQUESTS, SPACED, STREAM};
use flannel_tests::packet::Wire;
use flannel_tests::pair::{Kind, Pair};
use flannel_tests::told::fast_share;
use flannel_tests::wait;

fn talk(left: &Kind, right: &Kind) {
    let pair = Pair::new(left, right);
    for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
        let text = from.ping(to.address, "-c 5 -i 0.1 -W 2");
        assert_eq!(text.matches("ttl=62").count(), 5, "{text}");
    }
    let stream = pair.traffic(STREAM, "--seconds 1");
    assert!(stream.bytes > 10_000_000, "{stream:?}");
    let requests = pair.traffic(REQUESTS, "--seconds 1");
    assert!(requests.transactions > 500, "{requests:?}");
    let connects = pair.traffic(CONNECTS, "--seconds 1");
    assert!(connects.transactions > 100, "{connects:?}");
    let spaced = pair.traffic(SPACED, "--seconds 2");
    assert_eq!(spaced.lost, 0, "{spaced:?}");
    let bulk = pair.traffic(BULK, "--megabytes 20");
    assert_eq!(bulk.corrupt, 0, "{bulk:?}");
}

#[test]
fn ebpf_to_ebpf() {
    talk(&Kind::Agent(Options::ebpf()), &Kind::Agent(Options::ebpf()));
}

#[test]
fn ebpf_to_ebpf_with_clsact_filters() {
    let clsact = Options { attach: Some("clsact"), ..Options::ebpf() };
    talk(&Kind::Agent(clsact.clone()), &Kind::Agent(clsact));
}

#[test]
fn ebpf_to_kernel() {
    talk(&Kind::Agent(Options::ebpf()), &Kind::Agent(Options::kernel()));
}

#[test]
fn kernel_to_ebpf() {
    talk(&Kind::Agent(Options::kernel()), &Kind::Agent(Options::ebpf()));
}

#[test]
fn ebpf_to_plain_linux() {
    talk(&Kind::Agent(Options::ebpf()), &Kind::Plain);
}

#[test]
fn plain_linux_to_ebpf() {
    talk(&Kind::Plain, &Kind::Agent(Options::ebpf()));
}

fn fast_path_carries(options: &Options) {
    let pair = Pair::agents(options);
    let look = || {
        let [left, right] = [&pair.left, &pair.right];
        (left.counted(right), right.counted(left), left.outcomes())
    };
    let (left, right, outcomes) = look();
    let requests = pair.traffic(REQUESTS, "--seconds 4");
    let transactions = requests.transactions;
    let (left_after, right_after, outcomes_after) = look();

    for (name, share) in
        [("left", fast_share(&left, &left_after)), ("right", fast_share(&right, &right_after))]
    {
        assert!(share > 0.99, "{name}: the fast path carried {share}: {left:?} -> {left_after:?}");
    }
    // The handshake and the end: SYN and FIN of the client, at least.
    let since = outcomes_after.since(&outcomes);
    assert!(since.get(Outcome::KernelTcpState) >= 2, "{since:?}");
    // No more than what connects, proves and ends flows.
    assert!(since.get(Outcome::KernelTcpState) < 20, "{since:?}");
    // A request is a packet; none is counted twice or not at all.
    let sent = left_after.tx_fast_packets - left.tx_fast_packets
        + (left_after.tx_kernel_packets - left.tx_kernel_packets);
    assert!(sent >= transactions, "{sent} packets for {transactions} requests");
}

#[test]
fn fast_path_carries_established_flows() {
    fast_path_carries(&Options::ebpf());
}

#[test]
fn fast_path_carries_established_flows_with_clsact_filters() {
    fast_path_carries(&Options { attach: Some("clsact"), ..Options::ebpf() });
}

#[test]
fn datapath_auto_chooses_ebpf_here() {
    let pair = Pair::agents(&Options::default());
    let status = pair.left.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::Ebpf), "{status:?}");
    assert_eq!(status.peers, 1, "{status:?}");
}

#[test]
fn pods_of_before_and_after_the_start_use_the_fast_path() {
    let mut pair = Pair::agents(&Options::ebpf());
    pair.left.stop_agent();
    let before = pair.left.pod(3);
    pair.left.start(&pair.etcd, &Options::ebpf());
    let after = pair.left.pod(4);
    let limit = Duration::from_secs(1);
    for pod in [&before, &after] {
        // The first probe waits for neither hook nor neighbour: within a second
        // both are there.
        wait::holds("fast path of a new pod", limit + Duration::from_secs(1), || {
            let start = pair.left.outcomes();
            pod.traffic(SPACED, pair.server.target(), "--seconds 0.2");
            pair.left.outcomes().since(&start).get(Outcome::FastEncap) > 100
        });
    }
    // A pod that goes takes its hooks along; the next one of the same name
    // works like the first.
    drop(after);
    // The kernel takes a namespace, and the veth into it, apart in its own time.
    wait::holds("the old veth's end", Duration::from_secs(10), || {
        !pair.left.netns.ip("-oneline link show").contains(" veth4@")
    });
    let again = pair.left.pod(4);
    wait::holds("fast path of a pod made again", limit + Duration::from_secs(1), || {
        let start = pair.left.outcomes();
        again.traffic(SPACED, pair.server.target(), "--seconds 0.2");
        pair.left.outcomes().since(&start).get(Outcome::FastEncap) > 100
    });
}

#[test]
fn fast_packets_look_like_the_kernels() {
    let mut pair = Pair::agents(&Options::kernel());
    let wire = Wire::open(&pair.right.netns, "eth0");
    let source = pair.left.address.octets();
    let running = pair.start_spaced(Duration::from_secs(12));
    let wanted = |frame: &[u8]| {
        frame.len() > 100 && frame[26..30] == source && frame[36..38] == 8472_u16.to_be_bytes()
            // Inner UDP only.
            && frame[73] == 17
    };
    let mut frames = wire.frames(Duration::from_secs(2), 500, wanted);
    pair.left.stop_agent();
    pair.left.start(&pair.etcd, &Options::ebpf());
    // Until the node's rules are known, nothing takes the fast path.
    std::thread::sleep(Duration::from_secs(3));
    let wire = Wire::open(&pair.right.netns, "eth0");
    frames.extend(wire.frames(Duration::from_secs(2), 1000, wanted));
    running.finish();
    // The same flow on both paths: they differ in the UDP checksum alone (the
    // kernel's device sends one).
    let checksum = |frame: &Vec<u8>| u16::from_be_bytes([frame[40], frame[41]]);
    let (fast, kernel): (Vec<_>, Vec<_>) =
        frames.into_iter().partition(|frame| checksum(frame) == 0);
    assert!(fast.len() > 500 && kernel.len() > 400, "{} {}", fast.len(), kernel.len());
    let mask = |frame: &Vec<u8>| {
        let mut bytes = frame[..64].to_vec();
        // Outer identification, header checksum, UDP checksum.
        for range in [18..20, 24..26, 40..42] {
            bytes[range].fill(0);
        }
        bytes
    };
    let expected = mask(&kernel[0]);
    for frame in &fast {
        assert_eq!(mask(frame), expected, "outer and inner Ethernet headers");
    }
    assert_eq!((expected[20] & 0x40, expected[22], expected[15]), (0, 64, 0), "DF, TTL, TOS");
    assert_eq!(expected[42..50], [8, 0, 0, 0, 0, 0, 1, 0], "VXLAN header");
}
