//! The XDP half: confirmed packets lose their tunnel in the underlay's driver.

use std::thread;
use std::time::Duration;

use aya::EbpfLoader;
use aya::programs::Xdp;
use aya::programs::xdp::{XdpLink, XdpMode};
use flannel_core::envelope::Obstacle;
use flannel_core::health::Subject;
use flannel_core::status::{DatapathKind, XdpPlace, XdpStatus};
use flannel_ebpf::abi::{ABI_VERSION, Outcome, program};
use flannel_tests::agent::Options;
use flannel_tests::hooks;
use flannel_tests::lab::Lab;
use flannel_tests::load::{BULK, CONNECTS, ECHOES, MESSAGES, SPACED, assert_whole};
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::skip::skip;
use flannel_tests::told::Outcomes;
use flannel_tests::wait;

const SECOND: Duration = Duration::from_secs(1);

fn with(mode: &str) -> Options {
    Options { extra: vec![format!("--xdp={mode}")], ..Options::ebpf() }
}

/// The agent's word on XDP.
fn said(node: &Node) -> XdpStatus {
    node.status().datapath.xdp
}

const NATIVE: XdpStatus = XdpStatus { mode: XdpPlace::Native, reason: None };

/// Asserts that XDP is off for a reason with these words.
#[track_caller]
fn is_off(node: &Node, words: &str) {
    let XdpStatus { mode, reason } = said(node);
    assert_eq!(mode, XdpPlace::Off);
    assert!(reason.as_ref().is_some_and(|reason| reason.contains(words)), "{reason:?}");
}

/// Mode of the XDP program on the underlay, as the kernel has it.
fn attached(node: &Node) -> Option<String> {
    Some(match node.netns.link("eth0").xdp?.mode {
        1 => "native".to_owned(),
        2 => "generic".to_owned(),
        other => other.to_string(),
    })
}

fn complaint(node: &Node) -> Option<String> {
    node.complaint(Subject::Xdp)
}

fn counted(node: &Node, act: impl FnOnce()) -> Outcomes {
    let before = node.outcomes();
    act();
    node.outcomes().since(&before)
}

#[test]
fn native_carries_udp_and_tcp_whole() {
    let pair = Pair::agents(&with("native"));
    for node in [&pair.left, &pair.right] {
        assert_eq!(said(node), NATIVE);
        assert_eq!(attached(node).as_deref(), Some("native"));
    }
    let since = counted(&pair.left, || {
        let spaced = pair.traffic(SPACED, "--seconds 2");
        assert_eq!(spaced.lost, 0, "{spaced:?}");
    });
    assert!(since.get(Outcome::FastXdp) > 1900, "{since:?}");
    assert!(since.get(Outcome::FastDecap) < 20, "{since:?}");

    // An emulated machine would send 100 MB for minutes.
    let since = counted(&pair.right, || pair.check_integrity(100 / wait::patience()));
    assert!(since.get(Outcome::FastXdp) > 1000, "{since:?}");
    assert_eq!((since.get(Outcome::DropBroken), since.get(Outcome::DropTagged)), (0, 0));
    // Aggregates of stripped packets do not go through the device.
    assert!(since.get(Outcome::FastAggregate) < since.get(Outcome::FastXdp) / 10, "{since:?}");
}

#[test]
fn a_stream_is_merged_after_it_is_stripped() {
    let pair = Pair::agents(&with("native"));
    pair.right.netns.sh("ethtool -K eth0 gro on");
    let before = pair.right.counted(&pair.left);
    let since = counted(&pair.right, || {
        let bulk = pair.traffic(BULK, "--megabytes 64");
        assert_eq!(bulk.corrupt, 0, "{bulk:?}");
    });
    let bytes = pair.right.counted(&pair.left).rx_fast_bytes - before.rx_fast_bytes;
    let mean = bytes / since.get(Outcome::FastXdp).max(1);
    assert!(mean > 3000, "{mean} bytes for each packet handed on: {since:?}");
    assert!(since.get(Outcome::FastXdp) * 10 > since.get(Outcome::FastAggregate) * 9, "{since:?}");
}

