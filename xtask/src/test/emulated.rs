//! Cases under other kernels, a machine for each. A machine computes on one thread, so as
//! many run side by side as there are processors: with fewer they would lose packets.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::libtest::Seen;
use super::outcome::Outcome;
use super::watch::watch;
use crate::programs::Programs;
use crate::{beside, guest};

/// A machine that ended early has crashed; one that hung is not waited for again.
const CRASHED: Duration = Duration::from_secs(900);

/// So many of the kernel's last lines are shown of a machine that did not come to its end.
const LAST_LINES: usize = 60;

/// Runs the cases of these kernels, as [`one`] does. The lines of each begin with its name.
///
/// # Errors
/// A machine cannot be made.
pub(crate) fn run(
    (releases, asked_for): (&[&str], bool),
    programs: &Programs,
    filter: Option<&str>,
) -> Result<Outcome> {
    // apt works for one at a time.
    releases.iter().try_for_each(|release| guest::prepare(release))?;
    let mut all = Outcome::default();
    let run = |release: &&str| one((release, asked_for), programs, filter);
    for outcome in beside::each(beside::processors(), releases, run) {
        all.add(outcome?);
    }
    Ok(all)
}

/// Runs the cases of a kernel whose name contains `filter`, if there is one: all of them
/// if it was asked for. What fails is tried again, in another machine.
///
/// # Errors
/// The machine cannot be made.
fn one(
    (release, asked_for): (&str, bool),
    programs: &Programs,
    filter: Option<&str>,
) -> Result<Outcome> {
    let cases = guest::chosen(release, asked_for, filter.as_slice());
    if cases.is_empty() {
        return Ok(Outcome::default());
    }
    let name = format!("cases under Linux {release}");
    println!("\n== {name}");
    let began = Instant::now();
    let boot = |cases: &[String]| boot(release, &mut guest::cases(release, programs, cases)?);
    let (mut seen, mut whole) = boot(&cases)?;
    let crashed = !whole && began.elapsed() < CRASHED;
    if crashed {
        println!("\n== {name}: the machine crashed, once more");
        (seen, whole) = boot(&cases)?;
    }
    let mut outcome = Outcome::default();
    if !seen.failed.is_empty() {
        println!("\n== {name}: what failed, once more");
        let failed = std::mem::take(&mut seen.failed);
        let (again, _) = boot(&failed)?;
        // A machine that hangs names nobody: then all have failed again.
        let passed = |name: &String| again.whole() && !again.failed.contains(name);
        (outcome.unsteady, seen.failed) = failed.into_iter().partition(passed);
    }
    let (passed, _) = seen.counted.unwrap_or_default();
    outcome.passed = (passed + outcome.unsteady.len()).saturating_sub(seen.skipped.len());
    let told = |names: Vec<String>| names.into_iter().map(|case| format!("{name}: {case}"));
    outcome.skipped = told(seen.skipped).collect();
    outcome.failed = told(seen.failed).collect();
    outcome.unsteady = told(outcome.unsteady).collect();
    if crashed && whole {
        outcome.unsteady.push(format!("{name}: the machine crashed at first"));
    }
    if !whole {
        outcome.failed.push(format!("{name}: did not run to their end"));
    }
    Ok(outcome)
}

/// What a machine said, and whether it came to its end: one that hangs or crashes says
/// nothing there, so its kernel's last lines are shown.
fn boot(release: &str, command: &mut Command) -> Result<(Seen, bool)> {
    let (mut seen, mut done) = (Seen::default(), false);
    let ok = watch(command, |line| {
        println!("{release}: {line}");
        seen.line(line);
        done |= line.trim().starts_with(guest::DONE);
    })?;
    let whole = ok && done && seen.whole();
    if !whole {
        let lines = guest::last_lines(release, LAST_LINES);
        lines.iter().for_each(|line| println!("{release}: kernel: {line}"));
    }
    Ok((seen, whole))
}
