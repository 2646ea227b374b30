//! What operators read: the log, and the commands that look into a node.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flannel_core::repair::Repair;
use flannel_core::status::{
    Event, FlowDirection, FlowPath, FlowStatus, SysdumpPart, SysdumpReport, What,
};
use flannel_tests::agent::Options;
use flannel_tests::lab::Lab;
use flannel_tests::load::SPACED;
use flannel_tests::pair::Pair;
use flannel_tests::process::{Process, output, run};
use flannel_tests::told::told;
use flannel_tests::wait;
use serde_json::Value;

/// journald as the package has it, with a `/run` of its own, which is `$1`.
const JOURNALD: &str = r#"set -e
mount --bind "$1" /run
exec /lib/systemd/systemd-journald"#;

/// A service as systemd starts it: standard error is the journal's stream.
const SERVICE: &str = r#"set -e
mount --bind "$1" /run; shift
JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)
export JOURNAL_STREAM
exec "$@""#;

fn journald(run_dir: &Path) -> Process {
    let conf = run_dir.join("systemd/journald.conf.d");
    fs::create_dir_all(&conf).expect("a directory");
    fs::create_dir_all(run_dir.join("log/journal")).expect("a directory");
    let settings = "[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\nRateLimitBurst=0\n";
    fs::write(conf.join("test.conf"), settings).expect("journald's settings");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", JOURNALD, "sh"]).arg(run_dir);
    let journald = Process::start("journald", &mut command, &run_dir.join("journald.log"));
    let socket = run_dir.join("systemd/journal/socket");
    wait::until("journald's socket", Duration::from_secs(10), || socket.exists().then_some(()));
    journald
}

fn entries(run_dir: &Path) -> Vec<Value> {
    let mut command = Command::new("journalctl");
    command.arg("-D").arg(run_dir.join("log/journal")).args(["-o", "json", "-t", "flannel-agent"]);
    let lines = run(&mut command);
    lines.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect()
}

#[test]
fn the_journal_gets_its_own_fields() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    let run_dir = lab.dir().join("run");
    let _journald = journald(&run_dir);
    let wrapper = ["unshare", "--mount", "sh", "-c", SERVICE, "sh", &run_dir.to_string_lossy()];
    let wrapper = wrapper.map(str::to_owned).to_vec();
    node.start(&etcd, &Options { wrapper, ..Options::kernel() });

    let ready = wait::until("the entry", Duration::from_secs(10), || {
        entries(&run_dir)
            .into_iter()
            .find(|entry| entry["FLANNEL_SUBNET"].is_string() && entry["FLANNEL_PEERS"] == "0")
    });
    let ready = ready.0;
    assert_eq!(ready["FLANNEL_SUBNET"], node.subnet().to_string());
    assert_eq!(ready["MESSAGE"], format!("ready subnet={} peers=0", node.subnet()));
    assert_eq!(ready["PRIORITY"], "5");
    assert_eq!(ready["_PID"], node.agent_pid().to_string());
    assert!(ready["CODE_FILE"].as_str().is_some_and(|file| file.ends_with("serve.rs")), "{ready}");
    assert_eq!(node.agent_log(), "", "nothing besides");
}

#[test]
fn events_tell_what_the_agent_did_and_why() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let (mut node, mut other) = (lab.node(1), lab.node(2));
    node.start(&etcd, &Options::kernel());
    other.start(&etcd, &Options::kernel());
    node.wait_routes(&[&other]);
    node.netns.ip("link del flannel.1");
    node.netns.sh("nft flush ruleset");
    std::fs::remove_file(node.subnet_file()).expect("subnet.env");
    node.wait_routes(&[&other]);
    let repaired = |events: &[Event], kind: Repair| {
        let is_it = |what: &What| matches!(what, What::Repaired { what, .. } if *what == kind);
        events.iter().any(|event| is_it(&event.what))
    };
    let events = wait::until("the repairs", Duration::from_secs(5), || {
        let (_, events) = told::<Vec<Event>>(&mut node.agent_command("events"));
        let all = [Repair::Route, Repair::Firewall, Repair::SubnetFile];
        let all = all.map(|kind| repaired(&events, kind));
        (all == [true; 3]).then_some(events)
    });
    let whats: Vec<What> = events.0.into_iter().map(|event| event.what).collect();
    assert!(matches!(whats[0], What::Started { .. }), "{whats:#?}");
    let is_there = |is: fn(&What) -> bool| assert!(whats.iter().any(is), "{whats:#?}");
    is_there(|what| matches!(what, What::LeaseAcquired { .. }));
    is_there(|what| matches!(what, What::Datapath { .. }));
    is_there(|what| matches!(what, What::Ready { .. }));
    let added = What::PeerAdded { subnet: other.subnet(), public_ip: other.address };
    assert!(whats.contains(&added), "{whats:#?}");
    let text = run(node.agent_command("events").args(["--since", "1h"]));
    assert!(text.contains("device put right"), "{text}");
    assert!(text.contains(&format!("peer {} at ", other.subnet())), "{text}");
}

