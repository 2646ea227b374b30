//! Two agents for two overlay networks on each of two nodes.

use std::process::Command;
use std::thread;
use std::time::Duration;

use flannel_core::health::{Line, Subject};
use flannel_tests::agent::{self, Options};
use flannel_tests::lab::OUTSIDE;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::process::{Process, output};
use flannel_tests::wait;
use nix::sys::signal::Signal;

const PREFIX: &str = "/second/network";
const CONFIG: &str = r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#;

/// The second agent of a node; ends with it.
struct Second {
    process: Process,
    state: String,
}

fn start(pair: &Pair, node: &Node, name: &str) -> Second {
    start_at(pair, node, name, PREFIX, &format!("{}-{name}", node.pin_dir().display()))
}

fn start_at(pair: &Pair, node: &Node, name: &str, prefix: &str, pins: &str) -> Second {
    let state = format!("{}-{name}", node.state_dir().display());
    let mut command = node.netns.command(agent::program());
    command.args([
        format!("--etcd-endpoints={}", pair.etcd.endpoint()),
        "--iface=eth0".to_owned(),
        format!("--state-dir={state}"),
        format!("--subnet-file={state}/subnet.env"),
        format!("--pin-dir={pins}"),
        format!("--etcd-prefix={prefix}"),
        "--ip-masq".to_owned(),
    ]);
    command.env("NO_COLOR", "1");
    let log = pair.lab.dir().join(format!("{name}-{}.log", node.address));
    let process = Process::start(name, &mut command, &log);
    Second { process, state }
}

impl Second {
    fn command(&self, node: &Node, words: &[&str]) -> std::process::Output {
        let mut command: Command = node.netns.command(agent::program());
        output(command.args(words).arg(format!("--state-dir={}", self.state)))
    }
}

/// Handles change when a table is written anew.
fn rules(node: &Node) -> String {
    node.netns.sh("nft -a list ruleset")
}

/// The same network, device or pins again are refused before anything is written.
fn refuse_what_is_taken(pair: &Pair) {
    let mut again = start(pair, &pair.left, "third");
    assert_eq!(again.process.wait(Duration::from_secs(10)).code(), Some(1));
    assert!(again.process.log().contains("another agent on this node"), "{}", again.process.log());
    // The same pins, whatever else is its own.
    pair.etcd.ctl(&[
        "put",
        "/third/network/config",
        &CONFIG.replace("99", "98").replace("2}", "3}"),
    ]);
    let pins = pair.left.pin_dir().display().to_string();
    let mut again = start_at(pair, &pair.left, "fourth", "/third/network", &pins);
    assert_eq!(again.process.wait(Duration::from_secs(10)).code(), Some(1));
    assert!(again.process.log().contains("the pin directory"), "{}", again.process.log());
    assert!(pair.etcd.ctl(&["get", "--prefix", "/third/network/subnets"]).is_empty());
}

#[test]
fn both_networks_work_and_neither_undoes_the_others_rules() {
    let pair = Pair::agents(&Options { ip_masq: true, ..Options::ebpf() });
    pair.etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let _outside = pair.lab.outside();
    let mut seconds = [&pair.left, &pair.right].map(|node| start(&pair, node, "second"));
    let address = |node: &Node| {
        let text = node.netns.sh("ip -br -4 address show flannel.2");
        text.split_whitespace().nth(2).map(|text| text.trim_end_matches("/32").to_owned())
    };
    let there = wait::until("both devices", Duration::from_secs(15), || {
        let device = |node: &Node| node.netns.try_sh("ip link show flannel.2");
        (device(&pair.left) && device(&pair.right)).then(|| address(&pair.right)).flatten()
    });
    let to = there.0.parse().expect("an address");
    wait::holds("the second network", Duration::from_secs(10), || {
        pair.left.netns.ping(to, "-c 1 -W 1 -I flannel.2").0
    });
    wait::holds("two tables", Duration::from_secs(5), || {
        rules(&pair.left).matches("table ip flannel-ipv4").count() == 2
    });
    let before = rules(&pair.left);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(rules(&pair.left), before, "nobody writes");
    pair.client.ping(pair.server.address, "-c 20 -i 0.05 -W 1");
    pair.client.ping(OUTSIDE, "-c 1 -W 1");
    pair.left.netns.ping(to, "-c 20 -i 0.05 -W 1 -I flannel.2");
    // What one leaves to the kernel because of the other is said.
    let health = pair.left.not_well();
    let another = |line: &Line| line.reason.contains("of another agent on ingress");
    assert!(
        health.iter().any(|line| line.subject == Subject::FastPath && another(line)),
        "{health:?}"
    );
    refuse_what_is_taken(&pair);
    // Cleanup of the second leaves the first alone.
    let [left, _right] = &mut seconds;
    left.process.signal(Signal::SIGTERM);
    assert!(left.process.wait(Duration::from_secs(5)).success());
    let pins = format!("--pin-dir={}-second", pair.left.pin_dir().display());
    let cleaned = left.command(&pair.left, &["cleanup", &pins]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert!(!rules(&pair.left).contains("10.99.0.0/16"), "{}", rules(&pair.left));
    assert!(rules(&pair.left).contains("10.244.0.0/16"));
    assert!(!pair.left.netns.try_sh("ip link show flannel.2"));
    pair.client.ping(pair.server.address, "-c 5 -i 0.05 -W 1");
    pair.client.ping(OUTSIDE, "-c 1 -W 1");
}
