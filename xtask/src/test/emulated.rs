//! Cases under other kernels, one machine at a time: with half of the processors it
//! would lose packets.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::libtest::Seen;
use super::outcome::Outcome;
use super::watch::watch;
use crate::guest::{self, Processors};
use crate::programs::Programs;

/// A machine that ended early has crashed; one that hung is not waited for again.
const CRASHED: Duration = Duration::from_secs(900);

/// So many of the kernel's last lines are shown of a machine that did not come to its end.
const LAST_LINES: usize = 60;

/// Runs the cases of a kernel whose name contains `filter`, if there is one: all of them
/// if it was asked for. What fails is tried again, in another machine.
///
/// # Errors
/// The machine cannot be made.
pub(crate) fn run(
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
    let boot = |processors: Processors, cases: &[String]| {
        boot(release, &mut guest::cases((release, processors), programs, cases)?)
    };
    let (mut seen, mut whole) = boot(Processors::of(release), &cases)?;
    let crashed = !whole && began.elapsed() < CRASHED;
    if crashed {
        println!("\n== {name}: the machine crashed, once more");
        (seen, whole) = boot(Processors::TakeTurns, &cases)?;
    }
    let mut outcome = Outcome::default();
    if !seen.failed.is_empty() {
        println!("\n== {name}: what failed, once more");
        let failed = std::mem::take(&mut seen.failed);
        let (again, _) = boot(Processors::of(release), &failed)?;
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
        seen.line(line);
        done |= line.trim().starts_with(guest::DONE);
    })?;
    let whole = ok && done && seen.whole();
    if !whole {
        let lines = guest::last_lines(release, LAST_LINES);
        lines.iter().for_each(|line| println!("kernel: {line}"));
    }
    Ok((seen, whole))
}
