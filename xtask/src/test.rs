//! `cargo xtask test`: all runners, one count at the end.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::workspace::{cargo, is_root, run as run_command, target_dir};
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

/// Results of one or more runners.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Count {
    /// Reads one line of a runner's output.
    fn line(&mut self, line: &str) {
        // libtest: "test result: ok. 3 passed; 0 failed; 1 ignored; ..."
        if let Some(result) = line.trim_start().strip_prefix("test result: ") {
            for part in result.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let number = words.next().and_then(|word| word.parse::<u64>().ok());
                match (number, words.next()) {
                    (Some(number), Some("passed")) => self.passed += number,
                    (Some(number), Some("failed")) => self.failed += number,
                    (Some(number), Some("ignored")) => self.skipped += number,
                    _ => {}
                }
            }
        } else if line.starts_with("SKIP ") {
            // The harness's way of not running a case: libtest sees it pass.
            self.skipped += 1;
            self.passed = self.passed.saturating_sub(1);
        }
    }

    fn add(&mut self, other: &Count) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Cases that failed, by name, and the test programs that they are in.
#[derive(Debug, Default)]
struct Failures {
    names: Vec<String>,
    targets: Vec<String>,
    /// Those that passed when they ran again.
    passed: Vec<String>,
}

impl Failures {
    /// Reads one line of libtest's or cargo's output.
    fn line(&mut self, line: &str) {
        let case =
            |line: &str| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned());
        // cargo: "    `-p flannel-tests --test firewall`"
        let target = |line: &str| {
            let words = line.trim().strip_prefix('`')?.strip_suffix('`')?;
            Some(words.split_once("-p flannel-tests ")?.1.to_owned())
        };
        self.names.extend(case(line));
        self.targets.extend(target(line));
    }

    /// The same, when they run again.
    fn again(&mut self, line: &str) {
        let name = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... ok"));
        self.passed.extend(name.map(str::to_owned));
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() || self.targets.is_empty()
    }

    /// Makes `command` (a `cargo test`) run them alone, one after another.
    fn select(&self, command: &mut Command) {
        command.args(self.targets.iter().flat_map(|target| target.split(' ')));
        command.args(["--", "--exact", "--test-threads=1"]).args(&self.names);
    }
}

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
    fn runner(&mut self, name: &str, command: &mut Command) -> Result<()> {
        println!("\n== {name}");
        let (count, ok) = watch(command, |_| ())?;
        self.add(name, &count, ok);
        Ok(())
    }

    /// As [`Self::runner`], in an emulated machine.
    fn guest(&mut self, name: &str, command: &mut Command) -> Result<()> {
        println!("\n== {name}");
        let mut done = None;
        let (count, ok) = watch(command, |line| {
            done = line.trim().strip_prefix(guest::DONE).map(str::to_owned).or(done.take());
        })?;
        // A machine that hangs or crashes says nothing at its end.
        let whole = done.is_some_and(|failed| failed.trim() == "0");
        self.add(name, &count, ok && whole);
        Ok(())
    }

    /// Runs end-to-end cases. They share the machine with others, and have real
    /// packets: what fails is tried again, by itself, and told apart from what
    /// passes at once.
    fn cases(&mut self, name: &str, cases: impl Fn() -> Command, filter: &[String]) -> Result<()> {
        println!("\n== {name}");
        let mut failures = Failures::default();
        let mut command = cases();
        command.arg("--").args(filter);
        command.args(guest::only_here_names().flat_map(|name| ["--skip", name]));
        let (mut count, ok) = watch(&mut command, |line| failures.line(line))?;
        if !failures.is_empty() {
            println!("\n== {name}: what failed, once more");
            let mut command = cases();
            failures.select(&mut command);
            let (again, _) = watch(&mut command, |line| failures.again(line))?;
            count.failed = count.failed.saturating_sub(again.passed);
            count.passed += again.passed;
            self.unsteady.append(&mut failures.passed);
        }
        self.add(name, &count, ok || !failures.is_empty());
        Ok(())
    }

    fn add(&mut self, name: &str, count: &Count, ok: bool) {
        if !ok && count.failed == 0 {
            self.broken.push(name.to_owned());
        }
        self.total.add(count);
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::tools()?;
    let mut outcome = Outcome::default();
    let filter = args.filter.as_slice();
    let only = args.kernel.as_deref();
    if !args.e2e && only.is_none() {
        let mut command = test_command();
        command.args(["--workspace", "--exclude", "flannel-tests", "--"]).args(filter);
        outcome.runner("unit and property tests", &mut command)?;
    }
    if !args.unit && only.is_none() {
        let agent = agent()?;
        let cases = || {
            let mut command = test_command();
            command.env("FLANNEL_AGENT", &agent).args(["--package", "flannel-tests"]);
            command
        };
        outcome.cases("end-to-end cases", cases, filter)?;
        let fresh = build_ebpf::fresh();
        if fresh.exists() {
            let cases = || {
                let mut command = cases();
                command.env("FLANNEL_EBPF_OBJECT", &fresh);
                command
            };
            outcome.cases("end-to-end cases with the freshly compiled programs", cases, filter)?;
        }
    }
    if !args.unit {
        let agent = agent()?;
        for release in only.as_ref().map_or(guest::RELEASES, std::slice::from_ref) {
            if let Some(mut command) = guest::cases(release, &agent, args.filter.as_deref())? {
                outcome.guest(&format!("cases under Linux {release}"), &mut command)?;
            }
        }
    }
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

fn test_command() -> Command {
    let mut command = cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    if !is_root() {
        // Namespaces, BPF and nftables need root; cargo itself must not be it.
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let name = format!("CARGO_TARGET_{}_RUNNER", target.to_uppercase().replace('-', "_"));
        command.env(name, "sudo -E");
    }
    command
}

/// The agent that the cases run: the one that `FLANNEL_AGENT` names, else a
/// fresh build.
fn agent() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FLANNEL_AGENT") {
        return Ok(path.into());
    }
    run_command(cargo().args(["build", "--release", "--locked", "--package", "flannel-agent"]))?;
    Ok(target_dir().join("release/flannel-agent"))
}

