//! The project's own build and test commands: `cargo xtask <command>`.
//!
//! Depends on none of the project's crates, so that it builds in seconds and
//! before anything else (in particular before `protoc` is there).

mod advisories;
mod beside;
mod build_ebpf;
mod circles;
mod complexity;
mod debian;
mod dist;
mod first_edition;
mod fuzz;
mod guest;
mod harness;
mod program_log;
mod programs;
mod quiet;
mod setup;
mod shipped;
mod target;
mod test;
mod tidy;
mod toolchain;
mod workspace;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build and test flannel-ebpf", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing for test, demo and bench
    Setup(setup::Args),
    /// Compile the TC programs into flannel-ebpf/prebuilt
    BuildEbpf(build_ebpf::Args),
    /// Compile programs that log why packets are the kernel's, and try them
    ProgramLog,
    /// Write anew what the programs cost the verifiers, after build-ebpf
    Complexity,
    /// Run unit, property and end-to-end tests
    Test(test::Args),
    /// Show three nodes whose pods talk, step by step; --keep leaves them running
    Demo(harness::Args),
    /// A shell in a node or pod of a kept demo, such as nodeA or podB
    Shell(harness::ShellArgs),
    /// Measure host to host, kernel path, eBPF path and variants side by side
    Bench(harness::Args),
    /// Compare what kernel path and eBPF path make of the same packets
    Difftest(harness::Args),
    /// Look for bytes that a reader, or the packet path, fails on
    Fuzz(fuzz::Args),
    /// Make a Debian package, an rpm and a tarball
    Dist(dist::Args),
    /// Check the rules of the source tree
    Tidy,
    /// Look for crates with known faults, where the database of these can be reached
    Advisories(advisories::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::ProgramLog => program_log::run(),
        Command::Complexity => complexity::run(),
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => harness::demo(&args),
        Command::Shell(args) => harness::shell(&args),
        Command::Bench(args) => harness::bench(&args),
        Command::Difftest(args) => harness::run("flannel-difftest", &args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Tidy => tidy::run(),
        Command::Advisories(args) => advisories::run(&args),
    }
}
