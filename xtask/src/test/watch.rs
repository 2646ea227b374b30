//! Runners, watched while they run.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use super::count::Count;

/// Runs a runner, shows its output as it comes and counts. Also whether it
/// succeeded.
pub(crate) fn watch(command: &mut Command, mut see: impl FnMut(&str)) -> Result<(Count, bool)> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("{command:?}: no pipes");
    };
    let mut count = Count::default();
    let errors = thread::scope(|scope| {
        let errors = scope.spawn(|| {
            let show = |line: &String| eprintln!("{line}");
            lines(stderr).inspect(show).filter(|line| is_told(line)).collect::<Vec<_>>()
        });
        for line in lines(stdout) {
            println!("{line}");
            count.line(&line);
            see(&line);
        }
        errors.join().unwrap_or_default()
    });
    for line in errors {
        count.line(&line);
        see(&line);
    }
    Ok((count, child.wait()?.success()))
}

/// Whether a line of standard error matters to the count: a skipped case.
fn is_told(line: &str) -> bool {
    line.starts_with("SKIP ")
}

/// Lines of a pipe; bytes that are no UTF-8 are replaced.
fn lines(pipe: impl std::io::Read) -> impl Iterator<Item = String> {
    BufReader::new(pipe)
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| String::from_utf8_lossy(&line).into_owned())
}
