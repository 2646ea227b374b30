//! The commands that examine a node, on real nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::process::output;
use flannel_tests::wait;
use serde_json::Value;

/// Exit code and report of `check --json`.
fn check(pair: &Pair, node: &Node) -> (Option<i32>, Value) {
    let output = output(
        node.agent_command("check")
            .args(["--json".to_owned(), format!("--etcd-endpoints={}", pair.etcd.endpoint())]),
    );
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), report)
}

/// What was found by id, as state and text; the worst of each.
fn by_id(report: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::<String, String>::new();
    for finding in report["findings"].as_array().expect("findings") {
        let word = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        let line = format!("{}: {}\n", word("state"), word("found"));
        found.entry(word("id")).or_default().push_str(&line);
    }
    found
}

#[test]
fn check_finds_planted_faults_with_and_without_the_daemon() {
    let mut pair = Pair::agents(&Options::ebpf());
    let (code, report) = check(&pair, &pair.left);
    assert_eq!(report["daemon"], true);
    assert_eq!((code, &report["verdict"]), (Some(0), &Value::from("well")), "{report:#}");

    // Nobody puts right what follows.
    pair.left.kill_agent();
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
    let lease = format!("the lease {}", pair.left.subnet());
    let wrong = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.250.1/24\n\
                 FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    std::fs::write(&file, wrong).expect("subnet.env can be written");

    let (code, report) = check(&pair, &pair.left);
    let found = by_id(&report);
    assert_eq!((code, &report["verdict"]), (Some(20), &Value::from("broken")), "{report:#}");
    assert_eq!(report["daemon"], false);
    for (id, words) in [
        ("agent", "degraded: no daemon runs"),
        ("forwarding", "broken: net.ipv4.ip_forward is off"),
        ("forward-rules", "broken: ip mine through handle"),
        ("tunnel-rules", "broken: ip mine inwards handle"),
        ("devices", "broken: flannel.1 is down"),
        ("devices", "degraded: flannel.7"),
        ("vxlan-port", "degraded: flannel.7 uses UDP port 8472 too"),
        ("foreign-programs", "degraded: eth0 ingress has a u32 filter"),
        ("ipsec", "degraded: policies are about tunnel packets: src 192.0.2.0/24 dst 192.0.2.12"),
        ("subnet-file", &lease),
        ("mtu", "broken: 1500 bytes do not pass the underlay to 192.0.2.12"),
        ("duplicate-leases", "broken: PublicIP 192.0.2.12 has"),
        ("clock", "well"),
    ] {
        assert!(
            found.get(id).is_some_and(|found| found.contains(words)),
            "{id}: {words}\n{found:#?}"
        );
    }
    let table = output(&mut pair.left.agent_command("check"));
    let table = String::from_utf8_lossy(&table.stdout);
    assert!(table.contains("do: sysctl -w net.ipv4.ip_forward=1"), "{table}");
    assert!(table.contains("no daemon answered") && !table.contains('\x1b'), "{table}");
}

#[test]
fn connectivity_tells_who_answers_and_by_what() {
    let port = Options { extra: vec!["--connectivity-port=7946".into()], ..Options::ebpf() };
    let mut pair = Pair::over("eth0", [&port, &port], |_, _, _| ());
    let run = |pair: &Pair| {
        let output = output(pair.left.agent_command("connectivity").args([
            "--json",
            "--patience=1s",
            "--port=7946",
            &format!("--etcd-endpoints={}", pair.etcd.endpoint()),
        ]));
        let matrix: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), matrix)
    };
    let came = |peer: &Value, way: &str| peer[way]["result"] == "came";
    // The responder takes its address a moment after the start.
    wait::holds("all answers", Duration::from_secs(20), || {
        let (code, matrix) = run(&pair);
        let peer = &matrix["peers"][0];
        code == Some(0)
            && ["icmp", "udp", "tcp"].iter().all(|way| came(peer, way))
            && peer["state"] == "reached"
            && peer["way"]["kind"] == "tunnel"
    });
    // Without daemons: no responder, and the peers are the store's.
    pair.left.kill_agent();
    pair.right.kill_agent();
    let (code, matrix) = run(&pair);
    let peer = &matrix["peers"][0];
    assert_eq!((code, &matrix["daemon"]), (Some(0), &Value::from(false)), "{matrix:#}");
    assert!(came(peer, "icmp") && !came(peer, "udp") && peer["tcp"].is_null(), "{matrix:#}");
    pair.lab.underlay().ip("link set p2 down");
    let (code, matrix) = run(&pair);
    assert_eq!((code, &matrix["peers"][0]["state"]), (Some(20), &"unreached".into()), "{matrix:#}");
}

#[test]
fn trace_names_the_hop_that_loses_a_packet() {
    let pair = Pair::agents(&Options::ebpf());
    let (from, to) = (pair.client.address.to_string(), pair.server.address.to_string());
    let run = |more: &[&str]| {
        let mut command = pair.left.agent_command("trace");
        let output = output(command.args(["--json", &from, &to]).args(more));
        let trace: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), trace)
    };
    let running = pair.start_spaced(Duration::from_secs(8));
    let (code, trace) = run(&["--live", "2s"]);
    assert_eq!(code, Some(0), "{trace:#}");
    for direction in trace["directions"].as_array().expect("directions") {
        assert_eq!(direction["outcome"], "fast", "{trace:#}");
        let known = |step: &str| {
            let hops = direction["hops"].as_array().expect("hops");
            hops.iter().any(|hop| hop["step"] == step && hop["state"] == "passes")
        };
        for step in ["veth", "hook", "rules", "fast-path", "map", "route", "neighbour"] {
            assert!(known(step), "{step}: {direction:#}");
        }
    }
    let counted = trace["live"].as_object().is_some_and(|live| !live.is_empty());
    assert!(counted, "{:#}", trace["live"]);
    running.finish();
    assert_eq!(run(&["icmp"]).1["directions"][0]["outcome"], "kernel");
    pair.left.netns.nft(
        "table ip mine { chain through { type filter hook forward priority 5; \
         tcp dport 7000 drop; }\n}",
    );
    let (code, trace) = run(&["tcp", "7000"]);
    assert_eq!((code, &trace["directions"][0]["outcome"]), (Some(20), &"lost".into()), "{trace:#}");
    assert!(trace["directions"][0]["why"][0].to_string().contains("mine through"), "{trace:#}");
    assert_eq!(run(&["tcp", "7001"]).1["directions"][0]["outcome"], "fast");
}
