//! `cargo xtask dist`: a Debian package, an rpm and a tarball of the same files, and the
//! debug information beside them. Two runs on the same commit give the same bytes.

mod container;
mod deb;
mod libraries;
mod licences;
mod needs;
mod rpm;
mod sbom;
mod tree;
mod twice;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::shipped::{self, SHIPPED};
use crate::target::Target;
use crate::workspace::{output, root, run as run_command, target_dir};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pack this agent instead of building one
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// The machine that the packages are for [default: this one]
    #[arg(long, value_name = "TRIPLE")]
    target: Option<Target>,
    /// cargo's profile
    #[arg(long, value_name = "NAME", default_value = SHIPPED)]
    profile: String,
    /// Also lay out what `docker build` makes an image from
    #[arg(long)]
    container: bool,
    /// Build twice, in clones of the present commit in different directories, and compare
    #[arg(long, conflicts_with_all = ["agent", "out", "container"])]
    check: bool,
    /// Where the packages go [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What the packages say that it is.
const DESCRIPTION: &str = "\
A drop-in replacement for flanneld: the same keys in etcd, flags, subnet.env and
packets on the wire. Programs at the pods' interfaces and at the network card
carry the flows that the kernel was seen to deliver.
";

/// What the packages are of.
struct Product {
    version: String,
    target: Target,
    /// Seconds since the epoch: the time stamp of every file.
    epoch: String,
}

impl Product {
    fn name(&self) -> String {
        format!("flannel-ebpf_{}_{}", self.version, self.target.debian())
    }

    fn rpm(&self) -> String {
        format!("flannel-ebpf-{}-1.{}.rpm", self.version, self.target.machine())
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let target = args.target.map_or_else(Target::host, Ok)?;
    target.prepare()?;
    if args.check {
        return twice::check(&[
            format!("--profile={}", args.profile),
            format!("--target={}", target.triple()),
        ]);
    }
    let out = args.out.clone().unwrap_or_else(|| target_dir().join("dist"));
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => shipped::build(target, &args.profile)?,
    };
    let product = Product { version: version(&agent, target)?, target, epoch: epoch()? };
    for file in pack(&agent, &out, &product, args.container)? {
        println!("{}", file.display());
    }
    Ok(())
}

/// Makes all packages of an agent, and with `container` the directory of its image.
fn pack(agent: &Path, out: &Path, product: &Product, container: bool) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(out)?;
    let stage = out.join("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let stripped = strip(agent, out, product)?;
    let needs = needs::of(&stripped, &product.target.tool("objdump"))?;
    tree::lay(&stage, &stripped, product)?;
    fs::remove_file(&stripped)?;
    let mut made = vec![
        tarball(&stage, out, product)?,
        rpm::build(&stage, out, product, &needs)?,
        deb::build(&stage, out, product, &needs)?,
    ];
    if container {
        made.push(container::lay(&stage, out, product)?);
    }
    fs::remove_dir_all(&stage)?;
    Ok(made)
}

/// Puts the debug information into a file of its own, and gives the rest.
fn strip(agent: &Path, out: &Path, product: &Product) -> Result<PathBuf> {
    let debug = out.join(format!("{}.debug", product.name()));
    let stripped = out.join("flannel-agent");
    let tool = |name: &str| Command::new(product.target.tool(name));
    run_command(tool("objcopy").arg("--only-keep-debug").arg(agent).arg(&debug))?;
    run_command(tool("strip").arg("-o").arg(&stripped).arg(agent))?;
    run_command(
        tool("objcopy").arg(format!("--add-gnu-debuglink={}", debug.display())).arg(&stripped),
    )?;
    Ok(stripped)
}

fn tarball(stage: &Path, out: &Path, product: &Product) -> Result<PathBuf> {
    let file = out.join(format!("{}.tar.gz", product.name()));
    let plain = file.with_extension("");
    // Of the directories only our own: tar would give the node's `/` and `/usr/bin` the mode
    // and time of these.
    let mut names = tree::files(stage)?;
    names.retain(|name| !tree::OWN.iter().any(|own| Path::new(name).starts_with(own)));
    names.extend(tree::OWN.map(str::to_owned));
    pack_tar(stage, &plain, product, &names)?;
    run_command(Command::new("gzip").args(["--no-name", "--force"]).arg(&plain))?;
    Ok(file)
}

/// Packs these of a directory, with all below them, the same bytes each time.
fn pack_tar(directory: &Path, file: &Path, product: &Product, names: &[String]) -> Result<()> {
    run_command(
        Command::new("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"])
            .arg(format!("--mtime=@{}", product.epoch))
            .arg("--file")
            .arg(file)
            .arg("--directory")
            .arg(directory)
            .arg("--create")
            .args(names),
    )
}

/// The agent tells its own version.
fn version(agent: &Path, target: Target) -> Result<String> {
    let said = target
        .run(agent)
        .arg("--version")
        .output()
        .with_context(|| format!("start {}", agent.display()))?;
    let text = String::from_utf8_lossy(&said.stderr).trim().to_owned();
    match text.strip_prefix('v') {
        Some(version) if said.status.success() => Ok(version.to_owned()),
        _ => bail!("{} --version said {text:?}", agent.display()),
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
