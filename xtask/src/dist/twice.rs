//! `cargo xtask dist --check`: two clones of the present commit, in directories of other
//! names and depths, have to make the same packages.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use crate::workspace::{cargo, output, root, run as run_command, target_dir};

/// Packs twice and compares. `words` are further arguments for both.
///
/// # Errors
/// They differ, or one cannot be made.
pub(super) fn check(words: &[String]) -> Result<()> {
    let dir = target_dir().join("dist-check");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    // The first build takes minutes: a commit meanwhile is none of the second's.
    let commit = output(Command::new("git").current_dir(root()).args(["rev-parse", "HEAD"]))?;
    let mut made = Vec::new();
    for name in ["first", "another/and-deeper"] {
        let clone = dir.join(name);
        run_command(Command::new("git").args(["clone", "--quiet"]).arg(root()).arg(&clone))?;
        let mut checkout = Command::new("git");
        checkout.current_dir(&clone).args(["checkout", "--quiet", "--detach", &commit]);
        run_command(&mut checkout)?;
        let out = clone.join("out");
        let mut command = cargo();
        command.current_dir(&clone).env_remove("CARGO_TARGET_DIR");
        // The program that packs has the same libraries in both.
        command.args(["run", "--quiet", "--locked", "--package", "xtask", "--target-dir"]);
        command.arg(dir.join("tools")).args(["--", "dist", "--out"]);
        run_command(command.arg(&out).args(words))?;
        made.push(digests(&out)?);
        // Room for the next.
        fs::remove_dir_all(&clone)?;
    }
    let differ = differences(&made[0], &made[1]);
    if !differ.is_empty() {
        bail!("two builds differ: {}", differ.join(", "));
    }
    for (name, digest) in &made[0] {
        println!("{digest}  {name}");
    }
    println!("two builds are equal");
    Ok(())
}

/// SHA-256 of each file in a directory.
fn digests(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() {
            let bytes = fs::read(&path)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let digest = Sha256::digest(&bytes);
            found.insert(name, digest.iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }
    Ok(found)
}

/// Names of the files that are not the same in both.
fn differences(one: &BTreeMap<String, String>, other: &BTreeMap<String, String>) -> Vec<String> {
    let names = one.keys().chain(other.keys().filter(|name| !one.contains_key(*name)));
    names.filter(|name| one.get(*name) != other.get(*name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::{BTreeMap, differences, digests};

    #[test]
    fn a_changed_and_a_missing_file_differ() {
        let list = |files: &[(&str, &str)]| -> BTreeMap<String, String> {
            files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
        };
        let one = list(&[("a", "1"), ("b", "2"), ("c", "3")]);
        assert!(differences(&one, &one).is_empty());
        assert_eq!(
            differences(&one, &list(&[("a", "1"), ("b", "9"), ("d", "4")])),
            ["b", "c", "d"]
        );
    }

    #[test]
    fn a_digest_is_of_the_bytes() {
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let found = digests(here).unwrap();
        assert_eq!(found["Cargo.toml"].len(), 64);
        assert_eq!(found, digests(here).unwrap());
    }
}
