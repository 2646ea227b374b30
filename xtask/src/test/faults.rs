//! The long form of the faults, followed step by step: a case of it takes many minutes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow};
use fs_err as fs;

use super::outcome::Outcome;
use super::{e2e, nextest};
use crate::workspace::target_dir;

/// Where the cases write their steps.
const PROGRESS: &str = "faults-progress";

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(300);

/// Runs it, and counts its steps. One that did not hold was tried again by its case, so
/// that nextest repeats none.
///
/// # Errors
/// The runner cannot be started, or what it says cannot be read.
pub(super) fn run(seed: Option<u64>) -> Result<Outcome> {
    let seed = seed.unwrap_or_else(by_chance).to_string();
    println!("\nthe faults' seed, to run them once more: --seed {seed}");
    let path = target_dir().join(PROGRESS);
    fs::write(&path, "")?;
    let environment = [
        ("FLANNEL_FAULTS", Path::new("long")),
        ("FLANNEL_FAULTS_SEED", Path::new(&seed)),
        ("FLANNEL_FAULTS_PROGRESS", path.as_path()),
        ("NEXTEST_RETRIES", Path::new("0")),
    ];
    let filterset = format!("{} & test(/^faults::/)", e2e());
    let over = AtomicBool::new(false);
    let (cases, steps) = thread::scope(|scope| {
        let following = scope.spawn(|| follow(path.clone(), &over));
        let cases = nextest::run("faults", &filterset, None, &environment);
        over.store(true, Ordering::Relaxed);
        let steps = following.join().map_err(|_| anyhow!("the steps were not followed"));
        (cases, steps)
    });
    Ok(count(cases?, &steps??))
}

fn by_chance() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos())
}

/// Prints what is written there, line by line, until all is over; gives the whole.
fn follow(path: PathBuf, over: &AtomicBool) -> Result<String> {
    let mut shown = 0;
    loop {
        let last = over.load(Ordering::Relaxed);
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        print!("{}", text.get(shown..end).unwrap_or_default());
        shown = end;
        if last {
            return Ok(text);
        }
        thread::sleep(LOOK);
    }
}

/// Steps count instead of their cases. A case that failed without a step that did, such
/// as one that took too long, counts itself.
fn count(cases: Outcome, steps: &str) -> Outcome {
    let mut all = Outcome { skipped: cases.skipped, ..Outcome::default() };
    for line in steps.lines() {
        match line.split_once(' ') {
            Some(("passed", _)) => all.passed += 1,
            Some(("unsteady", step)) => {
                all.passed += 1;
                all.unsteady.push(step.to_owned());
            }
            Some(("failed", step)) => all.failed.push(step.to_owned()),
            _ => {}
        }
    }
    let explained = |case: &String| {
        let name = case.rsplit("::").next().unwrap_or(case);
        all.failed.iter().any(|step| step.split(' ').next() == Some(name))
    };
    let rest: Vec<String> = cases.failed.into_iter().filter(|case| !explained(case)).collect();
    all.failed.extend(rest);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_and_cases_that_failed_without_one() {
        let failed = ["flannel-tests::e2e faults::to_files", "flannel-tests::e2e faults::to_rules"];
        let failed = failed.map(str::to_owned).to_vec();
        let cases = Outcome { passed: 9, failed, ..Outcome::default() };
        let steps = "passed to_files 1/3 a: as before (1.0 s)\n\
                     unsteady to_files 2/3 b: as before; at first: no (9.0 s)\n\
                     failed to_files 3/3 c: no (9.0 s)\n";
        let counted = count(cases, steps);
        assert_eq!(counted.passed, 2);
        assert_eq!(counted.failed.len(), 2, "{counted:?}");
        assert!(counted.failed[0].starts_with("to_files 3/3 c"), "{counted:?}");
        assert_eq!(counted.failed[1], "flannel-tests::e2e faults::to_rules");
        assert_eq!(counted.unsteady.len(), 1);
    }
}
