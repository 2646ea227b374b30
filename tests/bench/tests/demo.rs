//! The demo that is left running.

use std::process::Command;

use flannel_bench::kept::Kept;
use flannel_core::status::Status;
use flannel_tests::process::{output, run};
use flannel_tests::told::told;

#[test]
fn a_kept_demo_is_entered_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("demo.json");
    let demo = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-demo"));
        command.arg("--state").arg(&state).args(words);
        command
    };
    assert!(!output(&mut demo(&["--shell", "nodeA", "true"])).status.success());
    let said = run(&mut demo(&["--keep"]));
    assert!(said.contains("nodeA, nodeB, nodeC, podA, podB, podC"), "{said}");
    let twice = output(&mut demo(&["--keep"]));
    assert!(!twice.status.success());

    let (_, status) = told::<Status>(&mut demo(&["--shell", "nodeA", "flannel-agent", "status"]));
    assert_eq!(status.peers, 2, "{status:?}");
    let ping = run(&mut demo(&["--shell", "podA", "sh", "-c", "ping -c 2 -W 2 $podB"]));
    assert!(ping.contains(" 0% packet loss"), "{ping}");
    let keys = run(&mut demo(&["--shell", "nodeB", "etcdctl", "get", "--prefix", "/"]));
    assert!(keys.contains("/coreos.com/network/config"), "{keys}");
    assert!(!output(&mut demo(&["--shell", "nodeX", "true"])).status.success());

    let kept = Kept::read(&state).unwrap().unwrap();
    let netns = &kept.room("nodeA").unwrap().netns;
    assert!(netns.exists());
    run(&mut demo(&["--remove"]));
    assert!(!netns.exists() && !state.exists());
    assert!(!output(&mut demo(&["--remove"])).status.success());
}
