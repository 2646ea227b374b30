//! The process that loads the programs. Needs root.

use std::process::Command;

use flannel_ebpf::abi::ABI_VERSION;

/// In a mount namespace of its own, where reading the kernel's types never ends.
const SCRIPT: &str = r#"
    set -e
    mkfifo "$1/types"
    mount --bind "$1/types" /sys/kernel/btf/vmlinux
    mkdir "$1/bpf"
    mount -t bpf bpf "$1/bpf"
    mkdir -p "$1/bpf/flannel/v$2"
    timeout 60 "$3" load-programs "--pin-dir=$1/bpf/flannel" --flow-table-size=1024
    ls "$1/bpf/flannel/v$2"
"#;

#[test]
fn programs_are_loaded_without_the_kernels_types() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", SCRIPT, "sh"])
        .arg(dir.path())
        .arg(ABI_VERSION.to_string())
        .arg(env!("CARGO_BIN_EXE_flannel-agent"))
        .output()
        .unwrap();
    let pins = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{:?}: {pins}{:?}", output.status, output.stderr);
    assert!(pins.contains("-to_overlay") && pins.contains("-from_pod"), "{pins}");
}
