//! The commands that examine a node, on real nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use flannel_core::check::{CheckReport, Condition, Finding, Id};
use flannel_core::connectivity::{Matrix, Reach, WayKind};
use flannel_core::probe::Answer;
use flannel_core::trace::{self, Carrier, Direction, Hop, HopState, Step};
use flannel_tests::agent::Options;
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::process::output;
use flannel_tests::root::packaged;
use flannel_tests::told::told;
use flannel_tests::wait;

/// Exit code and report of `check --json`.
fn check(pair: &Pair, node: &Node) -> (Option<i32>, CheckReport) {
    let endpoints = format!("--etcd-endpoints={}", pair.etcd.endpoint());
    told(node.agent_command("check").arg(endpoints))
}

/// Breaks what `check` looks at, on the left node and around it.
fn plant(pair: &Pair) {
    let netns = &pair.left.netns;
    netns.sysctl("net.ipv4.ip_forward=0");
    netns.nft(
        "table ip mine {
           chain through {
             type filter hook forward priority 5
             ip daddr 10.244.0.0/16 drop
           }
           chain inwards {
             type filter hook input priority 5
             udp dport 8472 drop
           }
         }",
    );
    netns.ip_batch(&[
        "link add flannel.7 type vxlan id 7 dstport 8472".into(),
        "xfrm policy add src 192.0.2.0/24 dst 192.0.2.12/32 proto udp dport 8472 dir out action block"
            .into(),
        "link set flannel.1 down".into(),
    ]);
    // A switch drops what is too large for a port, without a word.
    pair.lab.underlay().ip("link set p2 mtu 1400");
    let same = r#"{"PublicIP":"192.0.2.12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#;
    pair.etcd.put_subnet("10.244.209.0-24", same);
    netns.sh("tc qdisc add dev eth0 clsact");
    netns.sh("tc filter add dev eth0 ingress protocol all u32 match u32 0 0 flowid 1:1");
    let file = pair.left.subnet_file();
    let wrong = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.250.1/24\n\
                 FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    std::fs::write(&file, wrong).expect("subnet.env can be written");
}

#[test]
fn check_finds_planted_faults_with_and_without_the_daemon() {
    let mut pair = Pair::agents(&Options::ebpf());
    let (code, report) = check(&pair, &pair.left);
    assert!(report.daemon);
    assert_eq!((code, report.verdict), (Some(0), Condition::Well), "{report:#?}");

    // Nobody puts right what follows.
    pair.left.kill_agent();
    let lease = format!("the lease {}", pair.left.subnet());
    plant(&pair);
    let (code, report) = check(&pair, &pair.left);
    assert_eq!((code, report.verdict), (Some(20), Condition::Broken), "{report:#?}");
    assert!(!report.daemon);
    for (id, state, words) in [
        (Id::Agent, Condition::Degraded, "no daemon runs"),
        (Id::Forwarding, Condition::Broken, "net.ipv4.ip_forward is 0"),
        (Id::ForwardRules, Condition::Broken, "ip mine through handle"),
        (Id::TunnelRules, Condition::Broken, "ip mine inwards handle"),
        (Id::Devices, Condition::Broken, "flannel.1 is down"),
        (Id::Devices, Condition::Degraded, "flannel.7"),
        (Id::VxlanPort, Condition::Degraded, "flannel.7 uses UDP port 8472 too"),
        (Id::ForeignPrograms, Condition::Degraded, "eth0 ingress has a u32 filter"),
        (
            Id::Ipsec,
            Condition::Degraded,
            "policies are about tunnel packets: src 192.0.2.0/24 dst 192.0.2.12",
        ),
        (Id::SubnetFile, Condition::Broken, &lease),
        (Id::Mtu, Condition::Broken, "1500 bytes do not pass the underlay to 192.0.2.12"),
        (Id::DuplicateLeases, Condition::Broken, "PublicIP 192.0.2.12 has"),
        (Id::Clock, Condition::Well, ""),
    ] {
        let is_it = |found: &&Finding| found.id == id && found.state == state;
        let mut findings = report.findings.iter().filter(is_it);
        assert!(findings.any(|it| it.found.contains(words)), "{id:?}: {words}\n{report:#?}");
    }
    let table = output(&mut pair.left.agent_command("check"));
    let table = String::from_utf8_lossy(&table.stdout);
    assert!(table.contains("do: sysctl -w net.ipv4.ip_forward=1"), "{table}");
    assert!(table.contains("no daemon answered") && !table.contains('\x1b'), "{table}");
}

#[test]
fn without_a_daemon_the_units_settings_count() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    let root = node.install();
    let unit = packaged("flannel-agent.service");
    root.write("/usr/lib/systemd/system/flannel-agent.service", &unit);
    let endpoint = etcd.endpoint();
    let settings = format!("# where it is\nFLANNELD_ETCD_ENDPOINTS=\"{endpoint}\" \n");
    root.write("/etc/sysconfig/flanneld", &settings);
    node.launch_service(&unit);
    node.wait_ready(Duration::from_secs(20));
    node.kill_agent();
    let store = |flags: &str| {
        let line = format!("/usr/bin/flannel-agent check --json {flags}");
        let (_, report) =
            told::<CheckReport>(&mut node.service_command(&line, &BTreeMap::new(), &[]));
        assert!(!report.daemon, "{report:#?}");
        report.findings.into_iter().find(|found| found.id == Id::Store).expect("the store")
    };
    let from = "settings of flannel-agent.service with /etc/sysconfig/flanneld";
    let found = store("");
    assert_eq!(found.state, Condition::Well, "{found:#?}");
    assert!(found.found.contains("1 lease") && found.found.ends_with(from), "{found:#?}");
    let found = store("--etcd-prefix=/other");
    assert_eq!(found.state, Condition::Degraded, "{found:#?}");
    assert!(found.found.contains("/other/config"), "flags go first: {found:#?}");
    let line = "/usr/bin/flannel-agent connectivity";
    let output = output(&mut node.service_command(line, &BTreeMap::new(), &[]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(from), "{output:?}");
}

