//! Where the programs cannot be used, the kernel path carries the traffic and
//! the agent says why.

use std::fs;
use std::time::Duration;

use aya::programs::TcAttachType;
use flannel_core::status::DatapathKind;
use flannel_tests::agent::Options;
use flannel_tests::hooks;
use flannel_tests::lab::Lab;
use flannel_tests::load::{REQUESTS, SPACED};
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::told::words;
use flannel_tests::wait;
use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _};

const PREBUILT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../flannel-ebpf/prebuilt/flannel-ebpf.bpf.o");

/// On the kernel path for a reason that contains `word`, traffic intact; and
/// with `--datapath=ebpf` an error.
#[track_caller]
fn falls_back(options: &Options, word: &str) {
    let pair = Pair::agents(options);
    for node in [&pair.left, &pair.right] {
        let status = node.status();
        assert_eq!(status.datapath.mode, Some(DatapathKind::Kernel), "{status:?}");
        let reason = status.datapath.reason.unwrap_or_default().to_lowercase();
        assert!(reason.contains(&word.to_lowercase()), "{word:?} is not in {reason:?}");
        assert!(node.agent_log().to_lowercase().contains(&word.to_lowercase()), "in the log");
    }
    carries(&pair);
    cannot_be_demanded(options, word);
}

/// Pods reach each other by whatever path.
#[track_caller]
fn carries(pair: &Pair) {
    let text = pair.client.ping(pair.server.address, "-c 2 -i 0.1 -W 2");
    assert!(text.contains("ttl=62"), "{text}");
    assert_eq!(pair.traffic(SPACED, "--seconds 0.5").lost, 0);
    pair.check_integrity(10);
}

/// `--datapath=ebpf` ends with an error that contains `word`.
#[track_caller]
fn cannot_be_demanded(options: &Options, word: &str) {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut strict = lab.node(3);
    strict.launch(&etcd, &Options { datapath: Some("ebpf"), ..options.clone() });
    let mut ended = None;
    wait::holds("the end of --datapath=ebpf", Duration::from_secs(15), || {
        ended = strict.agent_ended();
        ended.is_some()
    });
    assert!(ended.is_some_and(|status| !status.success()), "{ended:?}");
    assert!(strict.agent_log().to_lowercase().contains(&word.to_lowercase()));
}

fn object(lab: &Lab, change: impl FnOnce(&mut Vec<u8>)) -> Options {
    let mut bytes = fs::read(PREBUILT).expect("the committed object");
    change(&mut bytes);
    let path = lab.dir().join("broken.bpf.o");
    fs::write(&path, bytes).expect("write an object");
    let environment = vec![("FLANNEL_EBPF_OBJECT".to_owned(), path.display().to_string())];
    Options { environment, ..Options::default() }
}

#[test]
fn no_capability() {
    let wrapper = ["setpriv", "--bounding-set", "-bpf,-sys_admin,-perfmon"].map(String::from);
    falls_back(&Options { wrapper: wrapper.to_vec(), ..Options::default() }, "CAP_BPF");
}

#[test]
fn the_units_capabilities_are_enough() {
    // CapabilityBoundingSet of packaging/flannel-agent.service.
    let wrapper = ["setpriv", "--bounding-set", "-all,+net_admin,+bpf,+perfmon"].map(String::from);
    let pair = Pair::agents(&Options { wrapper: wrapper.to_vec(), ..Options::ebpf() });
    pair.traffic(REQUESTS, "--seconds 2 --patience 2");
    // Hooks have been looked after a few times by now.
    let status = pair.left.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::Ebpf), "{status:?}");
    assert_eq!(status.health, [], "{status:?}");
    assert!(pair.left.outcomes().fast() > 100, "{status:?}");
}

#[test]
fn a_program_that_the_verifier_refuses() {
    let lab = Lab::new();
    let options = object(&lab, |bytes| {
        let first = code(&File::parse(&bytes[..]).expect("an object"));
        spoil(bytes, first);
    });
    falls_back(&options, "the verifier refused the program");
    // Its own words are in the log.
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.start(&etcd, &options);
    assert!(node.agent_log().contains("invalid bpf_context access"), "{}", node.agent_log());
}

