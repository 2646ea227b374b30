//! `cargo xtask fuzz`: lets libFuzzer look for bytes that a reader, or the packet path,
//! fails on.

use std::process::Command;

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::workspace::{cargo, root, run as run_command, target_dir};
use crate::{beside, setup};

/// The crate of the targets.
const CRATE: &str = "flannel-agent/fuzz";
/// A folder of samples for each target.
const CORPUS: &str = "flannel-agent/corpus";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this one, a folder of flannel-agent/corpus
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Run each target so many times instead, always with the same bytes
    #[arg(long, conflicts_with = "seconds")]
    runs: Option<u32>,
}

/// Builds the targets at once, and runs as many of them side by side as there are
/// processors.
///
/// # Errors
/// A target fails; libFuzzer says on which bytes, and where it keeps them.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::fuzz(false)?;
    let targets: Vec<_> = targets()?
        .into_iter()
        .filter(|name| args.target.as_ref().is_none_or(|wanted| wanted == name))
        .collect();
    if targets.is_empty() {
        bail!("no fuzz target has this name; there are: {}", self::targets()?.join(", "));
    }
    run_command(cargo_fuzz("build").args(&args.target))?;
    let ended = beside::each(beside::processors(), &targets, |target| fuzz(target, args));
    ended.into_iter().collect()
}

/// A command of cargo-fuzz, the same build for each. No code under test is unsafe, so that
/// a sanitizer has nothing to find, and the stable compiler will do.
fn cargo_fuzz(name: &str) -> Command {
    let mut command = cargo();
    // Built sooner, and the runs are short.
    command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only");
    command.args(["fuzz", name, "--fuzz-dir", CRATE, "--sanitizer", "none"]);
    command
}

/// Runs a target that is built, and shows what it says when it has ended.
fn fuzz(target: &str, args: &Args) -> Result<()> {
    // What is found goes to the first folder, and what is checked in stays.
    let found = target_dir().join("fuzz").join(target);
    if args.runs.is_some() && found.exists() {
        fs::remove_dir_all(&found)?;
    }
    fs::create_dir_all(&found)?;
    let mut command = cargo_fuzz("run");
    command.arg(target).arg(&found).arg(root().join(CORPUS).join(target)).arg("--");
    match args.runs {
        Some(runs) => command.arg(format!("-runs={runs}")).arg("-seed=1"),
        None => command.arg(format!("-max_total_time={}", args.seconds)),
    };
    command.args(["-timeout=10", "-rss_limit_mb=1024", "-verbosity=0", "-print_final_stats=1"]);
    let ended = command.output().context("start cargo fuzz: run `cargo xtask setup`")?;
    let [out, said] = [&ended.stdout, &ended.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    println!("\n== {target}\n{out}{said}");
    if !ended.status.success() {
        bail!("{target} failed: put the bytes into {CORPUS}/{target} with the fix");
    }
    Ok(())
}

/// All targets.
fn targets() -> Result<Vec<String>> {
    let entries = fs::read_dir(root().join(CORPUS)).context(CORPUS)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<_> = names.collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}
