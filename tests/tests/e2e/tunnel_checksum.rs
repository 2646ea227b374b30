//! A network card that breaks checksums in tunnel packets, and `--tunnel-checksum=kernel`.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use flannel_core::check::{CheckReport, Condition, Finding, Id};
use flannel_core::checksum::TunnelChecksum;
use flannel_core::envelope::{Kept, KeptWay, Obstacle, Reason};
use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::faulty_card::FaultyCard;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::told::told;
use flannel_tests::wait;

const SECOND: Duration = Duration::from_secs(1);

/// Exit code of `check`, and what it says of checksums.
fn check(pair: &Pair, node: &Node) -> (Option<i32>, Finding) {
    let endpoints = format!("--etcd-endpoints={}", pair.etcd.endpoint());
    let (code, report): (_, CheckReport) = told(node.agent_command("check").arg(endpoints));
    let found = report.findings.into_iter().find(|finding| finding.id == Id::TunnelChecksum);
    (code, found.expect("it was looked at"))
}

/// Whether `flannel.1` leaves checksums to whoever sends its packets on.
fn leaves_checksums(node: &Node) -> bool {
    let features = node.netns.sh("ethtool -k flannel.1");
    let state =
        features.lines().find_map(|line| line.trim().strip_prefix("tx-checksum-ip-generic:"));
    state.expect("the feature").trim() == "on"
}

/// What the next start is told.
fn state(node: &Node) -> String {
    std::fs::read_to_string(node.state_dir().join("state.json")).expect("a state file")
}

fn connects(pair: &Pair) -> bool {
    let to = SocketAddr::V4(pair.server.target());
    pair.client.netns.inside(|| TcpStream::connect_timeout(&to, 2 * SECOND).is_ok())
}

#[test]
fn tcp_works_over_a_card_that_breaks_it() {
    let mut card = None;
    let remedied = |options: Options| {
        let extra = vec!["--tunnel-checksum=kernel".to_owned()];
        Options { extra, ..options }
    };
    let mut pair = Pair::over("eth0", [&Options::ebpf(), &Options::kernel()], |lab, left, _| {
        card = Some(FaultyCard::before(lab, left));
    });
    assert!(!connects(&pair), "the card breaks TCP");
    let (code, found) = check(&pair, &pair.left);
    assert_eq!((code, found.state), (Some(20), Condition::Broken), "{found:?}");
    let remedy = found.remedy.clone().unwrap_or_default();
    assert!(remedy.contains("--tunnel-checksum=kernel"), "{found:?}");

    pair.left.stop_agent();
    pair.left.start(&pair.etcd, &remedied(Options::ebpf()));
    pair.right.stop_agent();
    pair.right.start(&pair.etcd, &remedied(Options::kernel()));
    let before = pair.left.outcomes();
    pair.check_integrity(10);
    let since = pair.left.outcomes().since(&before);
    assert_eq!(since.get(Outcome::FastEncap) + since.get(Outcome::ShortcutEncap), 0, "{since:?}");
    assert!(since.get(Outcome::FastDecap) > 1000, "{since:?}");
    let (code, found) = check(&pair, &pair.left);
    assert_eq!((code, found.state), (Some(0), Condition::Well), "{found:?}");
    let status = pair.left.status();
    let device = status.device.as_ref().expect("a device");
    assert_eq!(device.checksum, Some(TunnelChecksum::Kernel));
    let why = vec![Reason { device: String::new(), what: Obstacle::KernelChecksum }];
    assert_eq!(status.datapath.envelope.kept, [Kept { way: KeptWay::KeepOut, why }]);

    pair.left.netns.sh("ethtool -K flannel.1 tx-checksum-ip-generic on");
    wait::holds("the device to be put right", SECOND, || !leaves_checksums(&pair.left));
    pair.left.netns.ip("link delete flannel.1");
    wait::holds("a new device", 2 * SECOND, || {
        pair.left.netns.try_sh("ip link show flannel.1") && !leaves_checksums(&pair.left)
    });
    // Without the option it is as it was before; so it is for who comes after us. Until
    // then each start is told.
    pair.left.stop_agent();
    assert!(!leaves_checksums(&pair.left), "it works without the agent");
    assert!(state(&pair.left).contains("\"tunnel_checksum\": \"kernel\""));
    pair.left.start(&pair.etcd, &Options::ebpf());
    assert!(leaves_checksums(&pair.left) && !state(&pair.left).contains("tunnel_checksum"));
    pair.right.stop_agent();
    let output = pair.right.cleanup_with(&["--keep-device"]);
    assert!(output.status.success() && leaves_checksums(&pair.right), "{output:?}");
}
