//! The agent starts over the programs of ABI 1, which carry packets: none is lost,
//! and none of those programs goes on deciding, whatever else fails.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use aya::programs::TcAttachType::{Egress, Ingress};
use flannel_agent::bpf::loader::Loaded;
use flannel_agent::bpf::{
    self, AttachMode, Datapath as _, Device, GracePeriodMode, Needs, Places, ProgramOptions,
    VerifySource, XdpMode,
};
use flannel_core::envelope::{Inlet, Inward, PodVeth, VethEntry};
use flannel_core::health::Subject;
use flannel_core::status::DatapathKind;
use flannel_ebpf::abi::{ABI_VERSION, Outcome};
use flannel_tests::agent::Options;
use flannel_tests::first_edition::{self, Edition, Form};
use flannel_tests::hooks;
use flannel_tests::load::SPACED;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::wait;
use nix::net::if_::if_nametoindex;

const SECOND: Duration = Duration::from_secs(1);
const TCX: Edition<'_> = Edition { form: Form::Tcx, xdp: false, veths: &["veth2"], misplaced: &[] };
/// The hooks of a node with a tunnel and the pod `veth2`.
const HOOKS: [(&str, aya::programs::TcAttachType, &str); 5] = [
    ("flannel.1", Egress, "to_overlay"),
    ("veth2", Egress, "to_pod"),
    ("flannel.1", Ingress, "from_overlay"),
    ("eth0", Ingress, "from_underlay"),
    ("veth2", Ingress, "from_pod"),
];

/// By interface and the hook's program.
type Programs = BTreeMap<(&'static str, &'static str), Vec<(String, u32)>>;

/// Two nodes; the first edition carries packets on the left one.
fn begin(edition: &Edition<'_>, options: &Options) -> Pair {
    let mut pair = Pair::agents(options);
    assert!(pair.left.stop_agent().success());
    // What the agent of the first edition finds on a node that it has served.
    let output = pair.left.cleanup_with(&["--keep-device"]);
    assert!(output.status.success(), "{output:?}");
    pair.left.netns.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal=1");
    edition.leave_on(&pair.left, &pair.right);
    let ways = ["encap", if edition.xdp { "xdp" } else { "decap" }];
    wait::holds("the first edition carries packets", 10 * SECOND, || {
        let before = first_edition::carried(&pair.left);
        pair.traffic(SPACED, "--seconds 0.5");
        let after = first_edition::carried(&pair.left);
        ways.iter().all(|way| after[way] > before[way] + 450)
    });
    pair
}

/// Runs `act` one second into two streams, datagrams one millisecond apart, and
/// pings two apart; none may be lost.
#[track_caller]
fn nothing_lost_while(pair: &mut Pair, act: impl FnOnce(&mut Pair)) {
    let pings = {
        let (netns, to) = (pair.client.netns.path(), pair.server.address.to_string());
        let netns = format!("--net={}", netns.display());
        std::process::Command::new("nsenter")
            .args([&netns, "ping", "-q", "-i", "0.002", "-w", "5", "-W", "2", &to])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("ping")
    };
    pair.nothing_lost(6 * SECOND, act);
    let said = pings.wait_with_output().expect("ping");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains(" 0% packet loss"), "{said}");
}

/// Names and ids of the programs on each hook of a node with the pod `veth2`.
pub(crate) fn programs(node: &Node) -> Programs {
    let at = |(interface, direction, program)| {
        ((interface, program), hooks::at(&node.netns, interface, direction))
    };
    HOOKS.map(at).into()
}

/// One program on each hook, the right one, and none that was there `before`.
#[track_caller]
pub(crate) fn all_new(node: &Node, before: &Programs) {
    for (at, after) in programs(node) {
        let names: Vec<&str> = after.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [at.1], "{at:?}: {after:?}");
        assert!(!before[&at].contains(&after[0]), "{at:?}: {after:?} was there before");
    }
    none_of_v1(node);
}

#[track_caller]
fn none_of_v1(node: &Node) {
    let pins = hooks::pins(node.pin_dir());
    let own = node.pin_dir().join(format!("v{ABI_VERSION}"));
    assert!(!pins.is_empty() && pins.iter().all(|pin| pin.starts_with(&own)), "{pins:?}");
    assert!(!node.pin_dir().join("v1").exists());
}

#[track_caller]
fn carries(pair: &Pair) {
    let before = pair.left.outcomes();
    pair.traffic(SPACED, "--seconds 1");
    let since = pair.left.outcomes().since(&before);
    assert!(since.fast() > 1800, "{since:?}");
    assert_eq!(pair.left.status().datapath.mode, Some(DatapathKind::Ebpf));
}