/// Runs a runner, shows its output as it comes and counts. Also whether it
/// succeeded.
fn watch(command: &mut Command, mut see: impl FnMut(&str)) -> Result<(Count, bool)> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("{command:?}: no pipes");
    };
    let errors = thread::spawn(move || {
        let show = |line: &String| eprintln!("{line}");
        lines(stderr).inspect(show).filter(|line| is_told(line)).collect::<Vec<_>>()
    });
    let mut count = Count::default();
    for line in lines(stdout) {
        println!("{line}");
        count.line(&line);
        see(&line);
    }
    for line in errors.join().unwrap_or_default() {
        count.line(&line);
        see(&line);
    }
    Ok((count, child.wait()?.success()))
}

/// Whether a line of standard error matters to the count: a skipped case, or
/// cargo's list of the test programs that failed.
fn is_told(line: &str) -> bool {
    line.starts_with("SKIP ") || line.trim().starts_with("`-p ")
}

/// Lines of a pipe; bytes that are no UTF-8 are replaced.
fn lines(pipe: impl std::io::Read) -> impl Iterator<Item = String> {
    BufReader::new(pipe)
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{Command, Count, Failures};

    fn count(lines: &[&str]) -> Count {
        let mut count = Count::default();
        lines.iter().for_each(|line| count.line(line));
        count
    }

    #[test]
    fn results_of_all_runners_add_up() {
        let text = [
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 1.50s",
        ];
        assert_eq!(count(&text), Count { passed: 7, failed: 2, skipped: 1 });
    }

    #[test]
    fn what_failed_is_found_again() {
        let mut failures = Failures::default();
        for line in [
            "test a_good_one ... ok",
            "test module::a_bad_one ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
            "    `-p flannel-tests --test firewall`",
            "    `-p flannel-tests --lib`",
        ] {
            failures.line(line);
        }
        assert!(!failures.is_empty());
        let mut command = Command::new("cargo");
        failures.select(&mut command);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        assert_eq!(
            words.join(" "),
            "--test firewall --lib -- --exact --test-threads=1 module::a_bad_one"
        );
        failures.again("test module::a_bad_one ... ok");
        assert_eq!(failures.passed, ["module::a_bad_one"]);
    }

    #[test]
    fn a_skip_is_not_a_pass() {
        let text = [
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "SKIP tcx: the kernel has none",
        ];
        assert_eq!(count(&text), Count { passed: 1, failed: 0, skipped: 1 });
    }
}
