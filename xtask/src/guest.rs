//! End-to-end cases under another kernel: Debian's, in a virtual machine whose
//! processor qemu emulates in software, so that no hardware support is asked
//! for. The machine has no disk: its initramfs holds the modules, the tools and
//! the tests' programs.

mod image;
mod package;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{cargo, output, run as run_command};

/// The kernel that `cargo xtask test` boots.
pub(crate) const DEFAULT: &str = "6.1";

/// What a run may take, in seconds; a guest that hangs is ended then.
const LIMIT: u32 = 1800;

/// How much longer than on bare metal everything may take, for the tests'
/// `FLANNEL_TEST_PATIENCE`.
const PATIENCE: u32 = 8;

/// What the guest's init says when it has done everything.
pub(crate) const DONE: &str = "guest: done, programs that failed:";

/// Cases that need what only the emulated machine has (two network cards on one
/// wire): they run there and nowhere else.
pub(crate) const ONLY_HERE: &[&str] = &["auto_takes_a_network_card"];

/// The cases that say something about a kernel, by test program. All of them
/// run the agent as it starts by default or with clsact filters, which is what
/// a kernel without tcx has.
const CASES: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("complexity", &[]),
    ("connectivity", &["datapath_auto_chooses_ebpf_here"]),
    ("fallback", &["no_capability", "a_program_that_the_verifier_refuses"]),
    ("restart", &["killed_and_started_with_clsact_filters", "stopped_with_clsact_filters"]),
    ("cleanup", &["clsact"]),
    (
        "xdp",
        &["native_carries_udp_and_tcp_whole", "auto_takes_a_network_card", "cleanup_removes_it"],
    ),
];

/// Fetches what a run needs, unless it is there: the kernel's package.
///
/// # Errors
/// The package cannot be had.
pub(crate) fn prepare(release: &str) -> Result<()> {
    package::get(release).map(|_| ())
}

/// A command that boots the kernel, runs the cases (those whose name contains
/// `filter`) and prints what they print; its last line is [`DONE`] with a
/// number. None if the filter leaves no case.
///
/// # Errors
/// Something cannot be built or fetched.
pub(crate) fn cases(release: &str, agent: &Path, filter: Option<&str>) -> Result<Option<Command>> {
    let mut lines = Vec::new();
    for (program, names) in CASES {
        let whole = names.is_empty();
        let chosen: Vec<&str> = names
            .iter()
            .filter(|name| filter.is_none_or(|filter| name.contains(filter)))
            .copied()
            .collect();
        let words = match filter {
            // Programs that run whole know their cases' names themselves.
            Some(filter) if whole => filter.to_owned(),
            _ if whole => String::new(),
            _ if chosen.is_empty() => continue,
            _ => format!("--exact {}", chosen.join(" ")),
        };
        lines.push(format!("{program} --test-threads=1 {words}"));
    }
    if lines.is_empty() {
        return Ok(None);
    }
    boot(release, Some(agent), &lines).map(Some)
}

/// A command that boots the kernel and runs one program of the tests crate.
///
/// # Errors
/// Something cannot be built or fetched.
pub(crate) fn program(release: &str, name: &str) -> Result<Command> {
    boot(release, None, &[name.to_owned()])
}

fn boot(release: &str, agent: Option<&Path>, lines: &[String]) -> Result<Command> {
    let kernel = package::get(release)?;
    let mut programs = programs()?;
    programs.extend(agent.map(|path| ("flannel-agent".to_owned(), path.display().to_string())));
    let image = image::build(&kernel, &programs, lines)?;
    Ok(machine(&kernel.image, &image, &kernel.dir.join("console.log")))
}

/// Builds the harness's programs and the test programs of
/// [`CASES`]; their paths.
fn programs() -> Result<Vec<(String, String)>> {
    // As the end-to-end cases are built, so that nothing is compiled twice.
    let profile = ["--locked", "--package", "flannel-tests"];
    run_command(cargo().args(["build", "--bins"]).args(profile))?;
    let mut command = cargo();
    command.args(["test", "--no-run", "--message-format=json"]).args(profile);
    for (name, _) in CASES {
        command.args(["--test", name]);
    }
    let mut found = Vec::new();
    for line in output(&mut command)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's JSON")?;
        if let (Some(name), Some(path)) =
            (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            found.push((name.to_owned(), path.to_owned()));
        }
    }
    for (name, _) in CASES {
        if !found.iter().any(|(program, _)| program == name) {
            bail!("cargo built no test program {name}");
        }
    }
    Ok(found)
}

/// The machine: what the kernel says goes to a file, what the init and the
/// tests say to standard output.
fn machine(kernel: &Path, initramfs: &Path, console: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", &LIMIT.to_string(), "qemu-system-x86_64"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2560"]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(["-serial", "stdio"]);
    // Two cards on one wire.
    for card in ["card0", "card1"] {
        command.args(["-netdev", &format!("hubport,id={card},hubid=0")]);
        command.args(["-device", &format!("virtio-net-pci,netdev={card},romfile=")]);
    }
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    command.args(["-append", "console=ttyS0 panic=-1 quiet"]);
    command
}
