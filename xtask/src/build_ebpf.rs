//! `cargo xtask build-ebpf`: compiles the programs, reproducibly.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use fs_err as fs;
use sha2::{Digest, Sha256};

use crate::setup;
use crate::toolchain::{self, Toolchain};
use crate::workspace::{output, root, run as run_command, target_dir};

/// The program files of the crate that are objects: the packet path, and the monitor.
const OBJECTS: [&str; 2] = ["flannel-ebpf", "flannel-monitor"];

/// Folder of the target directory for the programs that log.
const LOGGING: &str = "ebpf-log";

/// File name of an object.
fn file(name: &str) -> String {
    format!("{name}.bpf.o")
}

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
    let objects = compile(&toolchain, "ebpf", "programs")?;
    if args.check {
        return compare(&objects, &tools);
    }
    for (name, object) in &objects {
        write(name, object)?;
    }
    put(&prebuilt().join("TOOLS"), &tools)?;
    remove_fresh()
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

/// The packet path of another compiler, which the tests load as well.
pub(crate) fn fresh() -> PathBuf {
    target_dir().join("ebpf/fresh").join(file(OBJECTS[0]))
}

/// An object and its name.
type Object = (&'static str, Vec<u8>);

/// Compiles the packet path so that it logs; its path.
///
/// # Errors
/// There is no compiler, or it fails.
pub(crate) fn logging() -> Result<PathBuf> {
    setup::ebpf(false)?;
    let objects = compile(&toolchain::choose()?, LOGGING, "log")?;
    Ok(target_dir().join(LOGGING).join(file(objects[0].0)))
}

/// Compiles with this feature into this folder of the target directory.
fn compile(toolchain: &Toolchain, folder: &str, feature: &str) -> Result<Vec<Object>> {
    let target = target_dir().join(folder);
    run_command(
        toolchain
            .cargo()
            .current_dir(root())
            .env("CARGO_ENCODED_RUSTFLAGS", toolchain.flags()?.join("\u{1f}"))
            .env("CARGO_TARGET_DIR", &target)
            .args(["build", "--release", "--locked", "-Z", "build-std=core"])
            .args(["--target", "bpfel-unknown-none", "--package", "flannel-ebpf"])
            .args(["--no-default-features", "--features", feature])
            .args(OBJECTS.map(|name| format!("--bin={name}"))),
    )?;
    let strip = |name: &'static str| {
        let built = target.join("bpfel-unknown-none/release").join(name);
        let stripped = target.join(file(name));
        // Only DWARF goes; .BTF stays, so that bpftool prints field names.
        run_command(
            Command::new(toolchain::objcopy()?).arg("--strip-debug").arg(&built).arg(&stripped),
        )?;
        Ok((name, fs::read(&stripped)?))
    };
    OBJECTS.into_iter().map(strip).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(name: &str, object: &[u8]) -> Result<()> {
    let (dir, file) = (prebuilt(), file(name));
    put(&dir.join(&file), object)?;
    put(&dir.join(format!("{file}.sha256")), format!("{}  {file}\n", sha256(object)))?;
    println!("build-ebpf: wrote {} ({} bytes)", dir.join(file).display(), object.len());
    Ok(())
}

fn put(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(fs::write(path, bytes)?)
}

fn remove_fresh() -> Result<()> {
    match fs::remove_file(fresh()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", fresh().display()))
        }
        _ => Ok(()),
    }
}

/// Reads what is committed.
fn read(name: &str) -> Result<Vec<u8>> {
    let path = prebuilt().join(name);
    fs::read(&path).with_context(|| format!("{}: run `cargo xtask build-ebpf`", path.display()))
}

fn compare(objects: &[Object], tools: &str) -> Result<()> {
    let before = String::from_utf8_lossy(&read("TOOLS")?).into_owned();
    let mut other = false;
    for (name, object) in objects {
        let file = file(name);
        let committed = read(&file)?;
        let sum = String::from_utf8_lossy(&read(&format!("{file}.sha256"))?).into_owned();
        if sum.split_whitespace().next() != Some(&sha256(&committed)) {
            bail!("{file} and {file}.sha256 do not belong together: run `cargo xtask build-ebpf`");
        }
        if committed == *object {
            println!("build-ebpf: the committed {file} is what these sources give");
            continue;
        }
        if before == tools {
            bail!(
                "the committed {file} is not what these sources give (committed sha256 {}, fresh \
                 {}): run `cargo xtask build-ebpf` and commit flannel-ebpf/prebuilt",
                sha256(&committed),
                sha256(object)
            );
        }
        other = true;
    }
    if !other {
        return remove_fresh();
    }
    put(&fresh(), &objects[0].1)?;
    println!(
        "build-ebpf: the committed objects were built by other tools, so bytes cannot be compared:\n\
         {before}`cargo xtask test` runs cases with both; the fresh one is {}",
        fresh().display()
    );
    Ok(())
}
