//! `cargo xtask setup`: installs what is missing, from the distribution's
//! packages and `cargo install` only.

use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use crate::toolchain;
use crate::workspace::{as_root, cargo, is_root, output, run as run_command, which};
use crate::{debian, first_edition, guest, quiet};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also what `build-ebpf` needs: a rustc with rust-src, LLVM, bpf-linker
    #[arg(long)]
    ebpf: bool,
    /// Only say what is missing; fail if something is
    #[arg(long)]
    check: bool,
}

/// How it is seen that a package is there.
enum Seen {
    /// A program in PATH.
    Program(&'static str),
    /// A file.
    File(&'static str),
}

struct Need {
    seen: Seen,
    package: &'static str,
    purpose: &'static str,
}

const fn program(name: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need { seen: Seen::Program(name), package, purpose }
}

const fn file(path: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need { seen: Seen::File(path), package, purpose }
}

/// Packages (Debian's names) for building the agent and for test, demo, bench.
const TOOLS: &[Need] = &[
    program("cc", "gcc", "links every Rust program"),
    file("/usr/include/stdlib.h", "libc6-dev", "links every Rust program"),
    program("protoc", "protobuf-compiler", "builds the etcd client"),
    file(
        "/usr/include/google/protobuf/descriptor.proto",
        "libprotobuf-dev",
        "builds the etcd client",
    ),
    program("etcd", "etcd-server", "the store of the tests"),
    program("curl", "curl", "writes etcd's v2 keys by hand"),
    program("python3", "python3-minimal", "reads JSON as the guides do"),
    program("etcdctl", "etcd-client", "writes leases by hand"),
    program("ip", "iproute2", "namespaces, links, routes"),
    program("nft", "nftables", "rules of nodes"),
    program("iptables", "iptables", "rules of nodes"),
    program("ipset", "ipset", "rules of nodes"),
    program("conntrack", "conntrack", "forgets connections as kube-proxy does"),
    program("bpftool", "bpftool", "shows maps and programs"),
    program("tcpdump", "tcpdump", "captures packets"),
    program("ethtool", "ethtool", "switches offloads"),
    program("ping", "iputils-ping", "ICMP between pods"),
    program("sysctl", "procps", "kernel settings of nodes"),
    program("nsenter", "util-linux", "runs programs in namespaces"),
    program("mount", "mount", "mounts the BPF file system"),
    program("systemd-analyze", "systemd", "checks the unit files"),
    program("mmdebstrap", "mmdebstrap", "makes the system that cases boot"),
    program("systemd-nspawn", "systemd-container", "starts nodes under systemd"),
    program("openssl", "openssl", "makes certificates as the guides do"),
    program("qemu-system-x86_64", "qemu-system-x86", "boots other kernels"),
    program("cpio", "cpio", "packs the files of other kernels' machines"),
    program("strip", "binutils", "packs the files of other kernels' machines"),
    program("prometheus", "prometheus", "scrapes agents"),
    program("promtool", "prometheus", "checks alerts and asks Prometheus"),
    program("rpm", "rpm", "reads the package for Fedora"),
    program("rpm2cpio", "rpm2cpio", "reads the package for Fedora"),
    program("dash", "dash", "runs the packaged scripts"),
    program(
        "busybox",
        "busybox-static",
        "runs the packaged scripts; the image of containers; unpacks kernels",
    ),
    // By path: another docker in PATH is not the one that goes with dockerd.
    file("/usr/sbin/dockerd", "docker.io", "containers on nodes"),
    file("/usr/bin/docker", "docker.io", "containers on nodes"),
];

/// Packages that build for arm64 on another machine, and run what was built.
const ARM64: &[Need] = &[
    program("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu", "links programs for arm64"),
    file("/usr/aarch64-linux-gnu/include/stdlib.h", "libc6-dev-arm64-cross", "the C library"),
    program("qemu-aarch64-static", "qemu-user-static", "runs programs for arm64"),
];

/// Packages that build the TC programs where rustup has no nightly with
/// rust-src.
const TOOLCHAIN: &[Need] = &[
    program("/usr/bin/rustc", "rustc-web", "compiles the TC programs"),
    program("/usr/bin/cargo", "cargo-web", "compiles the TC programs"),
    file("/usr/lib/rustlib/src/rust/library/core/src/lib.rs", "rust-web-src", "core for bpfel"),
];

/// Packages that bpf-linker is built with, and the tool that strips objects.
const LINKER: &[Need] = &[
    program("/usr/lib/llvm-22/bin/llvm-config", "llvm-22-dev", "builds bpf-linker"),
    program("/usr/lib/llvm-22/bin/llvm-objcopy", "llvm-22", "strips the object"),
];

/// The version of bpf-linker that goes with LLVM 22.
pub(crate) const BPF_LINKER: &str = "0.13.0";

/// What runs the tests, and the version that is built where there is none. What it needs
/// to be updated by itself is left out.
const NEXTEST: Subcommand = Subcommand {
    name: "nextest",
    version: "0.9.143",
    features: &["--no-default-features", "--features", "default-no-update"],
};

/// What runs the fuzz targets.
const FUZZ: Subcommand = Subcommand { name: "fuzz", version: "0.13.2", features: &[] };

/// What looks for crates with known faults.
const DENY: Subcommand = Subcommand { name: "deny", version: "0.20.2", features: &[] };

/// What builds libFuzzer.
const CPP: &[Need] = &[program("c++", "g++", "builds libFuzzer")];

/// A subcommand of cargo that `cargo install` builds.
struct Subcommand {
    name: &'static str,
    version: &'static str,
    features: &'static [&'static str],
}

impl Subcommand {
    /// Builds it where there is none.
    fn install(&self, check: bool) -> Result<()> {
        let Self { name, version, features } = self;
        if output(cargo().args([name, "--version"])).is_ok() {
            return Ok(());
        }
        if check {
            bail!("cargo-{name} is missing; `cargo xtask setup` builds it");
        }
        eprintln!("setup: building cargo-{name} {version}");
        let mut command = cargo();
        // Built in half of the time: it waits for others while it runs.
        command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0");
        command.env("CARGO_PROFILE_RELEASE_LTO", "false");
        command.args(["install", &format!("cargo-{name}"), "--version", version, "--locked"]);
        run_command(command.args(*features))
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    packages(TOOLS.iter(), args.check)?;
    components(args.check)?;
    if args.ebpf {
        toolchain_packages(args.check)?;
    }
    if args.check {
        return build(args);
    }
    // The one fetches and unpacks, the other compiles.
    thread::scope(|scope| {
        let systems = scope.spawn(unpack);
        build(args)?;
        systems.join().map_err(|_| anyhow!("other kernels and systems were not unpacked"))?
    })
}

/// The kernels and the systems that cases boot.
fn unpack() -> Result<()> {
    guest::RELEASES.iter().try_for_each(|release| guest::prepare(release))?;
    debian::prepare()
}

/// What is compiled.
fn build(args: &Args) -> Result<()> {
    nextest(args.check)?;
    if !args.check {
        first_edition::prepare()?;
    }
    if args.ebpf { linker(args.check) } else { Ok(()) }
}

/// What test, demo and bench need.
pub(crate) fn tools() -> Result<()> {
    packages(TOOLS.iter(), false)
}

/// What runs the tests.
pub(crate) fn nextest(check: bool) -> Result<()> {
    NEXTEST.install(check)
}

/// What looks for crates with known faults.
pub(crate) fn deny() -> Result<()> {
    DENY.install(false)
}

/// What runs the fuzz targets.
pub(crate) fn fuzz(check: bool) -> Result<()> {
    packages(CPP.iter(), check)?;
    FUZZ.install(check)
}

/// What builds for arm64 on another machine, and runs what was built.
///
/// # Errors
/// A package cannot be had, or rustc's standard library for arm64.
pub(crate) fn arm64(triple: &str) -> Result<()> {
    packages(ARM64.iter(), false)?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let print = ["--print", "target-libdir", "--target", triple];
    let library = output(Command::new(&rustc).args(print))?;
    if Path::new(&library).exists() {
        return Ok(());
    }
    if which("rustup").is_none() {
        bail!("{library} is missing: the standard library for {triple} of this very rustc");
    }
    run_command(Command::new("rustup").args(["target", "add", triple]))
}

/// What `build-ebpf` needs.
pub(crate) fn ebpf(check: bool) -> Result<()> {
    toolchain_packages(check)?;
    linker(check)
}

fn toolchain_packages(check: bool) -> Result<()> {
    let own_nightly = toolchain::rustup_nightly().is_ok();
    let toolchain = if own_nightly { &[] } else { TOOLCHAIN };
    packages(toolchain.iter().chain(LINKER), check)
}

fn linker(check: bool) -> Result<()> {
    let installed = output(Command::new("bpf-linker").arg("--version")).unwrap_or_default();
    if installed.ends_with(BPF_LINKER) {
        return Ok(());
    }
    if check {
        bail!("bpf-linker {BPF_LINKER} is missing; `cargo xtask setup --ebpf` builds it");
    }
    eprintln!("setup: building bpf-linker {BPF_LINKER} (found: {installed:?})");
    run_command(cargo().env("LLVM_PREFIX", "/usr/lib/llvm-22").args([
        "install",
        "bpf-linker",
        "--version",
        BPF_LINKER,
        "--no-default-features",
        "--features",
        "llvm-22",
        "--locked",
        "--force",
    ]))
}

fn missing<'a>(needs: impl Iterator<Item = &'a Need>) -> Vec<&'a Need> {
    needs
        .filter(|need| match need.seen {
            Seen::Program(name) => which(name).is_none(),
            Seen::File(path) => !Path::new(path).exists(),
        })
        .collect()
}

