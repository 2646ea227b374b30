//! The subcommands. Each returns its exit code.

pub mod check;
pub mod cleanup;
pub mod completions;
pub mod connectivity;
pub mod events;
pub mod flows;
pub mod keep_rules;
mod kept;
mod known;
pub mod man;
pub mod migrate;
pub mod monitor;
pub mod peers;
#[cfg(test)]
mod schemas;
mod settings;
pub mod status;
pub mod sysdump;
mod terminal;
pub mod trace;

use std::io::{self, Write as _};
use std::path::Path;

use caps::{CapSet, Capability};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::Command;
use crate::control::{self, Request};

/// Exit code of `status` and `peers` when no agent runs.
pub const NOT_RUNNING: u8 = 3;

/// Asks the agent of this state directory; `Ok(None)` if none runs.
fn ask(state_dir: &Path, request: Request) -> io::Result<Option<String>> {
    match control::ask(state_dir, request) {
        Ok(answer) => Ok(Some(answer)),
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

/// Prints what an agent answered, as it is or as a table. Returns the exit code.
fn show<T: DeserializeOwned>(answer: &str, as_json: bool, table: impl FnOnce(&T) -> String) -> u8 {
    if as_json {
        print(answer);
        return 0;
    }
    match serde_json::from_str(answer) {
        Ok(told) => {
            print(&table(&told));
            0
        }
        Err(error) => {
            complain(&format!(
                "cannot read the agent's answer: {error}; it may be of another version \
                 (--json prints it as it is)"
            ));
            1
        }
    }
}

/// Prints a value as JSON.
fn print_json<T: Serialize>(value: &T) {
    match serde_json::to_string(value) {
        Ok(text) => print(&text),
        Err(error) => complain(&error.to_string()),
    }
}

/// Prints a line; a reader that has gone away is no error of ours. Where it cannot be
/// written for another reason, such as a full disk, the process ends with 1.
fn print(text: &str) {
    if let Err(error) = writeln!(io::stdout(), "{text}")
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        complain(&format!("cannot print: {error}"));
        std::process::exit(1);
    }
}

/// Why this user cannot run a command that looks at the whole node, if so. As any other
/// than root, rules, programs and sockets are closed to it, and what is left would mislead.
pub fn refusal(command: &Command) -> Option<&'static str> {
    let looks = matches!(
        command,
        Command::Flows(_)
            | Command::Monitor(_)
            | Command::Sysdump(_)
            | Command::Check(_)
            | Command::Connectivity(_)
            | Command::Trace(_)
    );
    let admin = || caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN);
    let may = nix::unistd::geteuid().is_root() || admin().unwrap_or(false);
    (looks && !may).then_some("only root may look at a node's rules, programs and sockets")
}

/// Prints a line to stderr.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn could_not_ask(state_dir: &Path, error: &io::Error) -> u8 {
    complain(&format!(
        "cannot ask the agent at {}: {error}{}",
        control::path(state_dir).display(),
        if error.kind() == io::ErrorKind::PermissionDenied { " (only root may)" } else { "" }
    ));
    1
}
