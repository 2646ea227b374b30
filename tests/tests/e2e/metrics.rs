//! `/metrics` of real agents: what is told is what the node does.

use std::collections::BTreeMap;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::lab::Lab;
use flannel_tests::load::SPACED;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::wait;

/// Nobody else listens in a node's namespace.
const PORT: u16 = 10_250;

fn options(flags: &[&str]) -> Options {
    let port = format!("--healthz-port={PORT}");
    let extra = flags.iter().map(|flag| (*flag).to_owned()).chain([port]);
    Options { extra: extra.collect(), ..Options::ebpf() }
}

/// Samples by name with labels.
fn scrape(node: &Node) -> BTreeMap<String, f64> {
    let (code, text) = node.get(PORT, "/metrics").expect("an answer");
    assert_eq!(code, 200, "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("name and value");
            let value = value.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
            (name.to_owned(), value)
        })
        .collect()
}

#[track_caller]
fn value(node: &Node, name: &str) -> f64 {
    let all = scrape(node);
    *all.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", all.keys().collect::<Vec<_>>()))
}

#[test]
fn a_scrape_tells_what_the_node_does() {
    let mut pair = Pair::agents(&options(&["--metrics-peers"]));
    pair.traffic(SPACED, "--seconds 0.5");
    let before = scrape(&pair.left);
    assert_eq!(before["flannel_ready"], 1.0);
    assert_eq!(before["flannel_datapath_mode{mode=\"ebpf\"}"], 1.0);
    assert_eq!(before["flannel_datapath_fallback"], 0.0);
    assert_eq!(before["flannel_peers{state=\"ok\"}"], 1.0);
    assert_eq!(before["flannel_store_up"], 1.0);
    assert_eq!(before["flannel_hooks_attached{program=\"from_pod\"}"], 1.0);
    assert_eq!(before["flannel_hooks_attached{program=\"to_overlay\"}"], 1.0);
    assert!(before["flannel_store_revision"] > 0.0);
    assert!(before["flannel_reconcile_duration_seconds_count"] >= 1.0);
    assert_eq!(before["flannel_repairs_total{kind=\"device\"}"], 0.0, "the start is no repair");
    assert!(!before.keys().any(|name| name.contains(&pair.server.address.to_string())));
    let hours = (before["flannel_lease_expiration_timestamp_seconds"] - now()) / 3600.0;
    assert!((23.0..24.1).contains(&hours), "{hours}");

    let fast = "flannel_packets_total{path=\"fast\",direction=\"out\"}";
    pair.traffic(SPACED, "--seconds 0.5");
    let after = scrape(&pair.left);
    assert!(after[fast] > before[fast] + 100.0, "{} {}", before[fast], after[fast]);
    let bytes = "flannel_bytes_total{path=\"fast\",direction=\"out\"}";
    assert!(after[bytes] - before[bytes] > 20.0 * (after[fast] - before[fast]));
    let peer = format!(
        "flannel_peer_packets_total{{peer=\"{}\",path=\"fast\",direction=\"out\"}}",
        pair.right.subnet()
    );
    assert_eq!(after[&peer], after[fast], "the only peer");
    let fast_out = "flannel_outcomes_total{outcome=\"fast_encap\"}";
    assert!(after[fast_out] >= after[fast]);
    // Nothing is counted backwards.
    for (name, count) in before.iter().filter(|(name, _)| name.contains("_total")) {
        assert!(after[name] >= *count, "{name}: {count} {}", after[name]);
    }

    pair.etcd.kill();
    wait::holds("the store's fall", Duration::from_secs(20), || {
        value(&pair.left, "flannel_store_up") == 0.0
    });
    assert!(value(&pair.left, "flannel_store_errors_total") >= 1.0);
    assert_eq!(value(&pair.left, "flannel_not_well{subject=\"store\"}"), 1.0);
}

#[test]
fn repairs_are_counted_by_kind() {
    let pair = Pair::agents(&options(&[]));
    let route = "flannel_repairs_total{kind=\"route\"}";
    let hook = "flannel_repairs_total{kind=\"hook\"}";
    assert_eq!((value(&pair.left, route), value(&pair.left, hook)), (0.0, 0.0));
    pair.left.netns.ip(&format!("route del {}", pair.right.subnet()));
    wait::holds("the route's repair", Duration::from_secs(5), || value(&pair.left, route) == 1.0);
    assert_eq!(value(&pair.left, hook), 0.0);
    assert!(!scrape(&pair.left).keys().any(|name| name.starts_with("flannel_peer_packets")));
}

#[test]
fn the_kernel_path_is_told_as_such() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    // Asked for: no fallback.
    node.start(&etcd, &Options { datapath: Some("kernel"), ..options(&[]) });
    let asked = scrape(&node);
    assert_eq!(asked["flannel_datapath_mode{mode=\"kernel\"}"], 1.0);
    assert_eq!(asked["flannel_datapath_fallback"], 0.0);
    assert!(!asked.keys().any(|name| name.starts_with("flannel_outcomes_total")));
    node.stop_agent();
    let wrapper = ["setpriv", "--bounding-set", "-bpf,-sys_admin,-perfmon"].map(String::from);
    node.start(&etcd, &Options { datapath: None, wrapper: wrapper.to_vec(), ..options(&[]) });
    assert_eq!(value(&node, "flannel_datapath_fallback"), 1.0);
}

fn now() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("a clock").as_secs_f64()
}