/// Ids of the links that are pinned in a directory of each version.
fn links(node: &Node, folder: &str) -> [BTreeMap<String, u64>; 2] {
    ["v1".to_owned(), format!("v{ABI_VERSION}")]
        .map(|version| hooks::link_ids(&node.pin_dir().join(version).join(folder)))
}

fn take_over(edition: &Edition<'_>, options: &Options) -> Pair {
    links_over_a_take_over(edition, options, "links").0
}

/// Ids of the links that the first edition had, and that are there afterwards.
fn links_over_a_take_over(
    edition: &Edition<'_>,
    options: &Options,
    folder: &str,
) -> (Pair, [BTreeMap<String, u64>; 2]) {
    let pair = begin(edition, options);
    links_over_a_start(pair, options, folder)
}

fn links_over_a_start(
    mut pair: Pair,
    options: &Options,
    folder: &str,
) -> (Pair, [BTreeMap<String, u64>; 2]) {
    let before = programs(&pair.left);
    assert!(before.values().all(|programs| programs.len() == 1), "{before:?}");
    let [links_before, _] = links(&pair.left, folder);
    nothing_lost_while(&mut pair, |pair| pair.left.start(&pair.etcd, options));
    all_new(&pair.left, &before);
    carries(&pair);
    assert_eq!(pair.left.not_well(), []);
    let [_, links_after] = links(&pair.left, folder);
    (pair, [links_before, links_after])
}

#[test]
fn tcx_links_change_their_program_in_place() {
    let (mut pair, [before, after]) = links_over_a_take_over(&TCX, &Options::ebpf(), "links");
    assert_eq!((before.len(), &after), (HOOKS.len(), &before), "the same links, pinned anew");
    // And so are the programs by the next start: it need not load them.
    let ids = programs(&pair.left);
    nothing_lost_while(&mut pair, |pair| {
        pair.left.kill_agent();
        pair.left.start(&pair.etcd, &Options::ebpf());
    });
    assert_eq!(programs(&pair.left), ids);
    none_of_v1(&pair.left);
    carries(&pair);
    // But not those of another build.
    let object = pair.lab.dir().join("other.o");
    fs::write(&object, [&bpf::object().unwrap()[..], b"another"].concat()).unwrap();
    let name = bpf::OBJECT_ENV.to_owned();
    let environment = vec![(name, object.display().to_string())];
    nothing_lost_while(&mut pair, |pair| {
        pair.left.kill_agent();
        pair.left.start(&pair.etcd, &Options { environment, ..Options::ebpf() });
    });
    all_new(&pair.left, &ids);
    let pins = hooks::pins(pair.left.pin_dir());
    let loaded = pins.iter().filter(|pin| pin.display().to_string().contains("/prog-")).count();
    assert_eq!(loaded, flannel_ebpf::abi::program::ALL.len(), "of one build: {pins:?}");
}

/// Without CAP_SYS_ADMIN the kernel tells no program's name.
#[test]
fn links_are_taken_over_with_fewer_capabilities() {
    let wrapper = ["setpriv", "--bounding-set", "-sys_admin"].map(String::from).to_vec();
    let options = Options { wrapper, ..Options::ebpf() };
    let (_pair, [before, after]) = links_over_a_take_over(&TCX, &options, "links");
    assert_eq!((before.len(), &after), (HOOKS.len(), &before));
}

#[test]
fn filters_are_replaced_in_place() {
    let options = Options { attach: Some("clsact"), ..Options::ebpf() };
    take_over(&Edition { form: Form::Clsact, ..TCX }, &options);
}

#[test]
fn links_give_way_to_filters_and_filters_to_links() {
    let options = Options { attach: Some("clsact"), ..Options::ebpf() };
    let pair = begin(&TCX, &options);
    // The kernel drops what is sent while a qdisc is put on a device that is up.
    for device in ["eth0", "flannel.1", "veth2"] {
        pair.left.netns.sh(&format!("tc qdisc replace dev {device} clsact"));
    }
    links_over_a_start(pair, &options, "links");
    take_over(&Edition { form: Form::Clsact, ..TCX }, &Options::ebpf());
}

#[test]
fn the_program_in_the_driver_is_replaced_in_place() {
    let options = Options { extra: vec!["--xdp=native".into()], ..Options::ebpf() };
    let edition = Edition { xdp: true, ..TCX };
    let (pair, [before, after]) = links_over_a_take_over(&edition, &options, "xdp");
    assert_eq!((before.len(), &after), (1, &before), "no driver is reset");
    assert!(pair.left.outcomes().get(Outcome::FastXdp) > 900, "{:?}", pair.left.outcomes());
}