/// A node without pods loads their programs when it is ready.
#[test]
fn a_program_of_pods_that_the_verifier_refuses() {
    let lab = Lab::new();
    let options = object(&lab, |bytes| {
        let to_pod = program_in(bytes, "to_pod");
        spoil(bytes, to_pod);
    });
    let word = "the verifier refused the program";
    let pair = Pair::agents(&options);
    for node in [&pair.left, &pair.right] {
        wait::holds("a complaint about to_pod", Duration::from_secs(20), || {
            let reason = node.status().datapath.reason.unwrap_or_default();
            reason.contains("to_pod") && reason.to_lowercase().contains(word)
        });
        assert_eq!(node.status().datapath.mode, Some(DatapathKind::Kernel));
        assert!(node.agent_log().contains("invalid bpf_context access"), "{}", node.agent_log());
    }
    carries(&pair);
    cannot_be_demanded(&options, word);
}

/// The loader tries again, and the agent only looks whether it has ended.
#[test]
fn programs_of_pods_are_loaded_once_the_verifier_takes_them() {
    let lab = Lab::new();
    let path = lab.dir().join("broken.bpf.o");
    let mut options = object(&lab, |bytes| {
        let to_pod = program_in(bytes, "to_pod");
        spoil(bytes, to_pod);
    });
    options.environment.push(("FLANNEL_EBPF_AGAIN_MS".to_owned(), "100".to_owned()));
    options.environment.push(("FLANNELD_LOG".to_owned(), "flannel_agent=debug".to_owned()));
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.start(&etcd, &options);
    let pid = node.agent_pid();
    let refusals = |node: &Node| node.agent_log().matches("programs could not be loaded").count();
    wait::holds("a refusal", Duration::from_secs(20), || refusals(&node) > 0);
    let complaint = node.status().datapath.reason.unwrap_or_default();
    assert!(complaint.contains("to_pod"), "{complaint}");
    let pins = |node: &Node| {
        let mut pins = hooks::pins(node.pin_dir());
        pins.retain(|pin| pin.display().to_string().contains("/prog-"));
        pins
    };
    let (pinned, first) = (pins(&node), refusals(&node));
    assert!(!pinned.is_empty(), "those that are good");
    let used = cpu_time(pid);
    wait::holds("more refusals", Duration::from_secs(30), || refusals(&node) >= first + 5);
    let used = cpu_time(pid) - used;
    // Five times the programs would take it half a second at least.
    assert!(used < Duration::from_millis(200), "{used:?}");
    assert_eq!(pins(&node), pinned);
    assert_eq!(node.status().datapath.mode, Some(DatapathKind::Kernel));
    assert_eq!(node.agent_log().matches("invalid bpf_context access").count(), 1);

    // The next start takes what is there.
    let ids = |node: &Node| hooks::at(&node.netns, "eth0", TcAttachType::Ingress);
    let (before, known) = (ids(&node), refusals(&node));
    node.kill_agent();
    node.start(&etcd, &options);
    wait::holds("a refusal again", Duration::from_secs(20), || refusals(&node) > known);
    assert_eq!((ids(&node), pins(&node)), (before, pinned));

    fs::copy(PREBUILT, &path).expect("a good object");
    wait::holds("the programs", Duration::from_secs(20), || {
        node.status().datapath.mode == Some(DatapathKind::Ebpf)
    });
    node.bridge();
    let pod = node.pod(2);
    wait::holds("hooks of the pod", Duration::from_secs(10), || {
        hooks::on(&node.netns, &pod.veth).len() == 2
    });
    assert_eq!(pins(&node).len(), flannel_ebpf::abi::program::ALL.len());
    assert_eq!(node.not_well(), []);
}

/// CPU time that a process has used, without that of its children.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process");
    let fields = stat.rsplit(')').next().expect("fields").split_whitespace();
    let ticks: u64 =
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

#[test]
fn another_loader_takes_the_place_of_one_that_is_killed() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.start(&etcd, &Options::default());
    let agent = node.agent_pid();
    let loader = node.netns.sh(&format!("pgrep -P {agent} -f load-programs"));
    let ids = || hooks::at(&node.netns, "eth0", TcAttachType::Ingress);
    let before = ids();
    node.netns.sh(&format!("kill -9 {loader}"));
    wait::holds("programs of another load", Duration::from_secs(20), || {
        let now = ids();
        now.len() == before.len() && now != before
    });
    let status = node.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::Ebpf), "{status:?}");
    assert_eq!(status.health, [], "{status:?}");
    let pins = hooks::pins(node.pin_dir());
    let loaded = pins.iter().filter(|pin| pin.display().to_string().contains("/prog-")).count();
    assert_eq!(loaded, flannel_ebpf::abi::program::ALL.len(), "{pins:?}");
}