#[test]
fn connections_that_begin_on_the_fast_path_go_through_it() {
    let mut options = with("native");
    options.extra.push("--fast-path=eager".into());
    let pair = Pair::agents(&options);
    let since = counted(&pair.right, || {
        let made = pair.traffic(CONNECTS, "--seconds 2");
        assert!(made.transactions > 100, "{made:?}");
        pair.check_integrity(20);
    });
    assert!(since.get(Outcome::OpenedEager) > 50, "{since:?}");
    assert!(since.get(Outcome::FastXdp) > 100, "{since:?}");
}

/// Frames of more than one page, which the driver hands over in fragments.
#[test]
fn jumbo_frames_are_carried_whole() {
    let pair = Pair::over("eth1", [&with("native"); 2], |lab, left, right| {
        lab.cable(left, right);
        for node in [left, right] {
            node.netns.ip("link set eth1 mtu 9000");
        }
    });
    assert_eq!(said(&pair.right), NATIVE);
    pair.client.ping(pair.server.address, "-c 1 -W 2 -M do -s 8900");
    let since = counted(&pair.right, || {
        for load in [MESSAGES, ECHOES] {
            let result = pair.traffic(load, "--from 7000 --upto 8900");
            assert_whole(&result);
        }
        let bulk = pair.traffic(BULK, "--megabytes 64");
        assert_eq!(bulk.corrupt, 0, "{bulk:?}");
    });
    assert!(since.get(Outcome::FastXdp) > 1000, "{since:?}");
    assert!(since.get(Outcome::FastDecap) < 10, "{since:?}");
}

/// `FLANNEL_TEST_CARDS` names two network cards on one wire, whose driver has
/// native XDP; `cargo xtask test --kernel` boots a machine that has them.
#[test]
fn auto_takes_a_network_card() {
    let cards = std::env::var("FLANNEL_TEST_CARDS").unwrap_or_default();
    let cards: Vec<&str> = cards.split_whitespace().collect();
    let &[one, other] = cards.as_slice() else {
        return skip("auto_takes_a_network_card", "FLANNEL_TEST_CARDS does not name two cards");
    };
    let pair = Pair::over("eth1", [&Options::ebpf(); 2], |lab, left, right| {
        lab.cards(left, right, [one, other])
    });
    for node in [&pair.left, &pair.right] {
        assert_eq!(said(node), NATIVE);
    }
    let since = counted(&pair.right, || pair.check_integrity(5));
    assert!(since.get(Outcome::FastXdp) > 100, "{since:?}");
    assert!(since.get(Outcome::FastDecap) < since.get(Outcome::FastXdp) / 10, "{since:?}");
    assert_eq!((since.get(Outcome::DropBroken), since.get(Outcome::DropTagged)), (0, 0));
}

#[test]
fn handshakes_and_ends_go_to_the_kernel() {
    let pair = Pair::agents(&with("native"));
    let since = counted(&pair.right, || {
        for _ in 0..20 {
            pair.traffic(BULK, "--megabytes 1");
        }
    });
    // SYN and FIN of each come to the kernel, and so does the answer to a FIN.
    assert!(since.get(Outcome::KernelTcpState) >= 40, "{since:?}");
    assert!(since.get(Outcome::FastXdp) > 20, "{since:?}");
}

#[test]
fn nothing_is_lost_when_the_agent_comes_back() {
    let options = with("native");
    let mut pair = Pair::agents(&options);
    pair.traffic(SPACED, "--seconds 0.5");
    pair.nothing_lost(6 * SECOND, |pair| {
        pair.left.kill_agent();
        thread::sleep(SECOND);
        assert_eq!(attached(&pair.left).as_deref(), Some("native"), "it goes on");
        pair.left.start(&pair.etcd, &options);
    });
    assert_eq!(said(&pair.left).mode, XdpPlace::Native);
    let outcomes = pair.left.outcomes();
    assert!(outcomes.get(Outcome::FastXdp) > 5000, "{outcomes:?}");
}

