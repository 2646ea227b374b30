//! `cargo xtask test`: all runners, one count at the end.

mod count;
mod watch;

use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::Result;

use self::count::{Count, Failures};
use self::watch::watch;
use crate::programs::{E2E, Programs, Tests};
use crate::{build_ebpf, guest, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Leave out the end-to-end cases
    #[arg(long, conflicts_with = "e2e")]
    unit: bool,
    /// Run only the end-to-end cases
    #[arg(long)]
    e2e: bool,
    /// Run only the cases under another kernel, emulated: a release that Debian
    /// has, such as 6.1 or 6.12
    #[arg(long, value_name = "RELEASE", conflicts_with_all = ["unit", "e2e"])]
    kernel: Option<String>,
}

/// Modules of [`E2E`] that run once more with freshly compiled programs, where
/// another compiler made them: what every packet needs. The differential test
/// says more about packets than all other cases.
const FRESH: &[&str] = &["connectivity::", "fallback::", "integrity::", "kernels::", "restart::"];

/// What all runners found.
#[derive(Debug, Default)]
struct Outcome {
    total: Count,
    /// Runners that did not run to their end.
    broken: Vec<String>,
    /// Cases that passed at their second try.
    unsteady: Vec<String>,
}

impl Outcome {
    /// Runs cases in an emulated machine, one machine at a time: with half of the
    /// processors it would lose packets. What fails is tried again as
    /// [`Self::tests`] does it.
    fn guest(&mut self, release: &str, programs: &Programs, filter: &[&str]) -> Result<()> {
        let cases = guest::chosen(release, filter);
        if cases.is_empty() {
            return Ok(());
        }
        let name = format!("cases under Linux {release}");
        println!("\n== {name}");
        let (mut seen, mut done) = (Seen::default(), false);
        let mut command = guest::cases(release, programs, &cases)?;
        let ok = seen.watch(&mut command, |line| done |= line.trim().starts_with(guest::DONE))?;
        // A machine that hangs or crashes says nothing at its end.
        seen.whole = ok && done && seen.count.ended;
        if !seen.failures.is_empty() {
            let mut command = guest::cases(release, programs, &seen.failures.names)?;
            self.once_more(&name, &mut command, &mut seen)?;
        }
        self.add(&name, &seen.count, seen.whole);
        Ok(())
    }

    /// Runs a program of tests. Most share the machine with others, and have real
    /// packets: what fails is tried again, by itself, and told apart from what
    /// passes at once.
    fn tests(
        &mut self,
        tests: &Tests,
        environment: &[(&str, &Path)],
        filter: &[&str],
    ) -> Result<()> {
        println!("\n== {tests}");
        let mut command = tests.command();
        command.envs(environment.iter().copied()).args(filter);
        if tests.name == E2E {
            command.args(threads());
            command.args(guest::only_here_cases().flat_map(|name| ["--skip".to_owned(), name]));
        }
        let mut seen = Seen::default();
        let ok = seen.watch(&mut command, |_| ())?;
        // A program that crashes has no result, whatever it said before.
        seen.whole = seen.count.ended && (ok || !seen.failures.is_empty());
        if !seen.failures.is_empty() {
            let mut command = tests.command();
            command.envs(environment.iter().copied());
            command.args(["--exact", "--test-threads=1"]).args(&seen.failures.names);
            self.once_more(&tests.to_string(), &mut command, &mut seen)?;
        }
        self.add(&tests.to_string(), &seen.count, seen.whole);
        Ok(())
    }

    /// Runs what failed again.
    fn once_more(&mut self, name: &str, command: &mut Command, seen: &mut Seen) -> Result<()> {
        println!("\n== {name}: what failed, once more");
        let failures = &mut seen.failures;
        let (again, _) = watch(command, |line| failures.again(line))?;
        seen.count.failed = seen.count.failed.saturating_sub(again.passed);
        seen.count.passed += again.passed;
        self.unsteady.append(&mut failures.passed);
        Ok(())
    }

    fn add(&mut self, name: &str, count: &Count, ok: bool) {
        if !ok && count.failed == 0 {
            self.broken.push(name.to_owned());
        }
        self.total.add(count);
    }
}

/// What a runner said.
#[derive(Default)]
struct Seen {
    count: Count,
    failures: Failures,
    /// It came to its end.
    whole: bool,
}

impl Seen {
    /// Watches the runner. Whether it succeeded.
    fn watch(&mut self, command: &mut Command, mut see: impl FnMut(&str)) -> Result<bool> {
        let (count, ok) = watch(command, |line| {
            self.failures.line(line);
            see(line);
        })?;
        self.count = count;
        Ok(ok)
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::tools()?;
    let programs = Programs::build()?;
    let mut outcome = Outcome::default();
    let filter = args.filter.as_deref();
    let only = args.kernel.as_deref();
    let (cases, unit): (Vec<_>, Vec<_>) = programs.tests.iter().partition(|tests| tests.is_cases());
    if !args.e2e && only.is_none() {
        for tests in unit {
            outcome.tests(tests, &[], filter.as_slice())?;
        }
    }
    if !args.unit && only.is_none() {
        for tests in &cases {
            outcome.tests(tests, &[], filter.as_slice())?;
        }
        fresh(&mut outcome, &cases, filter)?;
    }
    if !args.unit {
        let releases = only.as_ref().map_or(guest::RELEASES, std::slice::from_ref);
        for release in releases {
            outcome.guest(release, &programs, filter.as_slice())?;
        }
    }
    report(outcome)
}

/// Cases with the programs of another compiler, if there are any.
fn fresh(outcome: &mut Outcome, cases: &[&Tests], filter: Option<&str>) -> Result<()> {
    let object = build_ebpf::fresh();
    if !object.exists() {
        return Ok(());
    }
    println!("\nwith the freshly compiled programs:");
    let environment = [("FLANNEL_EBPF_OBJECT", object.as_path())];
    for tests in cases {
        match (tests.name.as_str(), filter) {
            (E2E, None) => outcome.tests(tests, &environment, FRESH)?,
            (E2E | "differential", _) => outcome.tests(tests, &environment, filter.as_slice())?,
            _ => {}
        }
    }
    Ok(())
}

/// Says what was found; the last line is the count.
fn report(outcome: Outcome) -> Result<()> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    println!();
    let Outcome { mut total, broken, unsteady } = outcome;
    for name in &broken {
        println!("{name}: did not run to its end");
    }
    for name in &unsteady {
        println!("unsteady, passed at the second try: {name}");
    }
    if ci && total.skipped > 0 {
        println!("tests were skipped; in CI everything has to run");
    }
    total.failed += broken.len() as u64;
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    if total.failed > 0 || (ci && total.skipped > 0) {
        std::process::exit(1);
    }
    Ok(())
}

/// Cases wait most of their time, for windows to end and for events: more of
/// them run side by side than there are processors.
fn threads() -> Option<String> {
    let given = std::env::var_os("RUST_TEST_THREADS").is_some();
    let processors = thread::available_parallelism().map_or(1, usize::from);
    (!given).then(|| format!("--test-threads={}", 2 * processors))
}
