//! The subcommands. Each returns its exit code.

pub mod cleanup;
pub mod completions;
mod kept;
pub mod man;
pub mod migrate;
pub mod peers;
pub mod status;

use std::io::{self, Write as _};
use std::path::Path;

use serde_json::Value;

use crate::control;

/// Exit code of `status` and `peers` when no agent runs.
pub const NOT_RUNNING: u8 = 3;

/// Asks the agent of this state directory; `Ok(None)` if none runs.
fn ask(state_dir: &Path, request: &str) -> io::Result<Option<Value>> {
    match control::ask(state_dir, request) {
        Ok(answer) => serde_json::from_str(&answer).map(Some).map_err(io::Error::other),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Prints a line; a reader that has gone away is no error of ours.
fn print(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Prints a line to stderr.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A JSON value as a table shows it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn could_not_ask(state_dir: &Path, error: &io::Error) -> u8 {
    complain(&format!(
        "cannot ask the agent at {}: {error}{}",
        control::path(state_dir).display(),
        if error.kind() == io::ErrorKind::PermissionDenied { " (only root may)" } else { "" }
    ));
    1
}