#[test]
fn check_calls_the_loss_of_everything_broken() {
    let pair = Pair::agents(&Options::ebpf());
    let found = |id: Id, words: &str| {
        let (code, report) = check(&pair, &pair.left);
        assert_eq!((code, report.verdict), (Some(20), Condition::Broken), "{report:#?}");
        let mut broken = report.findings.iter().filter(|it| it.state == Condition::Broken);
        let is_it = |it: &Finding| it.id == id && it.found.contains(words);
        assert!(broken.any(is_it), "{id:?}: {words}\n{report:#?}");
    };
    let right = &pair.right.netns;
    right.nft(
        "table ip mine { chain inwards { type filter hook input priority 5; \
         udp dport 8472 drop; }\n}",
    );
    found(Id::Mtu, "through the overlay: no peer is reached");
    right.sh("nft delete table ip mine");
    let here = &pair.left.netns;
    // The switch is there, and nobody behind it.
    pair.lab.underlay().ip("link set p2 down");
    here.sh("ip neigh flush dev eth0");
    found(Id::Mtu, "no MAC is told for 192.0.2.12: no peer is reached");
    pair.lab.underlay().ip("link set p2 up");
    here.ip("link set eth0 down");
    found(Id::Underlay, "eth0 is down");
    here.ip("link set eth0 up");
    pair.lab.underlay().ip("link set p1 down");
    found(Id::Underlay, "eth0 has no carrier");
}

#[test]
fn connectivity_tells_who_answers_and_by_what() {
    let port = Options { extra: vec!["--connectivity-port=7946".into()], ..Options::ebpf() };
    let mut pair = Pair::over("eth0", [&port, &port], |_, _, _| ());
    let run = |pair: &Pair| {
        let endpoints = format!("--etcd-endpoints={}", pair.etcd.endpoint());
        let flags = ["--patience=1s", "--port=7946", &endpoints];
        told::<Matrix>(pair.left.agent_command("connectivity").args(flags))
    };
    let came = |answer: &Option<Answer>| answer.as_ref().is_some_and(Answer::came);
    // The responder takes its address a moment after the start.
    wait::holds("all answers", Duration::from_secs(20), || {
        let (code, matrix) = run(&pair);
        let peer = &matrix.peers[0];
        code == Some(0)
            && (peer.icmp.came() && came(&peer.udp) && came(&peer.tcp))
            && peer.state == Reach::Reached
            && peer.way.kind == WayKind::Tunnel
    });
    // Without daemons: no responder, and the peers are the store's.
    pair.left.kill_agent();
    pair.right.kill_agent();
    let (code, matrix) = run(&pair);
    let peer = &matrix.peers[0];
    assert_eq!((code, matrix.daemon), (Some(0), false), "{matrix:#?}");
    assert!(peer.icmp.came() && !came(&peer.udp) && peer.tcp.is_none(), "{matrix:#?}");
    pair.lab.underlay().ip("link set p2 down");
    let (code, matrix) = run(&pair);
    assert_eq!((code, matrix.peers[0].state), (Some(20), Reach::Unreached), "{matrix:#?}");
}

/// What a packet of the fast path passes.
const STEPS: [Step; 7] =
    [Step::Veth, Step::Hook, Step::Rules, Step::FastPath, Step::Map, Step::Route, Step::Neighbour];

#[test]
fn trace_names_the_hop_that_loses_a_packet() {
    let pair = Pair::agents(&Options::ebpf());
    let (from, to) = (pair.client.address.to_string(), pair.server.address.to_string());
    let run = |more: &[&str]| {
        let mut command = pair.left.agent_command("trace");
        let (code, report) = told::<trace::TraceReport>(command.args([&from, &to]).args(more));
        (code, report.trace.directions, report.live)
    };
    let running = pair.start_spaced(Duration::from_secs(8));
    let (code, directions, live) = run(&["--live", "2s"]);
    assert_eq!((code, directions.len()), (Some(0), 2), "{directions:#?}");
    for Direction { outcome, hops, .. } in &directions {
        assert_eq!(*outcome, Carrier::Fast, "{directions:#?}");
        for step in STEPS {
            let passes = |hop: &Hop| hop.step == step && hop.state == HopState::Passes;
            assert!(hops.iter().any(passes), "{step:?}: {hops:#?}");
        }
    }
    assert!(live.as_ref().is_some_and(|live| !live.is_empty()), "{live:#?}");
    running.finish();
    assert_eq!(run(&["icmp"]).1[0].outcome, Carrier::Kernel);
    pair.left.netns.nft(
        "table ip mine { chain through { type filter hook forward priority 5; \
         tcp dport 7000 drop; }\n}",
    );
    let (code, directions, _) = run(&["tcp", "7000"]);
    assert_eq!((code, directions[0].outcome), (Some(20), Carrier::Lost), "{directions:#?}");
    assert!(directions[0].why[0].contains("mine through"), "{directions:#?}");
    assert_eq!(run(&["tcp", "7001"]).1[0].outcome, Carrier::Fast);
}
