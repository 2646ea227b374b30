//! TC programs on interfaces, asked of the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aya::programs::{SchedClassifier, TcAttachType};

use crate::netns::Netns;
use crate::process::output;

/// Names of the programs that tcx runs on an interface.
pub fn tcx(netns: &Netns, interface: &str, attach: TcAttachType) -> Vec<String> {
    netns.inside(|| {
        let Ok((_, programs)) = SchedClassifier::query_tcx(interface, attach) else {
            return Vec::new();
        };
        let names = programs.iter().filter_map(|info| info.name_as_str().map(str::to_owned));
        names.collect()
    })
}

/// Everything that classifies packets on an interface, in text: tcx programs
/// of both directions and filters.
pub fn on(netns: &Netns, interface: &str) -> Vec<String> {
    let mut found = tcx(netns, interface, TcAttachType::Ingress);
    found.extend(tcx(netns, interface, TcAttachType::Egress));
    for direction in ["ingress", "egress"] {
        let mut command = netns.command("tc");
        command.args(["filter", "show", "dev", interface, direction]);
        let text = output(&mut command).stdout;
        let text = String::from_utf8_lossy(&text).into_owned();
        found.extend(text.lines().filter(|line| line.contains("handle")).map(str::to_owned));
    }
    found
}

/// Files below a pin directory that are pinned links.
pub fn pinned_links(pin_dir: &Path) -> Vec<PathBuf> {
    pins(pin_dir)
        .into_iter()
        .filter(|path| {
            let mut command = Command::new("bpftool");
            output(command.args(["link", "show", "pinned"]).arg(path)).status.success()
        })
        .collect()
}

/// All files below a pin directory.
pub fn pins(pin_dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pin_dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(pins(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Elements of a map that is pinned by this name below a directory.
pub fn dump(pin_dir: &Path, map: &str) -> Vec<serde_json::Value> {
    let path = pins(pin_dir).into_iter().find(|path| path.ends_with(map)).expect("a pinned map");
    let mut command = Command::new("bpftool");
    let dump = output(command.args(["-j", "map", "dump", "pinned"]).arg(path));
    serde_json::from_slice(&dump.stdout).expect("bpftool's JSON")
}
