//! Running the firewall's command line tools.

use std::io;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::FirewallError;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a program with this standard input and gives what it printed.
/// `Ok(None)` means that there is no such program.
pub(super) async fn run(
    program: &str,
    arguments: &[&str],
    input: &str,
) -> Result<Option<Output>, FirewallError> {
    run_within(TIMEOUT, program, arguments, input).await
}

/// [`run`] with another limit of time.
pub(super) async fn run_within(
    limit: Duration,
    program: &str,
    arguments: &[&str],
    input: &str,
) -> Result<Option<Output>, FirewallError> {
    let failed = |reason: String| FirewallError { call: call(program, arguments), reason };
    let spawned = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let finish = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read to the end says why on stderr.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(limit, finish).await {
        Ok(Ok(output)) => Ok(Some(output)),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {} s", limit.as_secs()))),
    }
}

/// Whether there is such a program, in PATH if the name is no path.
pub(super) fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match program.contains('/') {
        true => Path::new(program).exists(),
        false => std::env::split_paths(&path).any(|folder| folder.join(program).exists()),
    }
}

/// The command line, for errors.
pub(super) fn call(program: &str, arguments: &[&str]) -> String {
    std::iter::once(program).chain(arguments.iter().copied()).collect::<Vec<_>>().join(" ")
}

/// What a program said about its failure: the lines of its standard error that
/// are no warnings, with a hint where the cause is known.
pub(super) fn complaint(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> =
        stderr.lines().map(str::trim_end).filter(|line| !line.starts_with("# Warning")).collect();
    let text = lines.join("; ");
    if text.contains("Operation not permitted") || text.contains("Permission denied") {
        return format!("{text} (needs CAP_NET_ADMIN, handed on to child processes)");
    }
    if text.is_empty() { output.status.to_string() } else { text }
}
