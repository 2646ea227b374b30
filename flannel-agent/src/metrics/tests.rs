use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use flannel_core::backend::{BackendKind, Published};
use flannel_core::health::{Found, Part, Subject};
use flannel_core::lease::Lease;
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::mac::MacAddr;
use flannel_core::peer::Peer;
use flannel_core::repair::Repair;
use flannel_core::status::{DatapathKind, FlowTableStatus, PeerCounters};
use flannel_ebpf::abi::Outcome;

use super::catalogue::{ALL, Metric};
use super::*;
use crate::backend::udp;
use crate::bpf::fake::FakeDatapath;

fn subnet(index: u32) -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::from(0x0a00_0000 + index * 256), 24).unwrap()
}

/// An agent with this many peers, and with something of everything.
fn busy(peers: u32, options: MetricsOptions) -> (Exporter, Shared, FakeDatapath) {
    let (shared, datapath) = (Shared::default(), FakeDatapath::default());
    {
        let mut state = datapath.state();
        for name in ["kernel_fragment", "forged_outer_source", "drop_broken", "confirmed_out"] {
            state.outcomes.insert(name, 7);
        }
        state.outcomes.insert("shortcut_encap", 1);
        state.outcomes.insert("shortcut_decap", 2);
        let counters = PeerCounters {
            tx_fast_packets: 3,
            tx_fast_bytes: 300,
            tx_kernel_packets: 5,
            rx_kernel_packets: 9,
            ..PeerCounters::default()
        };
        state.bounds = [(subnet(0), 0), (subnet(1), 1300)].into();
        state.peer_counters = (0..peers).map(|index| (subnet(index), counters)).collect();
    }
    {
        let mut state = shared.lock();
        state.ready = true;
        state.store.connected = true;
        state.backend = Some(BackendKind::Vxlan);
        state.datapath.mode = Some(DatapathKind::Ebpf);
        state.datapath.flows = Some(FlowTableStatus { size: 1000, new_per_window: Some(500) });
        let peer = |index| Peer {
            subnet: subnet(index),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            public_ip: Ipv4Addr::from(0xc000_0200 + index),
        };
        state.peers = Arc::new((0..peers).map(|index| (subnet(index), peer(index))).collect());
        state.lease = Some(Lease {
            subnet: subnet(peers),
            attrs: LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, 1), Published::default()),
            expires: Some(Instant::now() + Duration::from_secs(5000)),
            revision: 1,
        });
        state.record.passed(Duration::from_millis(3));
        state.record.repaired(Repair::Route, 2);
        state.record.store_told(41);
        state.record.store_failed();
        state.record.hooks.insert("from_pod", 4);
        let reason = "no such device".to_owned();
        state.failed = [(subnet(0), reason.clone())].into();
        let about = Part::Subnet(subnet(0));
        state.report(Subject::Peer, Found::from_iter([(about, reason)]));
    }
    let shared_datapath = SharedDatapath::default();
    *lock(&shared_datapath) = Some(Box::new(datapath.clone()));
    let exporter = Exporter::new(shared.clone(), shared_datapath, options, VerifySource::Drop);
    (exporter, shared, datapath)
}

#[track_caller]
fn says(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
}