fn packages<'a>(needs: impl Iterator<Item = &'a Need> + Clone, check: bool) -> Result<()> {
    let absent = missing(needs.clone());
    if absent.is_empty() {
        return Ok(());
    }
    for need in &absent {
        let what = match need.seen {
            Seen::Program(name) => name,
            Seen::File(path) => path,
        };
        eprintln!("setup: missing {what} (Debian package {}): {}", need.package, need.purpose);
    }
    if check {
        bail!("{} packages are missing; `cargo xtask setup` installs them", absent.len());
    }
    if which("apt-get").is_none() {
        let mut all: Vec<_> = needs.map(|need| need.package).collect();
        all.dedup();
        bail!(
            "this system has no apt-get: install what is missing above with its own package \
             manager; the whole list by Debian's names: {}",
            all.join(" ")
        );
    }
    let mut names: Vec<_> = absent.iter().map(|need| need.package).collect();
    names.dedup();
    quiet::without_services(|| install(&names))?;
    let still = missing(needs);
    if let Some(need) = still.first() {
        bail!("{} is installed and did not bring what is needed ({})", need.package, need.purpose);
    }
    Ok(())
}

fn install(names: &[&str]) -> Result<()> {
    if !is_root() && which("sudo").is_none() {
        bail!("run this as root: apt-get install --no-install-recommends {}", names.join(" "));
    }
    eprintln!("setup: apt-get install {}", names.join(" "));
    // `apt-cache show` fails for a package that the lists do not have: only
    // then are the lists fetched.
    let known = output(Command::new("apt-cache").arg("show").args(names)).is_ok();
    let fetch = || run_command(as_root("apt-get").args(["update", "-qq"]));
    if !known {
        fetch()?;
    }
    let get = || {
        run_command(
            as_root("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "-y", "-qq", "--no-install-recommends"])
                .args(names),
        )
    };
    if get().is_ok() {
        return Ok(());
    }
    // Old lists name versions that the mirror has no more.
    fetch()?;
    get().with_context(|| format!("install {}", names.join(" ")))
}

/// rustfmt and clippy come with rustup's toolchains; a minimal profile has
/// neither.
fn components(check: bool) -> Result<()> {
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if which(program).is_some() && output(cargo().args([&program[6..], "--version"])).is_ok() {
            continue;
        }
        if check || which("rustup").is_none() {
            bail!("{component} is missing: `rustup component add {component}`");
        }
        run_command(Command::new("rustup").args(["component", "add", component]))?;
    }
    Ok(())
}
