//! The programs' size and what they cost the verifier are those of the
//! committed table.

use std::fs;

use flannel_tests::complexity::{TABLE, Table, measure, release};

/// The verifier's counts change a little with a kernel's updates.
const MARGIN: f64 = 0.1;
/// Instructions that no verifier goes beyond (BPF_COMPLEXITY_LIMIT_INSNS).
const LIMIT: u32 = 1_000_000;

#[test]
fn programs_cost_what_the_table_says() {
    let committed = Table::parse(&fs::read_to_string(TABLE).expect(TABLE)).expect(TABLE);
    let measured = measure().expect("load the committed object");
    let release = release().expect("the running kernel's release");
    let found = committed.differences(&measured, &release, MARGIN);
    assert!(
        found.is_empty(),
        "flannel-ebpf/prebuilt/COMPLEXITY is not what the committed object costs:\n  {}\n\
         If that is meant, `cargo xtask complexity` writes the table anew; commit it with the \
         object.",
        found.join("\n  ")
    );
    for (name, cost) in &measured.0 {
        let known = committed.0.get(name).is_some_and(|cost| cost.verified.contains_key(&release));
        let Some(verified) = cost.verified.get(&release) else {
            // A kernel may refuse watchers, but not one that took them before.
            assert!(!known, "{name}: Linux {release} does not count, or refuses it");
            continue;
        };
        assert!(*verified < LIMIT / 4, "{name}: {verified}, too near to the limit {LIMIT}");
    }
}
