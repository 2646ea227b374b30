//! The demo that is left running.

use std::path::Path;
use std::process::Command;

use flannel_tests::process::{output, run};

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

    let status = run(&mut demo(&["--shell", "nodeA", "flannel-agent", "status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["peers"].as_array().map_or(2, Vec::len), 2, "{status}");
    let ping = run(&mut demo(&["--shell", "podA", "sh", "-c", "ping -c 2 -W 2 $podB"]));
    assert!(ping.contains(" 0% packet loss"), "{ping}");
    let keys = run(&mut demo(&["--shell", "nodeB", "etcdctl", "get", "--prefix", "/"]));
    assert!(keys.contains("/coreos.com/network/config"), "{keys}");
    assert!(!output(&mut demo(&["--shell", "nodeX", "true"])).status.success());

    let text = std::fs::read_to_string(&state).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    let netns = kept["rooms"]["nodeA"]["netns"].as_str().unwrap();
    assert!(Path::new(netns).exists());
    run(&mut demo(&["--remove"]));
    assert!(!Path::new(netns).exists() && !state.exists());
    assert!(!output(&mut demo(&["--remove"])).status.success());
}