#[test]
fn the_program_in_the_driver_goes_where_none_is_wanted() {
    // Without --xdp, a veth gets none.
    let mut pair = begin(&Edition { xdp: true, ..TCX }, &Options::ebpf());
    let before = programs(&pair.left);
    let running = pair.start_spaced(6 * SECOND);
    std::thread::sleep(SECOND);
    pair.left.start(&pair.etcd, &Options::ebpf());
    let spaced = running.finish();
    // When it goes, veth's driver frees what stands in its rings (`veth_napi_del`).
    assert!(spaced.lost <= 50, "{spaced:?}");
    all_new(&pair.left, &before);
    carries(&pair);
    assert_eq!(pair.left.not_well(), []);
    let link = pair.left.netns.ip("-details link show eth0");
    assert!(!link.contains("prog/xdp"), "{link}");
}

/// A hook whose pin cannot be made works as long as the agent does, and says so.
#[test]
fn a_pin_that_cannot_be_made_keeps_no_old_program() {
    let options = Options::ebpf();
    let mut pair = begin(&TCX, &options);
    let before = programs(&pair.left);
    let veth = pair.left.netns.link("veth2").ifindex;
    let links = pair.left.pin_dir().join(format!("v{ABI_VERSION}/links"));
    for program in ["from_pod", "to_pod"] {
        fs::create_dir_all(links.join(format!("{veth}-{program}"))).expect("something in its way");
    }
    nothing_lost_while(&mut pair, |pair| pair.left.start(&pair.etcd, &options));
    all_new(&pair.left, &before);
    carries(&pair);
    let health = pair.left.not_well();
    assert!(health.iter().any(|line| line.reason.contains("pin link of veth2/")), "{health:?}");
    // Without a predecessor it is no different.
    pair.left.stop_agent();
    let before = programs(&pair.left);
    assert!(before[&("veth2", "from_pod")].is_empty(), "{before:?}");
    nothing_lost_while(&mut pair, |pair| pair.left.start(&pair.etcd, &options));
    for (at, after) in programs(&pair.left) {
        assert_eq!((after.len(), after[0].0.as_str()), (1, at.1), "{at:?}: {after:?}");
        assert!(before[&at].is_empty() || before[&at] == after, "{at:?}: {after:?}");
    }
    none_of_v1(&pair.left);
    carries(&pair);
}

/// Links of hooks that are not wanted any more, of a device that has gone, and of
/// programs at wrong places.
#[test]
fn what_has_no_successor_goes_too() {
    let options = Options { extra: vec!["--attach-iface=^veth2$".into()], ..Options::ebpf() };
    let edition = Edition {
        veths: &["veth2", "veth3", "veth4"],
        misplaced: &[("veth3", "from_pod", "to_pod"), ("flannel.1", "from_overlay", "from_pod")],
        ..TCX
    };
    let mut pair = Pair::agents(&options);
    let (_unserved, leaving) = (pair.left.pod(3), pair.left.pod(4));
    pair.left.stop_agent();
    pair.left.cleanup_with(&["--keep-device"]);
    edition.leave_on(&pair.left, &pair.right);
    pair.left.netns.ip("link delete veth4");
    drop(leaving);
    let v1 = pair.left.pin_dir().join("v1");
    assert_eq!(hooks::pinned_links(&v1).len(), 9, "two of them of a device that has gone");
    let before = programs(&pair.left);
    assert_eq!(before[&("flannel.1", "from_overlay")][0].0, "from_pod");
    nothing_lost_while(&mut pair, |pair| pair.left.start(&pair.etcd, &options));
    all_new(&pair.left, &before);
    carries(&pair);
    for direction in [Ingress, Egress] {
        assert_eq!(hooks::at(&pair.left.netns, "veth3", direction), []);
    }
}