#[test]
fn a_start_that_waits_keeps_no_loader() {
    let lab = Lab::new();
    let mut etcd = lab.etcd();
    etcd.kill();
    let mut node = lab.node(1);
    node.launch(&etcd, &Options::default());
    let agent = node.agent_pid();
    wait::holds("a loader that is started ahead", Duration::from_secs(2), || {
        children(agent).len() == 1
    });
    let pins = hooks::pins(node.pin_dir());
    assert!(pins.is_empty(), "before they are wanted: {pins:?}");
    wait::holds("its end", Duration::from_secs(9), || children(agent).is_empty());
    etcd.restart();
    node.wait_ready(Duration::from_secs(10));
    let status = node.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::Ebpf), "{status:?}");
    assert_eq!(status.health, [], "{status:?}");
}

/// Processes that this one has started and not yet reaped.
fn children(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    children
        .flat_map(|pids| pids.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[test]
fn an_object_that_is_none() {
    let lab = Lab::new();
    falls_back(&object(&lab, |bytes| bytes.truncate(100)), "object");
}

#[test]
fn a_pin_directory_that_is_no_bpf_file_system() {
    let lab = Lab::new();
    let dir = lab.dir().join("pins");
    fs::create_dir(&dir).expect("a directory");
    // Without CAP_SYS_ADMIN it cannot be mounted there.
    let options = Options {
        wrapper: ["setpriv", "--bounding-set", "-sys_admin"].map(String::from).to_vec(),
        pin_dir: Some(dir),
        ..Options::default()
    };
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.start(&etcd, &options);
    let status = node.status();
    // Unpinned programs or the kernel path: both work, both have to be told.
    let said = words(&status);
    assert!(said.contains("pin") || said.contains("bpf file system"), "{status:?}");
}

#[test]
fn a_veth_whose_hook_is_taken_stays_on_the_kernel_path() {
    let pair = Pair::agents(&Options { attach: Some("clsact"), ..Options::ebpf() });
    let node = &pair.left;
    // An `ingress` qdisc sits where clsact would: no egress hook there.
    node.netns.ip("link add veth9 mtu 1450 type veth peer name eth9");
    node.netns.sh("tc qdisc add dev veth9 ingress");
    node.netns.ip(&format!("link set eth9 netns {}", pair.client.netns.name()));
    node.netns.ip("link set veth9 master cni0 up");
    pair.client.netns.ip("link set eth9 up");
    std::thread::sleep(Duration::from_secs(1));
    let status = node.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::Ebpf), "{status:?}");
    assert_eq!(pair.traffic(SPACED, "--seconds 0.5").lost, 0);
    assert!(node.netns.sh("tc qdisc show dev veth9").contains("ingress"));
}

#[test]
fn asked_for_the_kernel_path() {
    let pair = Pair::agents(&Options::kernel());
    let status = pair.left.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::Kernel), "{status:?}");
    assert!(hooks::on(&pair.left.netns, "eth0").is_empty());
    assert!(hooks::pins(pair.left.pin_dir()).is_empty());
}

/// Makes a program's first instruction a load through an unchecked pointer:
/// r1 = *(u64 *)(r1 + 0x7000).
fn spoil(object: &mut [u8], offset: u64) {
    let offset = usize::try_from(offset).expect("an offset in the file");
    object[offset..offset + 8].copy_from_slice(&[0x79, 0x11, 0, 0x70, 0, 0, 0, 0]);
}

/// Where the code of the TC programs begins in the file.
fn code(file: &File<'_>) -> u64 {
    let section = file.section_by_name("classifier").expect("TC programs");
    section.file_range().expect("code").0
}

/// Where a program begins in the file.
fn program_in(object: &[u8], name: &str) -> u64 {
    let file = File::parse(object).expect("an object");
    let symbol = file.symbol_by_name(name).expect("a program of this name");
    code(&file) + symbol.address()
}
