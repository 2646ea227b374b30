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

/// Builds the agent and all programs of the lab in release mode and runs one.
pub(crate) fn run(program: &str, args: &Args) -> Result<()> {
    setup::tools()?;
    build()?;
    let path = target_dir().join("release").join(program);
    let status = as_root(path).args(&args.rest).current_dir(workspace::root()).status()?;
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
