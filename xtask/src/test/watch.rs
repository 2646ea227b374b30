//! A runner, watched while it runs.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// Runs a runner and gives its output line by line, as it comes; whether it succeeded.
/// Bytes that are no UTF-8 are replaced.
pub(crate) fn watch(command: &mut Command, mut see: impl FnMut(&str)) -> Result<bool> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {command:?}"))?;
    let stdout =
        child.stdout.take().with_context(|| format!("read from {command:?}: it has no pipe"))?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        see(&line);
    }
    Ok(child.wait()?.success())
}
