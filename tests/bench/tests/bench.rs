//! The benchmark measures what it says, on the wire that it says.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flannel_bench::columns::columns;
use flannel_bench::control::{self, table::Rows};
use flannel_bench::report::Report;
use flannel_bench::rows::{EBPF, HOST, JUDGED, JUDGED_PORT, KERNEL, ROWS, rows};
use flannel_bench::sites::judge;
use flannel_bench::wire::Wire;
use flannel_bench::{Effort, Plan, markdown, plot, table};
use flannel_tests::agent::{Options, program};
use flannel_tests::load::FLOOD;
use flannel_tests::pair::Pair;
use flannel_tests::rules::Rules;

#[test]
fn every_row_has_every_figure() {
    let plan = Plan {
        rows: rows(&[]),
        columns: columns(&[]),
        wires: vec![Wire::Gso],
        rules: Rules::Iptables,
        against: None,
        effort: Effort { rounds: 1, seconds: 0.1 },
    };
    let report = plan.run("bench", |_| {});
    let wired = &report.wires[0];
    let services = report.columns.iter().filter(|column| column.load.contains("service")).count();
    assert_eq!(services, 8);
    assert_eq!(wired.cells.len(), ROWS.len() * report.columns.len() - services);
    for cell in &wired.cells {
        assert!(cell.spread.is_some(), "{cell:?}");
        let service = cell.column.starts_with("service");
        assert!(!service || cell.row != HOST, "{cell:?}");
        let compared = service && !cell.column.ends_with("loss");
        assert_eq!(cell.times_direct.is_some(), compared, "{cell:?}");
    }
    // What a row is called is what its nodes did.
    let shares: BTreeMap<_, _> =
        wired.rows.iter().map(|row| (row.title.as_str(), row.fast_shares)).collect();
    for (title, left, right) in [
        ("host-gw, kernel", false, false),
        ("host-gw, eBPF", true, true),
        (KERNEL, false, false),
        (EBPF, true, true),
        (JUDGED, true, true),
        ("eBPF to kernel", true, false),
        ("kernel to eBPF", false, true),
        ("fast path off", false, false),
    ] {
        let found = shares[title].unwrap_or_else(|| panic!("{title}: no counters"));
        let expected = [left, right].map(|fast| if fast { 0.5..=1.0 } else { 0.0..=0.0 });
        let good = expected.iter().zip(&found).all(|(range, share)| range.contains(share));
        assert!(good, "{title}: {found:?}");
    }
    assert_eq!(shares[HOST], None);
    let text = serde_json::to_string(&report).unwrap();
    let again: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(table::text(&again).lines().count(), table::text(&report).lines().count());
    assert!(plot::svg(&again, &again.wires[0]).contains("<title>TCP 32, eBPF path: "));
    assert!(markdown::results(&again, |_| String::new()).contains("| · eBPF path | "));
}

#[test]
fn wires_carry_what_they_say() {
    let plan = Plan {
        rows: rows(&[KERNEL, EBPF, "host-gw"]),
        columns: columns(&["TCP 1"]),
        // Back again, too: features must not stay.
        wires: vec![Wire::Mtu, Wire::Gso, Wire::Mtu],
        rules: Rules::None,
        against: None,
        effort: Effort { rounds: 1, seconds: 0.3 },
    };
    let report = plan.run("bench", |_| {});
    for wired in &report.wires {
        for row in &wired.rows {
            let frame = row.mean_frame;
            let good = match wired.wire {
                // An MTU of 1500 and an Ethernet header.
                Wire::Mtu => (1000.0..=1514.0).contains(&frame),
                Wire::Gso => frame > 4000.0,
            };
            assert!(good, "{:?}, {}: {frame} bytes", wired.wire, row.title);
        }
    }
}