#[test]
fn switching_it_off_and_on_again_loses_nothing() {
    let mut pair = Pair::agents(&with("native"));
    pair.traffic(SPACED, "--seconds 0.5");
    // The device itself is reset when a program comes or goes, but for a veth.
    let running = pair.start_spaced(6 * SECOND);
    for mode in ["off", "native", "auto"] {
        pair.left.stop_agent();
        pair.left.start(&pair.etcd, &with(mode));
        let native = mode == "native";
        wait::holds(mode, 10 * SECOND, || attached(&pair.left).is_some() == native);
        thread::sleep(SECOND / 2);
    }
    let spaced = running.finish();
    assert_eq!(spaced.lost, 0, "{spaced:?}");
    assert!(pair.left.outcomes().get(Outcome::FastXdp) > 0);
}

#[test]
fn a_program_that_was_detached_comes_back() {
    let pair = Pair::agents(&with("native"));
    let pins = hooks::pins(&pair.left.pin_dir().join(format!("v{ABI_VERSION}/xdp")));
    let [pin] = pins.as_slice() else { panic!("{pins:?}") };
    pair.left.netns.sh(&format!("bpftool link detach pinned {}", pin.display()));
    wait::holds("attached again", 10 * SECOND, || attached(&pair.left).is_some());
    let since = counted(&pair.left, || {
        pair.traffic(SPACED, "--seconds 1");
    });
    assert!(since.get(Outcome::FastXdp) > 500, "{since:?}");
}

