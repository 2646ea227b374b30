//! TC programs on interfaces, asked of the kernel.

use std::collections::BTreeMap;
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

/// Names and ids of the programs on one hook, tcx's and filters'.
///
/// # Panics
/// `tc` prints a filter without them.
pub fn at(netns: &Netns, interface: &str, attach: TcAttachType) -> Vec<(String, u32)> {
    let mut found: Vec<(String, u32)> = netns.inside(|| {
        let Ok((_, programs)) = SchedClassifier::query_tcx(interface, attach) else {
            return Vec::new();
        };
        let named = |info: &aya::programs::ProgramInfo| {
            (info.name_as_str().unwrap_or_default().to_owned(), info.id())
        };
        programs.iter().map(named).collect()
    });
    let direction = if attach == TcAttachType::Egress { "egress" } else { "ingress" };
    let text = output(netns.command("tc").args(["filter", "show", "dev", interface, direction]));
    for line in String::from_utf8_lossy(&text.stdout).lines() {
        let mut words = line.split_whitespace().skip_while(|word| *word != "handle").skip(2);
        let Some(name) = words.next() else { continue };
        let id = words.skip_while(|word| *word != "id").nth(1).and_then(|id| id.parse().ok());
        found.push((name.to_owned(), id.unwrap_or_else(|| panic!("no id in {line}"))));
    }
    found
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

/// Ids of the pinned links below a directory, by the names of their pins.
///
/// # Panics
/// bpftool refuses one.
pub fn link_ids(dir: &Path) -> BTreeMap<String, u64> {
    let id = |path: PathBuf| {
        let text =
            output(Command::new("bpftool").args(["-j", "link", "show", "pinned"]).arg(&path));
        let link: serde_json::Value = serde_json::from_slice(&text.stdout).expect("bpftool's JSON");
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name, link["id"].as_u64().expect("a link"))
    };
    pins(dir).into_iter().map(id).collect()
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
