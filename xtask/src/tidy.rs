//! `cargo xtask tidy`: rules of the source tree that no compiler checks. Runs
//! as a unit test as well.

mod dependencies;
mod links;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use fs_err as fs;

use crate::circles::circles;
use crate::workspace::root;

/// Longest file in lines.
const MAX_LINES: usize = 500;

/// Where `unsafe` may stand: the programs, the calls that aya has no safe form
/// of, the layouts' `Pod`, memory that is given back, and the kernel's timer.
const UNSAFE: &[&str] = &[
    "flannel-ebpf/src/bin/",
    "flannel-ebpf/src/abi/mod.rs",
    "flannel-agent/src/bpf/sys",
    "flannel-agent/src/memory/start.rs",
    "flannel-agent/src/timer.rs",
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
    "strum",
    "thiserror",
];

/// The room of the backends, and its file with the one match that tells them apart.
const BACKENDS: &str = "flannel-agent/core/src/backend/";

/// Files and folders of tests, and a page's text that is written by a test.
const TESTS: &[&str] = &["tests.rs", "tests/", "cli/reference.rs"];

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
        told_apart(&name, &text, &mut complaints);
    }
    impure(&read(&root.join(CORE))?, &mut complaints);
    for name in LAYERED {
        complaints.extend(circles(&root.join(name), name)?);
    }
    Ok(complaints)
}

fn read(file: &Path) -> Result<String> {
    Ok(fs::read_to_string(file)?)
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

/// Complains about code that asks which backend it is: that is a fact of the backend. One
/// match in the backends' room gives each its facts.
fn told_apart(name: &str, text: &str, complaints: &mut Vec<String>) {
    let agent = name.starts_with("flannel-agent/");
    if !agent || TESTS.iter().any(|place| name.contains(place)) {
        return;
    }
    let room = name.starts_with(BACKENDS);
    let mut matched = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
        if line.starts_with("#[cfg(test)]") {
            break;
        }
        let code = line.split("//").next().unwrap_or(line);
        let found = if room { arm(code) } else { variant(code) };
        let Some(found) = found else { continue };
        if !room || matched.contains(&found) {
            let place = "make it a fact of `Facts`";
            complaints.push(format!("{name}:{number}: asks whether it is {found}; {place}"));
        }
        matched.push(found);
    }
}

/// The backend that a line of code names as a variant.
fn variant(code: &str) -> Option<&str> {
    let names = ["Backend::", "BackendKind::"].iter().filter_map(|of| {
        let start = code.match_indices(of).find(|(start, _)| {
            !code[..*start].ends_with(|c: char| c.is_alphanumeric() || c == '_')
        })?;
        let rest = &code[start.0 + of.len()..];
        let name = rest.split(|c: char| !c.is_alphanumeric()).next()?;
        let mut letters = name.chars();
        let is = letters.next()?.is_uppercase() && letters.next()?.is_lowercase();
        is.then_some(name)
    });
    names.into_iter().next()
}

/// The variant that an arm of a match begins with.
fn arm(code: &str) -> Option<&str> {
    let pattern = code.split_once("=>")?.0.trim();
    let name = pattern.strip_prefix("Self::").or_else(|| pattern.strip_prefix("Backend::"))?;
    name.split(|c: char| !c.is_alphanumeric()).next()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
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
    fn a_second_match_over_the_backends_is_named() {
        let found = |name: &str, text: &str| {
            let mut found = Vec::new();
            told_apart(name, text, &mut found);
            found
        };
        let agent = "flannel-agent/src/daemon/mod.rs";
        for code in [
            "if kind == BackendKind::HostGw {",
            "let Backend::Vxlan(config) = backend else { return };",
            "matches!(backend, crate::Backend::Udp(_))",
        ] {
            assert_eq!(found(agent, code).len(), 1, "{code}");
            assert!(found(agent, &format!("#[cfg(test)]\nmod tests {{ {code}")).is_empty());
            assert!(found("flannel-agent/src/daemon/tests.rs", code).is_empty(), "{code}");
        }
        for code in ["PeerPath::Backend(kind)", "Backend::unasked()", "// Backend::Vxlan"] {
            assert_eq!(found(agent, code), Vec::<String>::new(), "{code}");
        }
        let room = format!("{BACKENDS}mod.rs");
        let once = "Self::Vxlan(settings) => settings,\nSelf::Alloc => &Alloc,\n";
        assert!(found(&room, once).is_empty());
        assert_eq!(found(&room, &once.repeat(2)).len(), 2);
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
