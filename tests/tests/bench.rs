//! The benchmark measures what it says, on the wire that it says.

use std::collections::BTreeMap;

use flannel_tests::bench::columns::columns;
use flannel_tests::bench::report::Report;
use flannel_tests::bench::rows::{EBPF, HOST, KERNEL, ROWS, rows};
use flannel_tests::bench::wire::Wire;
use flannel_tests::bench::{Effort, Plan, markdown, plot, table};
use flannel_tests::rules::Rules;

#[test]
fn every_row_has_every_figure() {
    let plan = Plan {
        rows: rows(&[]),
        columns: columns(&[]),
        wires: vec![Wire::Gso],
        rules: Rules::Iptables,
        effort: Effort { rounds: 1, seconds: 0.1 },
    };
    let report = plan.run("bench", |_| {});
    let wired = &report.wires[0];
    assert_eq!(wired.cells.len(), ROWS.len() * report.columns.len());
    for cell in &wired.cells {
        assert!(cell.spread.is_some(), "{cell:?}");
    }
    // What a row is called is what its nodes did.
    let shares: BTreeMap<_, _> =
        wired.rows.iter().map(|row| (row.title.as_str(), row.fast_shares)).collect();
    for (title, left, right) in [
        ("host-gw, kernel", false, false),
        ("host-gw, eBPF", true, true),
        (KERNEL, false, false),
        (EBPF, true, true),
        ("eBPF to kernel", true, false),
        ("kernel to eBPF", false, true),
        ("fast path off", false, false),
    ] {
        let found = shares[title].unwrap();
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
