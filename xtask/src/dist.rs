//! `cargo xtask dist`: a Debian package and a tarball of the same files, and the
//! debug information beside them. Two runs on the same commit give the same bytes.

mod deb;
mod licences;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{cargo, output, root, run as run_command, target_dir};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pack this agent instead of building one for release
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Where the packages go [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What the packages are of.
struct Product {
    version: String,
    /// Debian's name of the architecture.
    arch: &'static str,
    /// Seconds since the epoch: the time stamp of every file.
    epoch: String,
}

impl Product {
    fn name(&self) -> String {
        format!("flannel-ebpf_{}_{}", self.version, self.arch)
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| target_dir().join("dist"));
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => build()?,
    };
    let product = Product { version: version(&agent)?, arch: arch()?, epoch: epoch()? };
    fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let stage = out.join("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| stage.display().to_string())?;
    }
    let stripped = strip(&agent, &out, &product)?;
    tree::lay(&stage, &stripped)?;
    fs::remove_file(&stripped)?;
    let made = [tarball(&stage, &out, &product)?, deb::build(&stage, &out, &product)?];
    fs::remove_dir_all(&stage)?;
    for file in made {
        println!("{}", file.display());
    }
    Ok(())
}

fn build() -> Result<PathBuf> {
    // Paths of this machine have no place in a package.
    let home = std::env::var("CARGO_HOME").ok().map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut flags = format!("--remap-path-prefix={}=/flannel-ebpf", root().display());
    if let Some(home) = home {
        flags.push_str(&format!(" --remap-path-prefix={}=/cargo", home.display()));
    }
    let target = target_dir().join("dist-build");
    run_command(
        cargo()
            .args(["build", "--release", "--locked", "--package", "flannel-agent"])
            .arg("--target-dir")
            .arg(&target)
            .env("RUSTFLAGS", flags),
    )?;
    Ok(target.join("release/flannel-agent"))
}

/// Puts the debug information into a file of its own, and gives the rest.
fn strip(agent: &Path, out: &Path, product: &Product) -> Result<PathBuf> {
    let debug = out.join(format!("{}.debug", product.name()));
    let stripped = out.join("flannel-agent");
    run_command(Command::new("objcopy").arg("--only-keep-debug").arg(agent).arg(&debug))?;
    run_command(Command::new("strip").arg("-o").arg(&stripped).arg(agent))?;
    run_command(
        Command::new("objcopy")
            .arg(format!("--add-gnu-debuglink={}", debug.display()))
            .arg(&stripped),
    )?;
    Ok(stripped)
}

fn tarball(stage: &Path, out: &Path, product: &Product) -> Result<PathBuf> {
    let file = out.join(format!("{}.tar.gz", product.name()));
    let plain = file.with_extension("");
    run_command(
        Command::new("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"])
            .arg(format!("--mtime=@{}", product.epoch))
            .arg("--file")
            .arg(&plain)
            .arg("--directory")
            .arg(stage)
            .args(["--create", "."]),
    )?;
    run_command(Command::new("gzip").args(["--no-name", "--force"]).arg(&plain))?;
    Ok(file)
}

/// The agent tells its own version.
fn version(agent: &Path) -> Result<String> {
    let said = Command::new(agent)
        .arg("--version")
        .output()
        .with_context(|| format!("start {}", agent.display()))?;
    let text = String::from_utf8_lossy(&said.stderr).trim().to_owned();
    match text.strip_prefix('v') {
        Some(version) if said.status.success() => Ok(version.to_owned()),
        _ => bail!("{} --version said {text:?}", agent.display()),
    }
}

fn arch() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no package for {other}"),
    }
}

/// When the present commit was made; `SOURCE_DATE_EPOCH` goes first.
fn epoch() -> Result<String> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(epoch) => Ok(epoch),
        Err(_) => output(Command::new("git").current_dir(root()).args([
            "log",
            "-1",
            "--format=%ct",
            "HEAD",
        ])),
    }
}
