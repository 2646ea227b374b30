//! The licences of what is linked into the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use fs_err as fs;

use super::libraries::Library;

/// Names of files that hold a licence begin so.
const NAMES: [&str; 5] = ["license", "licence", "copying", "unlicense", "notice"];

/// Every crate with its licence, and then each text once.
pub(super) fn third_party(libraries: &[Library]) -> Result<String> {
    let mut list = String::new();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    // Our own have files of their own.
    for library in libraries.iter().filter(|library| !library.own) {
        let name = format!("{} {}", library.name, library.version);
        let _ = writeln!(list, "{name}: {}", library.licence);
        for licence in files(&library.manifest)? {
            texts.entry(licence).or_default().insert(name.clone());
        }
    }
    let mut all = format!("Libraries in flannel-agent\n\n{list}");
    for (licence, users) in texts {
        let users: Vec<String> = users.into_iter().collect();
        let _ = write!(all, "\n{}\n{}\n\n{}\n", "-".repeat(78), users.join(", "), licence.trim());
    }
    Ok(all)
}

/// Texts of the licences beside a manifest, always in the same order.
fn files(manifest: &Path) -> Result<BTreeSet<String>> {
    let Some(dir) = manifest.parent() else { return Ok(BTreeSet::new()) };
    let mut texts = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_file() && NAMES.iter().any(|begin| name.starts_with(begin)) {
            texts.insert(String::from_utf8_lossy(&fs::read(&path)?).into_owned());
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::libraries;
    use crate::workspace::root;

    #[test]
    fn libraries_are_listed_and_tools_are_not() {
        let libraries = libraries::linked("x86_64-unknown-linux-gnu").unwrap();
        let all = third_party(&libraries).unwrap();
        for library in ["aya 0.14.0: ", "tokio 1.", "prometheus-client ", "ring "] {
            assert!(all.lines().any(|line| line.starts_with(library)), "{library}");
        }
        for other in ["proptest ", "tonic-prost-build ", "flannel-ebpf "] {
            assert!(!all.lines().any(|line| line.starts_with(other)), "{other}");
        }
    }

    /// What the manifests, the object and the files say is one thing.
    #[test]
    fn the_statement_of_licences_is_one() {
        let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
        assert!(read("Cargo.toml").contains("\nlicense = \"Apache-2.0\"\n"));
        assert!(read("LICENSE").contains("Apache License"));
        let programs = read("flannel-ebpf/Cargo.toml");
        assert!(programs.contains("\nlicense = \"MIT OR GPL-2.0-only\"\n"), "{programs}");
        assert!(read("flannel-ebpf/LICENSE-MIT").starts_with("MIT License"));
        assert!(read("flannel-ebpf/LICENSE-GPL-2.0").contains("Version 2, June 1991"));
        let object = fs::read(root().join("flannel-ebpf/prebuilt/flannel-ebpf.bpf.o")).unwrap();
        let said = b"Dual MIT/GPL\0";
        assert!(object.windows(said.len()).any(|bytes| bytes == said), "the object's licence");
        for other in ["flannel-agent", "xtask", "tests"] {
            let manifest = read(&format!("{other}/Cargo.toml"));
            assert!(manifest.contains("\nlicense.workspace = true\n"), "{other}");
        }
    }
}