#[test]
fn cleanup_removes_it() {
    let mut pair = Pair::agents(&with("native"));
    pair.left.stop_agent();
    let spaced = pair.traffic(SPACED, "--seconds 0.5");
    assert_eq!(spaced.lost, 0, "{spaced:?}");
    assert!(attached(&pair.left).is_some(), "stopping leaves it");
    let output = pair.left.cleanup();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(attached(&pair.left), None);
    assert_eq!(hooks::pins(pair.left.pin_dir()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn auto_takes_no_veth() {
    let pair = Pair::agents(&Options::ebpf());
    is_off(&pair.left, "veth");
    assert_eq!(attached(&pair.left), None);
    assert_eq!(complaint(&pair.left), None);
    pair.traffic(SPACED, "--seconds 0.5");
    assert_eq!(pair.left.outcomes().get(Outcome::FastXdp), 0);
}

/// Somebody else's XDP program on a node's device, until it is dropped.
struct Foreign {
    _link: XdpLink,
}

impl Foreign {
    /// Passes everything: our own program, with maps of its own, empty.
    fn on(node: &Node, device: &str, mode: XdpMode) -> Self {
        let object = flannel_agent::bpf::object().expect("the object");
        let mut ebpf = EbpfLoader::new().load(&object).expect("maps");
        let program: &mut Xdp = ebpf
            .program_mut(program::FROM_WIRE)
            .expect("the program")
            .try_into()
            .expect("an XDP program");
        program.load().expect("the verifier's consent");
        let link = node.netns.inside(|| {
            let id = program.attach(device, mode).expect("a free hook");
            program.take_link(id).expect("the link")
        });
        Self { _link: link }
    }
}

#[test]
fn somebody_elses_program_is_left_alone_and_reported() {
    let mut pair = Pair::agents(&Options::ebpf());
    pair.left.stop_agent();
    let foreign = Foreign::on(&pair.left, "eth0", XdpMode::Driver);
    let id = |node: &Node| {
        let program = node.netns.link("eth0").xdp.and_then(|xdp| xdp.prog);
        program.expect("a program").id
    };
    let before = id(&pair.left);
    pair.left.start(&pair.etcd, &with("native"));
    // Until the agent knows what acts on packets, that is the reason.
    wait::holds("the reason", 10 * SECOND, || {
        said(&pair.left).reason.is_some_and(|reason| reason.contains("another XDP program"))
    });
    assert_eq!(said(&pair.left).mode, XdpPlace::Off);
    let complained = complaint(&pair.left).expect("a complaint");
    assert!(complained.contains("another XDP program runs on eth0"), "{complained}");
    assert_eq!(id(&pair.left), before);
    let since = counted(&pair.left, || {
        let spaced = pair.traffic(SPACED, "--seconds 1");
        assert_eq!(spaced.lost, 0, "{spaced:?}");
    });
    assert!(since.get(Outcome::FastDecap) > 900 && since.get(Outcome::FastXdp) == 0, "{since:?}");
    // When it has gone, its place is taken.
    drop(foreign);
    wait::holds("native XDP", 30 * SECOND, || said(&pair.left).mode == XdpPlace::Native);
    assert_eq!(complaint(&pair.left), None);
}

/// The kernel copies packets for a generic program that takes fragments, without what
/// stood in front of them: the source check sees no sender.
#[test]
fn a_generic_program_on_the_tunnels_device_blinds_the_source_check() {
    for (check, answered) in [("drop", false), ("count", true)] {
        let extra = vec![format!("--verify-source={check}")];
        let pair = Pair::agents(&Options { extra, ..Options::ebpf() });
        let _foreign = Foreign::on(&pair.right, "flannel.1", XdpMode::Skb);
        let since = counted(&pair.right, || {
            // The kernel carries what is no TCP or UDP.
            let (came, text) = pair.client.netns.ping(pair.server.address, "-c 5 -i 0.1 -W 1");
            assert_eq!(came, answered, "{check}: {text}");
        });
        assert!(since.get(Outcome::ForgedOuterSource) >= 5, "{check}: {since:?}");
    }
}

#[test]
fn generic_is_refused_with_the_reason() {
    let pair = Pair::agents(&with("generic"));
    is_off(&pair.left, "generic XDP");
    assert!(complaint(&pair.left).is_some());
    assert_eq!(attached(&pair.left), None);
    let since = counted(&pair.left, || {
        pair.traffic(SPACED, "--seconds 1");
    });
    assert!(since.get(Outcome::FastDecap) > 900, "{since:?}");
}

#[test]
fn a_driver_without_it_is_reported_and_tc_does_the_work() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.netns.ip_batch(&[
        "link add name br1 type bridge".into(),
        "link set br1 up".into(),
        "address add 198.51.100.9/24 dev br1".into(),
    ]);
    let mut options = with("native");
    options.extra.extend(["--iface=".to_owned(), "--iface=br1".to_owned()]);
    node.start(&etcd, &options);
    is_off(&node, "driver of br1 has no native XDP");
    assert!(complaint(&node).is_some());
    assert_eq!(node.status().datapath.mode, Some(DatapathKind::Ebpf));
}

/// Packets of this outcome while the pods speak.
fn carried(pair: &Pair, node: &Node, outcome: Outcome) -> u64 {
    let before = node.outcomes();
    assert_whole(&pair.traffic(SPACED, "--seconds 1"));
    node.outcomes().since(&before).get(outcome)
}

#[test]
fn a_program_on_a_bridge_gets_what_its_ports_send() {
    let pair = Pair::agents(&Options::ebpf());
    pair.fast_both_ways();
    let (node, outcome) = (&pair.left, Outcome::FastEncap);
    let foreign = Foreign::on(node, "cni0", XdpMode::Skb);
    // No event tells of all programs.
    wait::holds("the program is seen", 3 * SECOND, || {
        let veths = node.status().datapath.envelope.veths;
        let mut reasons = veths.into_iter().flat_map(|veth| veth.why);
        reasons.any(|why| why.device == "cni0" && why.what == Obstacle::Xdp)
    });
    assert_eq!(carried(&pair, node, outcome), 0, "past the program");
    drop(foreign);
    wait::holds("packets go around again", 5 * SECOND, || carried(&pair, node, outcome) > 100);
}
