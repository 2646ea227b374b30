//! What the tests run: every program of the workspace, built at once.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use cargo_metadata::Message;

use crate::workspace::{cargo, output};

/// Packages of end-to-end cases, which real packets and other processes may
/// disturb; all others hold unit and property tests.
pub(crate) const CASES: &[&str] =
    &["flannel-tests", "flannel-difftest", "flannel-offloads", "flannel-bench"];

/// The program with the cases of the lab, in the first of [`CASES`].
pub(crate) const E2E: &str = "e2e";

/// Names and paths of all that was built. Cargo names a program of tests by its library,
/// or by its file in `tests/`.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    tests: Vec<(String, PathBuf)>,
    others: Vec<(String, PathBuf)>,
}

impl Programs {
    /// Builds the whole workspace by one command, as nextest does it. Several would
    /// resolve features differently, and compile half of it again.
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
        for message in Message::parse_stream(messages.as_bytes()) {
            let Message::CompilerArtifact(built) = message? else { continue };
            let Some(path) = built.executable else { continue };
            let kind = if built.profile.test { &mut found.tests } else { &mut found.others };
            kind.push((built.target.name, path.into()));
        }
        Ok(found)
    }

    /// Path of a program that is no test.
    ///
    /// # Errors
    /// There is none of this name.
    pub(crate) fn path(&self, name: &str) -> Result<&Path> {
        find(&self.others, name)
    }

    /// Path of the end-to-end cases.
    ///
    /// # Errors
    /// They were not built.
    pub(crate) fn e2e(&self) -> Result<&Path> {
        find(&self.tests, E2E)
    }
}

fn find<'a>(programs: &'a [(String, PathBuf)], name: &str) -> Result<&'a Path> {
    let found = programs.iter().find(|(known, _)| known == name);
    Ok(&found.with_context(|| format!("find program {name}: cargo built none of this name"))?.1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::Programs;

    fn built(name: &str, test: bool, executable: Option<&str>) -> String {
        let profile = json!({
            "opt_level": "0", "debuginfo": 1, "debug_assertions": true,
            "overflow_checks": true, "test": test,
        });
        let target = json!({
            "name": name, "kind": ["bin"], "crate_types": ["bin"], "src_path": "/src/main.rs",
            "edition": "2024", "doc": true, "doctest": false, "test": true,
        });
        json!({
            "reason": "compiler-artifact", "package_id": "path+file:///src#0.1.0",
            "manifest_path": "/src/Cargo.toml", "target": target, "profile": profile,
            "features": [], "filenames": [], "executable": executable, "fresh": true,
        })
        .to_string()
    }

    #[test]
    fn what_cargo_built_is_found() {
        let messages = [
            built("syn", false, None),
            built("flannel-agent", true, Some("/src/target/debug/deps/flannel_agent-1")),
            built("e2e", true, Some("/src/target/debug/deps/e2e-1")),
            built("flannel-agent", false, Some("/src/target/debug/flannel-agent")),
            json!({"reason": "build-finished", "success": true}).to_string(),
        ];
        let programs = Programs::read(&messages.join("\n")).unwrap();
        assert_eq!(programs.e2e().unwrap(), Path::new("/src/target/debug/deps/e2e-1"));
        let agent = programs.path("flannel-agent").unwrap();
        assert_eq!(agent, Path::new("/src/target/debug/flannel-agent"));
        assert!(programs.path("syn").is_err());
    }
}
