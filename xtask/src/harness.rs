//! `cargo xtask demo`, `bench` and `difftest`: build, then hand over to the
//! programs of the crates under `tests/`, which share the lab.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::programs::CASES;
use crate::shipped::{self, SHIPPED};
use crate::target::Target;
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
/// The program that measures.
const BENCH: &str = "flannel-bench";
/// Names the agent to the programs of the lab.
const AGENT: &str = "FLANNEL_AGENT";

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

/// Measures the agent as it is shipped, or the one that `FLANNEL_AGENT` names.
pub(crate) fn bench(args: &Args) -> Result<()> {
    setup::tools()?;
    build()?;
    if std::env::var_os(AGENT).is_some() {
        return start(BENCH, &args.rest);
    }
    let agent = shipped::build(Target::host()?, SHIPPED)?;
    hand_over(as_root(program(BENCH)?).env(AGENT, agent).args(&args.rest), BENCH)
}

/// Runs a program that is built.
fn start(name: &str, words: &[String]) -> Result<()> {
    hand_over(as_root(program(name)?).args(words), name)
}

/// A program that is built.
fn program(name: &str) -> Result<PathBuf> {
    let path = target_dir().join("release").join(name);
    if !path.exists() {
        bail!("{name} is not built yet: cargo xtask demo --keep");
    }
    Ok(path)
}

fn hand_over(command: &mut Command, name: &str) -> Result<()> {
    let status = command.current_dir(workspace::root()).status()?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}

fn build() -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--release", "--locked", "--bins", "--package", "flannel-agent"]);
    command.args(CASES.iter().flat_map(|package| ["--package", package]));
    run_command(&mut command)
}
