//! `cargo xtask tidy`: rules of the source tree that no compiler checks. Runs
//! as a unit test as well.

mod dependencies;
mod links;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::circles::circles;
use crate::workspace::root;

/// Longest file in lines.
const MAX_LINES: usize = 600;

/// Where `unsafe` may stand: the programs, the calls that aya has no safe form
/// of, the layouts' `Pod`, and memory that is given back.
const UNSAFE: &[&str] = &[
    "flannel-ebpf/src/bin/",
    "flannel-ebpf/src/abi/mod.rs",
    "flannel-agent/src/bpf/",
    "flannel-agent/src/memory/start.rs",
    "tests/src/sys",
];

/// Crates whose modules make no circles.
const LAYERED: &[&str] = &[
    "flannel-agent/core/src",
    "flannel-agent/src",
    "flannel-ebpf/src",
    "flannel-ebpf/src/bin/flannel-ebpf",
    "flannel-ebpf/src/bin/flannel-monitor",
    "tests/bench/src",
    "tests/difftest/src",
    "tests/offloads/src",
    "tests/src",
    "xtask/src",
];

/// The manifest of what is decided without I/O.
const CORE: &str = "flannel-agent/core/Cargo.toml";

/// All that it depends on. None of these does I/O.
const PURE: &[&str] = &[
    "clap",
    "flannel-ebpf",
    "humantime",
    "ipnetwork",
    "proptest",
    "regex",
    "schemars",
    "serde",
    "serde_json",
    "thiserror",
];

pub(crate) fn run() -> Result<()> {
    let complaints = complaints(&root())?;
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{}", complaints.join("\n"));
}

fn complaints(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for dir in ["flannel-ebpf", "flannel-agent", "xtask", "tests"] {
        collect(&root.join(dir), &mut files)?;
    }
    files.sort();
    let mut complaints = links::complaints(root)?;
    complaints.extend(dependencies::complaints(root)?);
    for file in files {
        let text = read(&file)?;
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        check(&name, &text, &mut complaints);
    }
    impure(&read(&root.join(CORE))?, &mut complaints);
    for name in LAYERED {
        complaints.extend(circles(&root.join(name), name)?);
    }
    Ok(complaints)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| file.display().to_string())
}

/// Complains about what the core must not depend on.
fn impure(manifest: &str, complaints: &mut Vec<String>) {
    let mut dependencies = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            dependencies = line.contains("dependencies");
            continue;
        }
        let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
        if dependencies && !name.is_empty() && !PURE.contains(&name) {
            complaints.push(format!("{CORE}: {name}; what does I/O belongs to the agent"));
        }
    }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check(name: &str, text: &str, complaints: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > MAX_LINES {
        complaints.push(format!("{name}: {lines} lines; split it (at most {MAX_LINES})"));
    }
    // Written apart so that this file does not complain about itself.
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let keyword = concat!("un", "safe");
    let openers = [" {", " impl", " fn", " extern"].map(|rest| format!("{keyword}{rest}"));
    let free = UNSAFE.iter().any(|place| name.starts_with(place));
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
        let code = line.split("//").next().unwrap_or(line);
        if notes.iter().any(|note| line.contains(note)) {
            complaints.push(format!("{name}:{number}: a note to do later; do it or leave it out"));
        }
        if !free && openers.iter().any(|opener| code.contains(opener.as_str())) {
            complaints.push(format!("{name}:{number}: {keyword} outside its modules"));
        }
        if line.ends_with([' ', '\t']) {
            complaints.push(format!("{name}:{number}: blanks at the end of the line"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let complaints = complaints(&root()).unwrap();
        assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    }

    #[test]
    fn untidy_files_are_named() {
        let mut found = Vec::new();
        let keyword = concat!("un", "safe");
        let note = concat!("TO", "DO");
        let text = format!("// {note} later\nfn f() {{ {keyword} {{ g() }} }}\nlet a = 1; \n");
        check("flannel-agent/src/lease/key.rs", &text, &mut found);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[1].starts_with("flannel-agent/src/lease/key.rs:2:"), "{found:?}");

        found.clear();
        check("tests/src/long.rs", &"\n".repeat(MAX_LINES + 1), &mut found);
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn the_core_depends_on_nothing_that_does_io() {
        let mut found = Vec::new();
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nregex.workspace = true\n\
                        tokio = \"1\"\n[dev-dependencies]\nnix.workspace = true\n";
        impure(manifest, &mut found);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("tokio") && found[1].contains("nix"), "{found:?}");
    }

    #[test]
    fn the_word_alone_is_no_code() {
        let mut found = Vec::new();
        check("flannel-agent/src/lib.rs", concat!("#![deny(un", "safe_code)]\n"), &mut found);
        assert!(found.is_empty(), "{found:?}");
    }
}