/// The data path alone, with devices that vanished between the look and the attach. That
/// a pod has ended is no failure.
#[test]
fn a_hook_that_fails_keeps_no_old_program_elsewhere() {
    let pair = begin(&TCX, &Options::ebpf());
    let before = programs(&pair.left);
    let veth = |name: &str, ifindex| PodVeth {
        ifindex,
        name: name.to_owned(),
        mtu: 1450,
        entry: Some(VethEntry { inward: Inward::Peer, keep_out: false }),
    };
    let veths = [veth("veth2", pair.left.netns.link("veth2").ifindex), veth("veth9", 4711)];
    let options = ProgramOptions {
        flow_table_size: 4096,
        verify_source: VerifySource::default(),
        attach: AttachMode::Auto,
        grace_periods: GracePeriodMode::default(),
        xdp: XdpMode::Auto,
        attach_iface: None,
        pin_dir: pair.left.pin_dir().to_owned(),
    };
    let inlets = [Inlet { ifindex: 4712, name: "eth9".to_owned() }];
    let device = |name| Device { ifindex: if_nametoindex(name).unwrap_or(u32::MAX >> 1), name };
    let places = |overlay| Places {
        underlay: device("eth0"),
        inlets: &inlets,
        underlay_kind: "veth",
        overlay: Some(device(overlay)),
        direct: false,
        veths: &veths,
        turn: Duration::MAX,
    };
    pair.left.netns.inside(|| {
        let mut loaded = Loaded::open(&options, Needs::default(), None).expect("programs");
        let report = loaded.ensure_hooks(places("flannel.1"));
        let failed: Vec<&str> = report.failed.iter().map(|(hook, _)| hook.as_str()).collect();
        assert_eq!(failed, ["eth9/from_underlay"]);
        all_new(&pair.left, &before);
    });
    fs::remove_dir_all(pair.left.pin_dir().join(format!("v{ABI_VERSION}"))).expect("our pins");
    // Without the tunnel's device nothing can be attached at all.
    TCX.leave_on(&pair.left, &pair.right);
    pair.left.netns.inside(|| {
        let mut loaded = Loaded::open(&options, Needs::default(), None).expect("programs");
        let report = loaded.ensure_hooks(places("flannel.9"));
        assert_eq!(report.failed.len(), 1, "{:?}", report.failed);
        none_of_v1(&pair.left);
        // The kernel detaches a link some time after its last reference went.
        wait::holds("the kernel's path carries everything", SECOND, || {
            programs(&pair.left).values().all(Vec::is_empty)
        });
    });
}

/// What the first edition's agent does when it is started again: it attaches its
/// programs beside ours, and unlinks all that it finds in other versions.
#[test]
fn the_way_back_and_forth_loses_nothing() {
    let options = Options::ebpf();
    let mut pair = take_over(&TCX, &options);
    nothing_lost_while(&mut pair, |pair| {
        pair.left.stop_agent();
        TCX.leave_on(&pair.left, &pair.right);
        first_edition::remove_others(pair.left.pin_dir());
    });
    let before = programs(&pair.left);
    assert!(before.values().all(|programs| programs.len() == 1), "{before:?}");
    nothing_lost_while(&mut pair, |pair| pair.left.start(&pair.etcd, &options));
    all_new(&pair.left, &before);
    carries(&pair);
}

/// A directory of the first edition in another network namespace is left alone.
#[test]
fn another_namespaces_links_stay() {
    let options = Options::ebpf();
    let mut pair = begin(&TCX, &options);
    let before = programs(&pair.left);
    let pins = pair.left.pin_dir().to_owned();
    let inode = fs::metadata(&pins).expect("pins").ino();
    pair.right.stop_agent();
    let other = Options { pin_dir: Some(pins.clone()), ..Options::ebpf() };
    pair.right.start(&pair.etcd, &other);
    let reason = pair.right.complaint(Subject::Pins).expect("a complaint");
    assert!(reason.contains("programs of another network namespace"), "{reason}");
    assert!(reason.contains("--pin-dir"), "{reason}");
    assert_eq!(programs(&pair.left), before);
    // Those of the directory that it had before do not go on beside.
    assert_eq!(hooks::pins(pair.right.pin_dir()), Vec::<PathBuf>::new());
    // The programs run there nevertheless, as long as the agent does.
    let spaced = pair.traffic(SPACED, "--seconds 1");
    assert_eq!(spaced.lost, 0, "{spaced:?}");
    assert!(pair.right.outcomes().fast() > 900, "{:?}", pair.right.outcomes());
    // Nor are they removed on the way to the kernel's path, or by cleanup.
    pair.right.stop_agent();
    pair.right.start(&pair.etcd, &Options { pin_dir: Some(pins.clone()), ..Options::kernel() });
    pair.right.stop_agent();
    let mut cleanup = pair.right.agent_command("cleanup");
    let output = cleanup.arg(format!("--pin-dir={}", pins.display())).output().expect("cleanup");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("programs of another network namespace"), "{said}");
    assert_eq!(programs(&pair.left), before);
    assert_eq!(fs::metadata(&pins).expect("pins").ino(), inode);
    pair.left.start(&pair.etcd, &options);
    all_new(&pair.left, &before);
}
