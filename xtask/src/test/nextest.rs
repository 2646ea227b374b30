//! cargo-nextest: how it is called. How many tests run side by side, and how often
//! they are tried, is in `.config/nextest.toml`.

use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use quick_junit::Report;

use super::outcome::Outcome;
use super::report;
use crate::beside;
use crate::workspace::{cargo, set_runner, target_dir};

/// Its exit status when tests failed. Any other one but 0 means that it did not get to
/// run them all.
const FAILED: i32 = 100;

/// Where the default profile's report is, in cargo's target directory.
const REPORT: &str = "nextest/default/junit.xml";

/// Runs the tests of a filterset, of those that whose name contains `filter`, if
/// there is one.
///
/// # Errors
/// nextest cannot be started, or its report cannot be read.
pub(crate) fn run(
    name: &str,
    filterset: &str,
    filter: Option<&str>,
    environment: &[(&str, &Path)],
) -> Result<Outcome> {
    println!("\n== {name}");
    let path = target_dir().join(REPORT);
    // What an earlier run said is no result of this one.
    let _ = fs_err::remove_file(&path);
    let mut command = cargo();
    command.args(["nextest", "run", "--locked", "--workspace", "--no-tests=pass"]);
    // A test that nobody runs looks green.
    command.args(["--run-ignored=all", "--filterset", filterset]);
    command.args(filter).envs(environment.iter().copied());
    if std::env::var_os("NEXTEST_TEST_THREADS").is_none() {
        command.args(["--test-threads", &threads()]);
    }
    set_runner(&mut command);
    let status = command.status().context("start cargo nextest: run `cargo xtask setup`")?;
    let mut outcome = Outcome::default();
    if path.exists() {
        let file = BufReader::new(fs_err::File::open(&path)?);
        let read = Report::deserialize(file).with_context(|| format!("read {}", path.display()))?;
        outcome = report::outcome(&read);
    }
    let whole = match status.code() {
        Some(0) => outcome.failed.is_empty(),
        Some(FAILED) => !outcome.failed.is_empty(),
        _ => false,
    };
    if !whole {
        outcome.failed.push(format!("{name}: did not run to its end: {status}"));
    }
    Ok(outcome)
}

/// Cases wait most of their time, for windows to end and for events: more of
/// them run side by side than there are processors. Two for each left half of the
/// processors' time unused, and none was steadier.
fn threads() -> String {
    (3 * beside::processors()).to_string()
}
