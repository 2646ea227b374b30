//! `cargo xtask advisories`: whether a crate of Cargo.lock has a known fault, by
//! `cargo deny`. The database is no part of the repository, and not every machine reaches
//! it: then nothing is looked at, and that is a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use fs_err as fs;

use crate::setup;
use crate::workspace::{cargo, output, run as run_command};

/// Where `cargo deny` has the database of advisories from.
const DATABASE: &str = "https://github.com/RustSec/advisory-db";

/// How long its server may take to answer, in seconds.
const PATIENCE: &str = "20";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A clone of the database, for machines that do not reach it
    #[arg(long, value_name = "DIR")]
    database: Option<PathBuf>,
}

/// Looks, and fails if a crate has an advisory.
///
/// # Errors
/// One has, or nothing could be looked at.
pub(crate) fn run(args: &Args) -> Result<()> {
    let clone = match &args.database {
        Some(dir) => Some(fs::canonicalize(dir)?),
        None => None,
    };
    let mut asked = Command::new("timeout");
    asked.args([PATIENCE, "git", "ls-remote", "--quiet", DATABASE, "HEAD"]);
    if let Err(error) = output(at(&mut asked, clone.as_deref())) {
        bail!(
            "nothing was looked at, as the database of advisories cannot be reached. Clone \
             {DATABASE} where it can, and give the clone as --database. {error}"
        );
    }
    setup::deny()?;
    let mut look = cargo();
    look.args(["deny", "--locked", "check", "advisories"]);
    run_command(at(&mut look, clone.as_deref()))
}

/// Lets git take the clone, if there is one, for the database.
fn at<'a>(command: &'a mut Command, clone: Option<&Path>) -> &'a mut Command {
    if let Some(clone) = clone {
        command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_VALUE_0", DATABASE);
        command.env("GIT_CONFIG_KEY_0", format!("url.file://{}.insteadOf", clone.display()));
    }
    command.env("GIT_TERMINAL_PROMPT", "0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::target_dir;

    #[test]
    fn a_database_that_is_not_there_is_a_failure_that_says_so() {
        // A directory that is no clone.
        let database = Some(target_dir());
        let error = run(&Args { database }).unwrap_err().to_string();
        assert!(error.starts_with("nothing was looked at"), "{error}");
        assert!(error.contains("--database") && error.contains("ls-remote"), "{error}");
    }
}
