//! The agent's first edition, whose programs and maps are of ABI 1, built from this
//! repository's history: what end-to-end cases upgrade from. Once, below the target
//! directory.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use fs_err as fs;

use crate::workspace::{cargo, output, root, run, target_dir};

/// The last commit with ABI 1.
const AGENT: &str = "f5b79f798acff9fe2a4b647ac9c1c4bfb549cd3c";
/// The first with a Debian package.
const PACKAGE: &str = "f9e62a2ce14b4ed9053987d6153d6e617db06cb1";

/// Builds it, and puts the first package's files and scripts beside it, unless they are
/// there. Without the history (a shallow clone, an archive) there is none, and the cases
/// that want it say so.
///
/// # Errors
/// It cannot be built.
pub(crate) fn prepare() -> Result<()> {
    let dir = target_dir().join("first-edition");
    let (stamp, wanted) = (dir.join("made-of"), format!("{AGENT} {PACKAGE}\n"));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    if ![AGENT, PACKAGE].into_iter().all(is_known) {
        eprintln!("setup: no first edition: it needs the whole history (git fetch --unshallow)");
        return Ok(());
    }
    eprintln!("setup: the first edition, {AGENT}, in {}", dir.display());
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    let source = dir.join("source");
    unpack(AGENT, ".", &source)?;
    unpack(PACKAGE, "packaging", &dir)?;
    let built = dir.join("built");
    let mut command = cargo();
    command.current_dir(&source).args(["build", "--locked", "--package", "flannel-agent"]);
    // Libraries that are the same today are not compiled again.
    command.env("CARGO_BUILD_BUILD_DIR", target_dir()).env("CARGO_PROFILE_DEV_DEBUG", "0");
    run(command.arg("--target-dir").arg(&built))?;
    let agent = built.join("debug/flannel-agent");
    run(Command::new("strip").arg("-o").arg(dir.join("flannel-agent")).arg(agent))?;
    for done in [&source, &built] {
        fs::remove_dir_all(done)?;
    }
    Ok(fs::write(&stamp, wanted)?)
}

/// Whether the repository has this commit.
fn is_known(commit: &str) -> bool {
    let mut command = Command::new("git");
    let command = command.current_dir(root()).args(["cat-file", "-e", commit]);
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Puts what is below `path` in a commit into the directory `to`.
fn unpack(commit: &str, path: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let archive = to.with_extension("tar");
    let mut command = Command::new("git");
    command.current_dir(root()).args(["archive", "--output"]).arg(&archive);
    output(command.args([commit, path]))?;
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(to))?;
    Ok(fs::remove_file(&archive)?)
}
