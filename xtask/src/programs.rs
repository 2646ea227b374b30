//! What the tests run: every program of the workspace, built at once.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::workspace::{as_root, cargo, output};

/// Packages of end-to-end cases, which real packets and other processes may
/// disturb; all others hold unit and property tests.
pub(crate) const CASES: &[&str] =
    &["flannel-tests", "flannel-difftest", "flannel-offloads", "flannel-bench"];

/// The program with the cases of the lab.
pub(crate) const E2E: &str = "e2e";

/// A program of tests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tests {
    /// Its package.
    pub(crate) package: String,
    /// Cargo's name of it: a library's, or a file's in `tests/`.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The package's directory, where its tests expect to run.
    dir: PathBuf,
}

impl Tests {
    /// A command that runs it, as root: namespaces, BPF and nftables need that.
    pub(crate) fn command(&self) -> Command {
        let mut command = as_root(&self.path);
        command.current_dir(&self.dir);
        command
    }

    /// Whether it holds end-to-end cases, and not unit tests of the lab.
    pub(crate) fn is_cases(&self) -> bool {
        CASES.contains(&self.package.as_str())
    }
}

impl fmt::Display for Tests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.name, self.package)
    }
}

/// All that was built.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    pub(crate) tests: Vec<Tests>,
    /// Programs that are no tests: the agent, and those of the lab.
    others: Vec<(String, PathBuf)>,
}

impl Programs {
    /// Builds the whole workspace by one command. Several would resolve features
    /// differently, and compile half of it again.
    ///
    /// # Errors
    /// cargo fails.
    pub(crate) fn build() -> Result<Self> {
        let mut command = cargo();
        command.args(["test", "--locked", "--workspace", "--no-run"]);
        command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
        Self::read(&output(&mut command)?)
    }

    /// Reads what cargo says that it built.
    fn read(messages: &str) -> Result<Self> {
        let mut found = Self::default();
        for line in messages.lines() {
            let message: Value = serde_json::from_str(line).context("cargo's JSON")?;
            found.note(&message);
        }
        let rank = |tests: &Tests| CASES.iter().position(|name| *name == tests.package);
        found.tests.sort_by_cached_key(|tests| (rank(tests), tests.to_string()));
        Ok(found)
    }

    fn note(&mut self, message: &Value) -> Option<()> {
        let path = PathBuf::from(message["executable"].as_str()?);
        let name = message["target"]["name"].as_str()?.to_owned();
        if message["profile"]["test"] != true {
            self.others.push((name, path));
            return Some(());
        }
        let dir = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
        let package = package(message["package_id"].as_str()?).to_owned();
        self.tests.push(Tests { package, name, path, dir });
        Some(())
    }

    /// Path of a program that is no test.
    ///
    /// # Errors
    /// There is none of this name.
    pub(crate) fn path(&self, name: &str) -> Result<&Path> {
        let found = self.others.iter().find(|(known, _)| known == name);
        Ok(&found.with_context(|| format!("cargo built no {name}"))?.1)
    }

    /// Path of the end-to-end cases.
    ///
    /// # Errors
    /// They were not built.
    pub(crate) fn e2e(&self) -> Result<&Path> {
        let found = self.tests.iter().find(|tests| tests.name == E2E);
        Ok(&found.with_context(|| format!("cargo built no {E2E}"))?.path)
    }
}

/// The name in a package's id: "path+file:///src/tests/bench#flannel-bench@0.1.0",
/// or "path+file:///src/xtask#0.1.0" where it is the directory's.
fn package(id: &str) -> &str {
    let (place, rest) = id.rsplit_once('#').unwrap_or(("", id));
    match rest.split_once('@') {
        Some((name, _)) => name,
        None => place.rsplit('/').next().unwrap_or(place),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Programs, package};

    #[test]
    fn what_cargo_built_is_found() {
        let built = [
            r#"{"reason":"compiler-artifact","package_id":"registry+https://x#syn@2.0.0","target":{"name":"syn"},"profile":{"test":false},"executable":null}"#,
            r#"{"reason":"compiler-artifact","package_id":"path+file:///src/tests#flannel-tests@0.1.0","manifest_path":"/src/tests/Cargo.toml","target":{"name":"e2e"},"profile":{"test":true},"executable":"/src/target/debug/deps/e2e-1"}"#,
            r#"{"reason":"compiler-artifact","package_id":"path+file:///src/xtask#0.1.0","manifest_path":"/src/xtask/Cargo.toml","target":{"name":"xtask"},"profile":{"test":true},"executable":"/src/target/debug/deps/xtask-1"}"#,
            r#"{"reason":"compiler-artifact","package_id":"path+file:///src/flannel-agent#0.1.0","manifest_path":"/src/flannel-agent/Cargo.toml","target":{"name":"flannel-agent"},"profile":{"test":false},"executable":"/src/target/debug/flannel-agent"}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ];
        let programs = Programs::read(&built.join("\n")).unwrap();
        let names: Vec<_> = programs.tests.iter().map(|tests| tests.package.as_str()).collect();
        assert_eq!(names, ["xtask", "flannel-tests"]);
        assert!(programs.tests[1].is_cases() && !programs.tests[0].is_cases());
        assert_eq!(programs.tests[1].dir, Path::new("/src/tests"));
        assert_eq!(programs.e2e().unwrap(), Path::new("/src/target/debug/deps/e2e-1"));
        let agent = programs.path("flannel-agent").unwrap();
        assert_eq!(agent, Path::new("/src/target/debug/flannel-agent"));
        assert!(programs.path("flannel-demo").is_err());
    }

    #[test]
    fn a_package_is_named_by_its_id() {
        assert_eq!(package("path+file:///a/tests/bench#flannel-bench@0.1.0"), "flannel-bench");
        assert_eq!(package("path+file:///a/xtask#0.1.0"), "xtask");
    }
}
