//! `cargo xtask demo`, `bench` and `difftest`: build, then hand over to the
//! programs of the crates under `tests/`, which share the lab.

use anyhow::{Result, bail};

use crate::programs::CASES;
use crate::workspace::{as_root, cargo, run as run_command, target_dir};
use crate::{setup, workspace};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Passed on; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct ShellArgs {
    /// nodeA, nodeB, nodeC, podA, podB or podC
    name: String,
    /// A command to run there instead of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// The program that shows and keeps the demo.
const DEMO: &str = "flannel-demo";

/// Shows the demo; removing a kept one needs no build.
pub(crate) fn demo(args: &Args) -> Result<()> {
    if args.rest.iter().any(|word| word == "--remove") {
        return start(DEMO, &args.rest);
    }
    run(DEMO, args)
}

/// A shell in the demo that is kept.
pub(crate) fn shell(args: &ShellArgs) -> Result<()> {
    let words = ["--shell", args.name.as_str()].into_iter().map(str::to_owned);
    start(DEMO, &words.chain(args.words.iter().cloned()).collect::<Vec<_>>())
}

/// Builds the agent and all programs of the lab in release mode and runs one.
pub(crate) fn run(program: &str, args: &Args) -> Result<()> {
    setup::tools()?;
    build()?;
    start(program, &args.rest)
}

/// Runs a program that is built.
fn start(program: &str, words: &[String]) -> Result<()> {
    let path = target_dir().join("release").join(program);
    if !path.exists() {
        bail!("{program} is not built yet: cargo xtask demo --keep");
    }
    let status = as_root(path).args(words).current_dir(workspace::root()).status()?;
    if !status.success() {
        bail!("{program}: {status}");
    }
    Ok(())
}

fn build() -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--release", "--locked", "--bins", "--package", "flannel-agent"]);
    command.args(CASES.iter().flat_map(|package| ["--package", package]));
    run_command(&mut command)
}
