//! The process that loads the programs. Needs root.

use std::process::Command;

use flannel_ebpf::abi::ABI_VERSION;

/// In a mount namespace of its own, where reading the kernel's types never ends. `$4` runs
/// the loader, `$load`, and gives it `$needs`.
const SCRIPT: &str = r#"
    set -e
    mkfifo "$1/types"
    mount --bind "$1/types" /sys/kernel/btf/vmlinux
    mkdir "$1/bpf"
    mount -t bpf bpf "$1/bpf"
    mkdir -p "$1/bpf/flannel/v$2"
    load="timeout 60 $3 load-programs --pin-dir=$1/bpf/flannel --flow-table-size=1024"
    needs='{"tunnel":true,"direct":false,"pods":false,"card":false}'
    eval "$4"
    ls "$1/bpf/flannel/v$2"
"#;

/// What is pinned after these lines of a shell.
fn pinned_by(lines: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", SCRIPT, "bash"])
        .arg(dir.path())
        .arg(ABI_VERSION.to_string())
        .arg(env!("CARGO_BIN_EXE_flannel-agent"))
        .arg(lines)
        .output()
        .unwrap();
    let pins = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{:?}: {pins}{:?}", output.status, output.stderr);
    pins.into_owned()
}

#[test]
fn programs_are_loaded_without_the_kernels_types() {
    for how in ["", "--ahead", "--anew"] {
        let pins = pinned_by(&format!("{{ echo $needs; echo; }} | $load {how}"));
        assert!(pins.contains("-to_overlay") && pins.contains("-from_pod"), "{how}: {pins}");
        assert!(pins.contains("fl_flows4"), "{how}: {pins}");
    }
}

#[test]
fn maps_that_are_made_ahead_give_way_to_those_of_a_run_before() {
    let pins = pinned_by(
        r#"
        { echo $needs; echo; } | $load > /dev/null
        rm "$1/bpf/flannel/v$2"/prog-*
        ids() { for map in "$1"/fl_*; do bpftool -j map show pinned "$map" | grep -o '"id":[0-9]*'; done; }
        before=$(ids "$1/bpf/flannel/v$2")
        { sleep 0.5; echo $needs; echo; } | $load --ahead > /dev/null
        [ "$before" = "$(ids "$1/bpf/flannel/v$2")" ]
    "#,
    );
    assert!(pins.contains("-from_pod"), "{pins}");
}

#[test]
fn nothing_is_pinned_before_it_is_wanted() {
    for unwanted in
        ["! $load --ahead < /dev/null > /dev/null", "! sleep 6 | $load --ahead > /dev/null"]
    {
        let pins = pinned_by(unwanted);
        assert_eq!(pins, "", "{unwanted}");
    }
}

#[test]
fn an_agent_that_has_ended_gets_no_programs() {
    for ended in ["! echo $needs | $load", "{ echo $needs; sleep 1; echo; } | $load | head -c 1"] {
        let pins = pinned_by(ended);
        assert!(pins.contains("-to_overlay"), "{ended}: {pins}");
        assert!(!pins.contains("_pod"), "{ended}: {pins}");
    }
}
