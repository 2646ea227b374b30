//! `cargo xtask build-ebpf`: compiles the TC programs, reproducibly.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::setup;
use crate::toolchain::{self, Toolchain};
use crate::workspace::{output, root, run as run_command, target_dir};

/// File name of the object.
const OBJECT: &str = "flannel-ebpf.bpf.o";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rebuild and compare with the committed object instead of replacing it
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ebpf(false)?;
    let toolchain = toolchain::choose()?;
    let tools = tools(&toolchain)?;
    println!("build-ebpf: {}", toolchain.why);
    print!("{tools}");
    let object = compile(&toolchain)?;
    if args.check { compare(&object, &tools) } else { write(&object, &tools) }
}

/// What decides about the bytes of the object, one tool a line.
fn tools(toolchain: &Toolchain) -> Result<String> {
    let rustc = output(toolchain.rustc().arg("-vV"))?;
    let line = |prefix: &str| {
        rustc.lines().find(|line| line.starts_with(prefix)).unwrap_or(prefix).to_owned()
    };
    let linker = output(Command::new("bpf-linker").arg("--version"))
        .context("bpf-linker: `cargo xtask setup --ebpf` builds it")?;
    // The LLVM that bpf-linker brings along must not be older than rustc's.
    let llvm = output(Command::new("/usr/lib/llvm-22/bin/llvm-config").arg("--version"))
        .unwrap_or_else(|_| "unknown".to_owned());
    Ok(format!("{}\n{}\n{linker}\nllvm-22 {llvm}\n", line("rustc "), line("LLVM version:")))
}

fn prebuilt() -> PathBuf {
    root().join("flannel-ebpf/prebuilt")
}

/// The object of another compiler, which the tests load as well.
pub(crate) fn fresh() -> PathBuf {
    target_dir().join("ebpf/fresh").join(OBJECT)
}

fn compile(toolchain: &Toolchain) -> Result<Vec<u8>> {
    let target = target_dir().join("ebpf");
    run_command(
        toolchain
            .cargo()
            .current_dir(root())
            .env("CARGO_ENCODED_RUSTFLAGS", toolchain.flags()?.join("\u{1f}"))
            .env("CARGO_TARGET_DIR", &target)
            .args(["build", "--release", "--locked", "-Z", "build-std=core"])
            .args(["--target", "bpfel-unknown-none", "--package", "flannel-ebpf"])
            .args(["--no-default-features", "--features", "programs", "--bin", "flannel-ebpf"]),
    )?;
    let built = target.join("bpfel-unknown-none/release/flannel-ebpf");
    let stripped = target.join(OBJECT);
    // Only DWARF goes; .BTF stays, so that bpftool prints field names.
    run_command(
        Command::new(toolchain::objcopy()?).arg("--strip-debug").arg(&built).arg(&stripped),
    )?;
    fs::read(&stripped).with_context(|| stripped.display().to_string())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(object: &[u8], tools: &str) -> Result<()> {
    let dir = prebuilt();
    put(&dir.join(OBJECT), object)?;
    put(&dir.join(format!("{OBJECT}.sha256")), format!("{}  {OBJECT}\n", sha256(object)))?;
    put(&dir.join("TOOLS"), tools)?;
    remove_fresh()?;
    println!("build-ebpf: wrote {} ({} bytes)", dir.join(OBJECT).display(), object.len());
    Ok(())
}

fn put(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

fn remove_fresh() -> Result<()> {
    match fs::remove_file(fresh()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", fresh().display()))
        }
        _ => Ok(()),
    }
}

fn compare(object: &[u8], tools: &str) -> Result<()> {
    let dir = prebuilt();
    let read = |name: &str| {
        fs::read(dir.join(name))
            .with_context(|| format!("{}: run `cargo xtask build-ebpf`", dir.join(name).display()))
    };
    let committed = read(OBJECT)?;
    let sum = String::from_utf8_lossy(&read(&format!("{OBJECT}.sha256"))?).into_owned();
    if sum.split_whitespace().next() != Some(&sha256(&committed)) {
        bail!("{OBJECT} and {OBJECT}.sha256 do not belong together: run `cargo xtask build-ebpf`");
    }
    let before = String::from_utf8_lossy(&read("TOOLS")?).into_owned();
    if committed == object {
        println!("build-ebpf: the committed object is what these sources give");
        return remove_fresh();
    }
    if before == tools {
        bail!(
            "the committed object is not what these sources give (committed sha256 {}, fresh {}): \
             run `cargo xtask build-ebpf` and commit flannel-ebpf/prebuilt",
            sha256(&committed),
            sha256(object)
        );
    }
    put(&fresh(), object)?;
    println!(
        "build-ebpf: the committed object was built by other tools, so bytes cannot be compared:\n\
         {before}`cargo xtask test` runs cases with both objects; the fresh one is {}",
        fresh().display()
    );
    Ok(())
}
