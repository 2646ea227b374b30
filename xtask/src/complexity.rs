//! `cargo xtask complexity`: asks the running kernel's verifier and that of the
//! other kernel what the committed programs cost, and writes the table that the
//! tests compare with.

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::workspace::{as_root, cargo, output, run as run_command, target_dir};
use crate::{guest, setup};

const PROGRAM: &str = "flannel-complexity";

pub(crate) fn run() -> Result<()> {
    setup::tools()?;
    run_command(cargo().args([
        "build",
        "--locked",
        "--package",
        "flannel-tests",
        "--bin",
        PROGRAM,
    ]))?;
    let said = output(&mut guest::program(guest::DEFAULT, PROGRAM)?)?;
    if !said.lines().any(|line| line.strip_prefix(guest::DONE).is_some_and(|n| n.trim() == "0")) {
        bail!("under Linux {}:\n{said}", guest::DEFAULT);
    }
    let table = said.lines().filter(|line| !line.starts_with("guest: "));
    let table = table.collect::<Vec<_>>().join("\n");
    let mut child = as_root(target_dir().join("debug").join(PROGRAM))
        .arg("--write")
        .stdin(Stdio::piped())
        .spawn()
        .context(PROGRAM)?;
    child.stdin.take().context("no pipe")?.write_all(table.as_bytes())?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{PROGRAM}: {status}");
    }
    Ok(())
}
