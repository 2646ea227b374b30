//! `cargo xtask fuzz`: lets libFuzzer look for bytes that a reader, or the packet path,
//! fails on.

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::setup;
use crate::workspace::{cargo, root, target_dir};

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

/// Runs the targets, one after another.
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
    for target in targets {
        println!("\n== {target}");
        // What is found goes to the first folder, and what is checked in stays.
        let found = target_dir().join("fuzz").join(&target);
        if args.runs.is_some() && found.exists() {
            fs::remove_dir_all(&found)?;
        }
        fs::create_dir_all(&found)?;
        let mut command = cargo();
        // No code under test is unsafe, so that a sanitizer has nothing to find, and the
        // stable compiler will do.
        // Built sooner, and the runs are short.
        command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
        command.env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only");
        command.args(["fuzz", "run", "--fuzz-dir", CRATE, "--sanitizer", "none", &target]);
        command.arg(&found).arg(root().join(CORPUS).join(&target)).arg("--");
        match args.runs {
            Some(runs) => command.arg(format!("-runs={runs}")).arg("-seed=1"),
            None => command.arg(format!("-max_total_time={}", args.seconds)),
        };
        command.args(["-timeout=10", "-rss_limit_mb=1024", "-verbosity=0", "-print_final_stats=1"]);
        if !command.status().context("start cargo fuzz: run `cargo xtask setup`")?.success() {
            bail!("{target} failed: put the bytes into {CORPUS}/{target} with the fix");
        }
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
