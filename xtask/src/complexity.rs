//! `cargo xtask complexity`: asks the running kernel's verifier and those of the
//! other kernels what the committed programs cost, and writes the table that the
//! tests compare with.

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::programs::Programs;
use crate::workspace::{as_root, output};
use crate::{guest, setup};

const PROGRAM: &str = "flannel-complexity";

pub(crate) fn run() -> Result<()> {
    setup::tools()?;
    let programs = Programs::build()?;
    let table = |release: &&str| table(release, &programs);
    let tables: Result<Vec<_>> = guest::RELEASES.iter().map(table).collect();
    let tables = tables?.join("\n");
    let mut child = as_root(programs.path(PROGRAM)?)
        .arg("--write")
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {PROGRAM}"))?;
    child
        .stdin
        .take()
        .with_context(|| format!("write to {PROGRAM}: it has no pipe"))?
        .write_all(tables.as_bytes())?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{PROGRAM}: {status}");
    }
    Ok(())
}

/// What the programs cost a kernel that has to be booted.
fn table(release: &str, programs: &Programs) -> Result<String> {
    let said = output(&mut guest::program(release, programs, PROGRAM)?)?;
    if !said.lines().any(|line| line.strip_prefix(guest::DONE).is_some_and(|n| n.trim() == "0")) {
        bail!("under Linux {release}:\n{said}");
    }
    let lines: Vec<_> = said.lines().filter(|line| !line.starts_with("guest: ")).collect();
    Ok(lines.join("\n"))
}
