//! The list of functions that the linker lays side by side.

use std::process::Command;

use flannel_tests::process::run;

const BENCH: &str = env!("CARGO_BIN_EXE_flannel-bench");

#[test]
fn what_the_agent_calls_is_listed_by_occasion() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let out = dir.path().join("functions");
    run(Command::new(BENCH).args(["functions", "--idle", "3", "--out"]).arg(&out));
    let text = std::fs::read_to_string(&out).expect("the list");
    let parts: Vec<&str> =
        text.split("# at rest\n").nth(1).expect("a part").split("\n# ").collect();
    let [rest, events, start] = parts[..] else { panic!("{} parts", parts.len()) };
    let of = |part: &str, name: &str| part.lines().any(|line| line.contains(name));
    assert!(of(rest, "check_hooks") && !of(rest, "put_peers"), "at rest");
    assert!(of(events, "put_peers"), "events");
    assert!(of(start, "augment_args"), "a start");
    // A hash would change with each build.
    let hashed = |line: &&str| {
        let end = line.len().checked_sub("17h0123456789abcdefE".len());
        end.is_some_and(|at| line[at..].starts_with("17h") && line.ends_with('E'))
    };
    assert_eq!(text.lines().find(hashed), None);
}