#[test]
fn every_metric_is_told_and_no_other() {
    let (exporter, ..) = busy(3, MetricsOptions { peers: true });
    let text = exporter.scrape(Format::OpenMetrics);
    let told: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let listed: BTreeSet<&str> = ALL.iter().map(|metric| metric.family).collect();
    assert_eq!(told.iter().copied().collect::<BTreeSet<_>>(), listed);
    assert_eq!(told.len(), listed.len(), "a family is told twice");
    for metric in ALL {
        labels_are_as_listed(&text, metric);
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn promtool_has_nothing_to_say() {
    let (exporter, ..) = busy(3, MetricsOptions { peers: true });
    let (plain, open) = (exporter.scrape(Format::Prometheus), exporter.scrape(Format::OpenMetrics));
    let samples = |text: &str| -> BTreeSet<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
    };
    assert_eq!(samples(&plain), samples(&open), "names are the same");
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    promtool.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool, of the package prometheus");
    promtool.stdin.take().unwrap().write_all(plain.as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let text = [said.stdout, said.stderr].concat();
    assert!(said.status.success() && text.is_empty(), "{}", String::from_utf8_lossy(&text));
    says(&plain, "# TYPE flannel_packets_total counter");
    assert!(plain.contains("# HELP flannel_packets_total Packets of the overlay"), "{plain}");
}

#[track_caller]
fn labels_are_as_listed(text: &str, metric: &Metric) {
    let name = match metric.kind.as_str() {
        "histogram" => format!("{}_count", metric.family),
        _ => metric.name(),
    };
    let sample = text
        .lines()
        .filter_map(|line| line.strip_prefix(&name))
        .find(|rest| rest.starts_with(['{', ' ']))
        .unwrap_or_else(|| panic!("no sample of {name}"));
    let labels = sample.split_once('}').map_or("", |(labels, _)| labels.trim_start_matches('{'));
    let keys: Vec<&str> = labels.split("\",").filter_map(|pair| pair.split('=').next()).collect();
    let keys: Vec<&str> = keys.into_iter().filter(|key| !key.is_empty()).collect();
    assert_eq!(keys, metric.labels, "{name}");
}

#[test]
fn values_are_the_agents() {
    let (exporter, shared, datapath) = busy(3, MetricsOptions::default());
    let text = exporter.scrape(Format::OpenMetrics);
    for line in [
        "flannel_ready 1",
        "flannel_datapath_mode{mode=\"ebpf\"} 1",
        "flannel_datapath_mode{mode=\"kernel\"} 0",
        "flannel_datapath_fallback 0",
        "flannel_not_well{subject=\"peer\"} 1",
        "flannel_not_well{subject=\"store\"} 0",
        "flannel_packets_total{path=\"fast\",direction=\"out\"} 9",
        "flannel_packets_total{path=\"kernel\",direction=\"out\"} 14",
        "flannel_packets_total{path=\"shortcut\",direction=\"in\"} 2",
        "flannel_bytes_total{path=\"fast\",direction=\"out\"} 900",
        "flannel_outcomes_total{outcome=\"kernel_fragment\"} 7",
        "flannel_dropped_packets_total{reason=\"forged_outer_source\"} 7",
        "flannel_confirmed_flows_total{kind=\"out\"} 7",
        "flannel_peers{state=\"ok\"} 2",
        "flannel_peers{state=\"pending\"} 1",
        "flannel_narrow_peers 2",
        "flannel_store_up 1",
        "flannel_store_errors_total 1",
        "flannel_store_revision 41",
        "flannel_reconcile_duration_seconds_bucket{le=\"0.005\"} 1",
        "flannel_repairs_total{kind=\"route\"} 2",
        "flannel_repairs_total{kind=\"device\"} 0",
        "flannel_bpf_map_pressure{map=\"fl_flows4\"} 0.5",
        "flannel_hooks_attached{program=\"from_pod\"} 4",
        "flannel_hooks_attached{program=\"from_wire\"} 0",
    ] {
        says(&text, line);
    }
    assert!(!text.contains("flannel_peer_packets"), "not asked for");
    let name = "flannel_lease_expiration_timestamp_seconds ";
    let end = text.lines().find_map(|line| line.strip_prefix(name)?.parse::<f64>().ok()).unwrap();
    let left =
        end - SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((4990.0..5001.0).contains(&left), "{left}");
    // A peer leaves, and the sum does not fall.
    datapath.state().peer_counters.remove(&subnet(0));
    let mut state = shared.lock();
    state.datapath.mode = Some(DatapathKind::Kernel);
    state.datapath.reason = Some("EPERM".to_owned());
    drop(state);
    let text = exporter.scrape(Format::OpenMetrics);
    says(&text, "flannel_packets_total{path=\"fast\",direction=\"out\"} 9");
    says(&text, "flannel_datapath_fallback 1");
    assert!(!text.contains("flannel_bpf_map_pressure{"), "{text}");
}

#[test]
fn forged_packets_are_dropped_only_if_they_are() {
    let (mut exporter, ..) = busy(1, MetricsOptions::default());
    exporter.verify_source = VerifySource::Count;
    let text = exporter.scrape(Format::OpenMetrics);
    assert!(!text.contains("dropped_packets_total{reason=\"forged"), "{text}");
    says(&text, "flannel_dropped_packets_total{reason=\"drop_broken\"} 7");
}

/// The limit is for a release build, and this machine may be busy: the best of
/// some counts, and only the order of magnitude is asserted without optimisation.
#[test]
fn five_thousand_peers_are_told_quickly() {
    let (exporter, ..) = busy(5000, MetricsOptions::default());
    let lines = exporter.scrape(Format::OpenMetrics).lines().count();
    let best = (0..10)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(
                exporter.scrape(Format::OpenMetrics).lines().count(),
                lines,
                "what is told does not grow"
            );
            began.elapsed()
        })
        .min()
        .unwrap();
    let limit = if cfg!(debug_assertions) { 200 } else { 20 };
    assert!(best < Duration::from_millis(limit), "{best:?}");
}

/// What stands in the page as `code`.
fn in_the_page(page: &str, name: &str) -> bool {
    page.contains(&format!("`{name}`"))
}

#[test]
fn every_subject_and_outcome_is_explained() {
    let page = include_str!("../../../docs/troubleshooting.md");
    let (_, subjects) = page.split_once("\n## Not well\n").unwrap();
    let (subjects, outcomes) = subjects.split_once("\n## Outcomes\n").unwrap();
    for subject in Subject::ALL {
        let row = format!("\n| `{subject}` | ");
        assert!(subjects.contains(&row), "{subject} is not explained");
    }
    for name in Outcome::ALL.iter().map(|outcome| outcome.name()) {
        assert!(in_the_page(outcomes, name), "{name} is not explained");
    }
    for name in udp::outcomes() {
        assert!(in_the_page(outcomes, name), "{name} is not explained");
    }
}

#[test]
fn every_alert_is_explained() {
    let page = include_str!("../../../docs/operations.md");
    let rules = include_str!("../../../packaging/prometheus/flannel.rules.yml");
    for name in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(in_the_page(page, name), "{name}");
    }
}

#[test]
fn alerts_are_about_metrics_that_there_are() {
    let rules = include_str!("../../../packaging/prometheus/flannel.rules.yml");
    let names: BTreeSet<String> = ALL.iter().map(Metric::name).collect();
    let word = regex::Regex::new(r"\b(?:flannel|process)_[a-z_]+").unwrap();
    let subject = regex::Regex::new(r#"subject=~?"([^"]+)""#).unwrap();
    let mut found = 0;
    for expression in rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")) {
        for name in word.find_iter(expression) {
            found += 1;
            assert!(names.contains(name.as_str()), "{} in {expression:?}", name.as_str());
        }
        for subjects in subject.captures_iter(expression) {
            for subject in subjects[1].split('|') {
                assert!(
                    Subject::ALL.iter().any(|known| known.text() == subject),
                    "{subject} in {expression:?}"
                );
            }
        }
    }
    assert!(found >= 9, "{found}");
    // Each alert says what to do.
    let count = |text: &str| rules.matches(text).count();
    assert_eq!(count("- alert: "), count("description: "));
}