#[test]
fn flows_are_told_with_and_without_an_agent() {
    let mut pair = Pair::agents(&Options::ebpf());
    let flows = |pair: &Pair, flags: &[&str]| -> Vec<FlowStatus> {
        let mut command = pair.left.agent_command("flows");
        command.arg("--pin-dir").arg(pair.left.pin_dir());
        let (code, flows) = told(command.args(flags));
        assert_eq!(code, Some(0));
        flows
    };
    pair.traffic(SPACED, "--seconds 1");
    pair.fast_both_ways();
    let client = pair.client.address.to_string();
    let told = flows(&pair, &["--pod", &client, "--proto", "udp"]);
    let fast = |flow: &FlowStatus| flow.path == FlowPath::Fast && flow.why.is_none();
    for direction in [FlowDirection::Out, FlowDirection::In] {
        let flow = told.iter().find(|flow| flow.direction == direction && fast(flow));
        let flow = flow.unwrap_or_else(|| panic!("no {direction} in {told:?}"));
        assert_eq!(flow.peer, Some(pair.right.subnet()));
        let end = match direction {
            FlowDirection::Out => flow.source,
            FlowDirection::In => flow.destination,
        };
        assert_eq!(*end.ip(), pair.client.address, "{flow:?}");
    }
    assert_eq!(flows(&pair, &["--pod", "10.99.0.0/16"]), []);
    pair.left.stop_agent();
    assert!(!flows(&pair, &["--pod", &client]).is_empty(), "the pins are there");
    let text = output(pair.left.agent_command("flows").arg("--pin-dir").arg(pair.left.pin_dir()));
    let said = String::from_utf8_lossy(&text.stderr).into_owned();
    assert!(said.contains("the agent is not running"), "{said}");
}

#[test]
fn a_sysdump_has_what_a_report_needs_and_no_secret() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    let extra = ["--healthz-ip=127.0.0.1", "--healthz-port=8081"].map(str::to_owned).to_vec();
    node.start(&etcd, &Options { extra, ..Options::kernel() });
    // In what programs print: by its name, in a URL, and as it is.
    let aliases = ["password=planted-1", "http://root:planted-2@192.0.2.1/", "(planted-3)"];
    for (number, alias) in aliases.iter().enumerate() {
        node.netns.ip(&format!("link add spare{number} type bridge"));
        node.netns.ip(&format!("link set spare{number} alias {alias}"));
    }
    let file = lab.dir().join("dump.tar.gz");
    let mut command = node.agent_command("sysdump");
    command.arg("--output").arg(&file);
    let (code, report) = told::<SysdumpReport>(command.env("FLANNELD_ETCD_PASSWORD", "planted-3"));
    assert_eq!((code, report.file), (Some(0), file.display().to_string()));
    let mode = fs::metadata(&file).expect("the archive").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    run(Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(lab.dir()).arg("--strip=1"));
    let read = |name: &str| fs::read_to_string(lab.dir().join(name)).unwrap_or_default();
    for SysdumpPart { name, .. } in &report.parts {
        assert!(!read(name).contains("planted"), "{name}: {}", read(name));
    }
    assert!(!read("missing.txt").contains("planted"));
    for (name, text) in [
        ("status.json", node.subnet().to_string()),
        ("events.json", "lease_acquired".to_owned()),
        (
            "network-config.txt",
            etcd.ctl(&["get", "--print-value-only", "/coreos.com/network/config"]),
        ),
        ("network-config.txt", "Network    10.244.0.0/16".to_owned()),
        ("links.txt", "flannel.1".to_owned()),
        ("links.txt", "password=<removed>".to_owned()),
        ("links.txt", "http://<removed>@192.0.2.1/".to_owned()),
        ("links.txt", "(<removed>)".to_owned()),
        ("nftables.txt", "flannel-ipv4".to_owned()),
        ("metrics.txt", "flannel_peers".to_owned()),
    ] {
        assert!(read(name).contains(&text), "{text} in {name}: {}", read(name));
    }
}

#[test]
fn json_has_a_line_for_each_message_and_v_sets_the_level() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    let extra = ["--log-format=json", "-v=2", "-logtostderr"].map(str::to_owned).to_vec();
    node.start(&etcd, &Options { extra, ..Options::kernel() });
    let mut other = lab.node(2);
    other.start(&etcd, &Options::kernel());
    node.wait_routes(&[&other]);
    let log = node.agent_log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    let lines: Vec<Value> = lines.collect();
    let ready = lines.iter().find(|line| line["message"] == "ready").expect("ready");
    assert_eq!(ready["subnet"], node.subnet().to_string());
    assert_eq!(ready["level"], "INFO");
    assert!(ready["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{ready}");
    assert!(lines.iter().any(|line| line["level"] == "DEBUG"), "{log}");
    let others = lines.iter().filter(|line| line["level"] == "DEBUG");
    assert!(
        others.clone().all(|line| line["target"].as_str().unwrap().starts_with("flannel")),
        "{log}"
    );
    let ignored = lines.iter().find(|line| line["flags"] == "-logtostderr");
    assert!(ignored.is_some(), "{log}");
}