/// A program that starts the agent on the kernel path, whatever the row says,
/// and writes down each start.
fn kernel_build(dir: &Path) -> PathBuf {
    let path = dir.join("other-agent");
    let script = format!(
        "#!/bin/sh\n\
         case \"$*\" in *--etcd-endpoints=*) echo \"$*\" >> '{}'; set -- \"$@\" --datapath=kernel;; esac\n\
         exec '{}' \"$@\"\n",
        dir.join("starts").display(),
        program().display(),
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn builds_are_measured_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan {
        rows: rows(&[KERNEL, EBPF]),
        columns: columns(&["UDP 64 B"]),
        wires: vec![Wire::Gso],
        rules: Rules::Nftables,
        against: Some(kernel_build(dir.path())),
        effort: Effort { rounds: 2, seconds: 0.2 },
    };
    let report = plan.run("bench", |_| {});
    let starts = fs::read_to_string(dir.path().join("starts")).unwrap();
    assert_eq!(starts.lines().count(), 4, "one for each of its nodes: {starts}");
    let wired = &report.wires[0];
    let shares: BTreeMap<_, _> =
        wired.rows.iter().map(|row| (row.title.as_str(), row.fast_shares.unwrap())).collect();
    assert_eq!(shares["eBPF path [other]"], [0.0, 0.0]);
    assert!(shares["eBPF path [this]"][0] > 0.5, "{shares:?}");
    let times = |row: &str| wired.cell(row, "UDP 64 B").unwrap().times_other.unwrap();
    // Turned over it would be far below.
    let ebpf = times("eBPF path [this]");
    assert!(ebpf.median > 1.0, "the other build has no fast path: {ebpf:?}");
    assert!(times("kernel path [this]").median.is_finite());
    let [this, other] = &report.about.builds[..] else { panic!("{:?}", report.about.builds) };
    assert_ne!(this.digest, other.digest);
    let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(again.about, report.about);
    for title in ["eBPF path [this]", "eBPF path [other]"] {
        let cell = again.wires[0].cell(title, "UDP 64 B").unwrap();
        assert_eq!(cell.rounds.len(), 2, "{title}");
    }
    assert!(table::text(&again).contains("times better than the other build"));
}

#[test]
fn services_are_translated_by_either_kind_of_rules() {
    let plan = |rules| Plan {
        rows: rows(&[KERNEL]),
        columns: columns(&["service RR", "service CRR", "service UDP 64 B"]),
        wires: vec![Wire::Gso],
        rules,
        against: None,
        effort: Effort { rounds: 1, seconds: 0.1 },
    };
    // Nobody has the service's address: only translated packets are answered.
    for rules in [Rules::Iptables, Rules::Nftables] {
        let report = plan(rules).run("bench", |_| {});
        for column in ["service RR", "service CRR", "service UDP 64 B"] {
            let cell = report.wires[0].cell(KERNEL, column);
            let rate = cell.unwrap_or_else(|| panic!("{rules}: no {column}")).rounds[0];
            assert!(rate > 10.0, "{rules}, {column}: {rate}");
        }
    }
    assert!(plan(Rules::None).measurable().is_empty(), "there is no service");
}

#[test]
fn the_rule_counts_packets_of_its_port_only() {
    let pair = Pair::agents(&Options::kernel());
    let flood = || pair.traffic(FLOOD, "--seconds 0.3").received;
    judge(&pair.left.netns, JUDGED_PORT);
    let free = flood();
    judge(&pair.left.netns, pair.server.target().port());
    let held = flood();
    // 100 per second and a burst of 5.
    assert!(held < 100 && free > 1000, "{free} without, {held} with a limit");
}

#[test]
fn the_control_plane_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let plan = control::Plan {
        rounds: 1,
        leases: 50,
        most: 0,
        samples: 5,
        renewals: 50,
        pods: 3,
        idle: 0.5,
        only: vec!["start".to_owned(), "lease".to_owned(), "pods".to_owned()],
        json: dir.path().join("control.json"),
        markdown: None,
    };
    let rows = plan.run(|_| {});
    let median = |title: &str| rows.get(title).unwrap_or_else(|| panic!("{title}")).median();
    // No limits that a busy machine could miss.
    for (title, range) in [
        ("first start to READY", 5.0..20_000.0),
        ("restart to READY", 2.0..20_000.0),
        ("restart to READY with the unit's capabilities", 2.0..20_000.0),
        ("idle, one peer: RSS", 1.0..200.0),
        ("50 leases: exec to READY", 0.005..20.0),
        ("50 leases: CPU until READY", 0.001..20.0),
        ("new lease: median", 0.0..1_000.0),
        ("new lease under renewals: p99", 0.0..10_000.0),
        ("renewals that etcd took", 1.0..100.0),
        ("3 pods at once: the last hook after that", 0.0..30.0),
        ("3 pods at once: the slowest lease", 0.0..10_000.0),
        ("3 pods at once, --attach=clsact: the last hook after that", 0.0..30.0),
    ] {
        assert!(range.contains(&median(title)), "{title}: {}", median(title));
    }
    let again: Rows = serde_json::from_str(&serde_json::to_string(&rows).unwrap()).unwrap();
    assert_eq!(again.text(), rows.text());
}
