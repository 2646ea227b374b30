//! `cargo xtask test`: all runners, one count at the end.

mod emulated;
mod faults;
mod libtest;
mod nextest;
mod outcome;
mod report;
mod watch;

use std::path::Path;

use anyhow::Result;

use self::outcome::Outcome;
use crate::programs::{CASES, E2E, Programs};
use crate::target::Target;
use crate::workspace::{cargo, run as run_command};
use crate::{build_ebpf, debian, first_edition, guest, setup};

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
    /// has, such as 6.1 or 6.12; may be given more than once
    #[arg(long, value_name = "RELEASE", conflicts_with_all = ["unit", "e2e"])]
    kernel: Vec<String>,
    /// Run only the unit tests of the crates without I/O, built for another machine and
    /// run by qemu
    #[arg(long, value_name = "TRIPLE", conflicts_with_all = ["unit", "e2e", "kernel", "faults"])]
    target: Option<Target>,
    /// Run only the faults, in their long form
    #[arg(long, conflicts_with_all = ["filter", "unit", "e2e", "kernel"])]
    faults: bool,
    /// Random faults of this seed, which an earlier run printed
    #[arg(long, requires = "faults")]
    seed: Option<u64>,
}

/// Modules of [`E2E`] that run once more with freshly compiled programs, where
/// another compiler made them: what every packet needs. The differential test
/// says more about packets than all other cases.
const FRESH: &[&str] = &["connectivity", "fallback", "integrity", "kernels", "restart"];

/// The case that needs programs that log.
const LOGGED: &str = "program_log::programs_that_log_say_why_the_kernel_has_a_packet";

/// Runs the tests and ends with 1 if one fails.
///
/// # Errors
/// A runner cannot be started.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(target) = args.target {
        return foreign(target, args.filter.as_deref());
    }
    setup::tools()?;
    setup::nextest(false)?;
    let programs = Programs::build()?;
    let filter = args.filter.as_deref();
    let mut all = Outcome::default();
    if args.faults {
        all.add(faults::run(args.seed)?);
    } else if args.kernel.is_empty() {
        if !args.unit {
            debian::prepare()?;
            first_edition::prepare()?;
        }
        all.add(nextest::run("tests", &here(args), filter, &[])?);
        if !args.unit {
            all.add(fresh(filter)?);
        }
    }
    if !args.unit && !args.faults {
        let asked_for: Vec<_> = args.kernel.iter().map(String::as_str).collect();
        let releases = if asked_for.is_empty() { guest::RELEASES } else { &asked_for };
        all.add(emulated::run((releases, !asked_for.is_empty()), &programs, filter)?);
    }
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    println!();
    all.lines(ci).iter().for_each(|line| println!("{line}"));
    if !all.good(ci) {
        std::process::exit(1);
    }
    Ok(())
}

/// Crates without I/O: what they decide has to be the same on every machine.
const PURE: [&str; 2] = ["flannel-core", "flannel-ebpf"];

/// Their unit tests as programs of another machine.
fn foreign(target: Target, filter: Option<&str>) -> Result<()> {
    target.prepare()?;
    let mut command = cargo();
    command.args(["test", "--locked", "--lib", "--target", target.triple()]).args(filter);
    command.args(PURE.iter().flat_map(|package| ["--package", package]));
    run_command(command.envs(target.settings()))
}

/// The end-to-end cases with the programs of another compiler, if there are any.
fn fresh(filter: Option<&str>) -> Result<Outcome> {
    let object = build_ebpf::fresh();
    if !object.exists() {
        return Ok(Outcome::default());
    }
    let modules = FRESH.iter().map(|module| format!("test(/^{module}::/)"));
    let modules = if filter.is_some() { "all()".to_owned() } else { any(modules) };
    let differential = "binary_id(flannel-difftest::differential)";
    let filterset = format!("({} & ({modules}) - test(={LOGGED})) + {differential}", e2e());
    let environment = [("FLANNEL_EBPF_OBJECT", object.as_path())];
    nextest::run("with the freshly compiled programs", &filterset, filter, &environment)
}

/// Runs the case of programs that log, with these; whether it passed.
///
/// # Errors
/// The runner cannot be started.
pub(crate) fn logged(object: &Path) -> Result<bool> {
    setup::tools()?;
    setup::nextest(false)?;
    let filterset = format!("{} & test(={LOGGED})", e2e());
    let environment = [("FLANNEL_EBPF_OBJECT", object)];
    let outcome = nextest::run("with programs that log", &filterset, None, &environment)?;
    outcome.lines(true).iter().for_each(|line| println!("{line}"));
    Ok(outcome.good(true) && outcome.passed == 1)
}

/// What runs on this machine, as a filterset.
fn here(args: &Args) -> String {
    let cases = any(CASES.iter().map(|package| format!("package({package})")));
    if args.unit {
        return format!("not ({cases})");
    }
    let elsewhere = guest::only_here_cases().chain([LOGGED.to_owned()]);
    let elsewhere = any(elsewhere.map(|name| format!("test(={name})")));
    let wanted = if args.e2e { cases } else { "all()".to_owned() };
    format!("({wanted}) - ({} & ({elsewhere}))", e2e())
}

/// The program with the cases of the lab, as a filterset.
fn e2e() -> String {
    format!("binary_id({}::{E2E})", CASES[0])
}

/// What is in any of these sets.
fn any(sets: impl Iterator<Item = String>) -> String {
    sets.collect::<Vec<_>>().join(" + ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Args, FRESH, LOGGED, here};
    use crate::programs::CASES;
    use crate::workspace::root;

    /// nextest's settings are by package too.
    #[test]
    fn the_settings_name_every_package_of_cases() {
        let text = fs::read_to_string(root().join(".config/nextest.toml")).unwrap();
        for package in CASES {
            assert!(text.contains(&format!("package({package})")), "{package}");
        }
    }

    #[test]
    fn modules_with_fresh_programs_exist() {
        for module in FRESH {
            let path = root().join("tests/tests/e2e").join(module).with_extension("rs");
            assert!(path.exists(), "{}", path.display());
        }
    }

    #[test]
    fn the_case_of_programs_that_log_exists_and_runs_with_them_only() {
        let (module, name) = LOGGED.split_once("::").unwrap();
        let path = root().join("tests/tests/e2e").join(module).with_extension("rs");
        assert!(fs::read_to_string(path).unwrap().contains(&format!("\nfn {name}(")));
        let args = Args {
            filter: None,
            unit: false,
            e2e: true,
            kernel: Vec::new(),
            target: None,
            faults: false,
            seed: None,
        };
        assert!(here(&args).ends_with(&format!(" + test(={LOGGED})))")), "{}", here(&args));
    }

    #[test]
    fn a_run_leaves_out_what_it_is_told_to() {
        let args = |unit, e2e| Args {
            filter: None,
            unit,
            e2e,
            kernel: Vec::new(),
            target: None,
            faults: false,
            seed: None,
        };
        assert!(here(&args(true, false)).starts_with("not (package(flannel-tests) + "));
        assert!(here(&args(false, true)).starts_with("(package(flannel-tests) + "));
        let all = here(&args(false, false));
        assert!(
            all.starts_with("(all()) - (binary_id(flannel-tests::e2e) & (test(=xdp::auto_"),
            "{all}"
        );
    }
}
