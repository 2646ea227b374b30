//! End-to-end cases under another kernel: Debian's, in a virtual machine whose
//! processor qemu emulates in software, so that no hardware support is asked
//! for. The machine has no disk: its initramfs holds the modules, the tools and
//! the tests' programs.

mod image;
mod package;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{cargo, output, run as run_command};

/// The kernels that `cargo xtask test` boots at its end, one after another.
pub(crate) const RELEASES: &[&str] = &["6.1", "6.12"];

/// What a run may take, in seconds; a guest that hangs is ended then.
const LIMIT: u32 = 1800;

/// How much longer than on bare metal everything may take, for the tests'
/// `FLANNEL_TEST_PATIENCE`.
const PATIENCE: u32 = 8;

/// What the guest's init says when it has done everything.
pub(crate) const DONE: &str = "guest: done, programs that failed:";

/// Cases of one test program.
struct Cases {
    program: &'static str,
    /// Their names; none: all of the program's.
    names: &'static [&'static str],
    /// Of [`RELEASES`], those that run them. Any other kernel runs everything.
    on: &'static [&'static str],
    /// They need what only the emulated machine has: two network cards on one
    /// wire, or kinds of links that are modules of Debian's kernels.
    only_here: bool,
}

const fn cases_of(program: &'static str, names: &'static [&'static str]) -> Cases {
    Cases { program, names, on: RELEASES, only_here: false }
}

const fn on(release: &'static [&'static str], cases: Cases) -> Cases {
    Cases { on: release, ..cases }
}

const fn only_here(cases: Cases) -> Cases {
    Cases { only_here: true, ..cases }
}

/// The cases that say something about a kernel. All agents start as they do by
/// default or with clsact filters, which is what a kernel without tcx has. To
/// keep the run short, a kernel takes only what no other kernel shows.
const CASES: &[Cases] = &[
    on(&["6.1"], cases_of("kernels", &[])),
    on(&["6.12"], cases_of("kernels", &["default_options_attach_in_the_kernels_best_form"])),
    cases_of("complexity", &[]),
    on(&["6.1"], cases_of("connectivity", &["datapath_auto_chooses_ebpf_here"])),
    on(&["6.1"], cases_of("fallback", &["no_capability", "a_program_that_the_verifier_refuses"])),
    on(
        &["6.1"],
        cases_of(
            "restart",
            &["killed_and_started_with_clsact_filters", "stopped_with_clsact_filters"],
        ),
    ),
    on(&["6.1"], cases_of("cleanup", &["clsact"])),
    on(&["6.1"], cases_of("xdp", &["native_carries_udp_and_tcp_whole", "cleanup_removes_it"])),
    on(&["6.1"], only_here(cases_of("xdp", &["auto_takes_a_network_card"]))),
    on(
        &["6.12"],
        only_here(cases_of(
            "devices",
            &[
                "a_vlan_underlay_carries_the_fast_path",
                "a_bond_underlay_carries_the_fast_path_before_and_after_a_failover",
                "a_vrf_underlay_carries_the_fast_path",
                "pods_on_macvlan_ipvlan_and_netkit_are_reached",
            ],
        )),
    ),
];

/// Names of the cases that no other machine can run.
pub(crate) fn only_here_names() -> impl Iterator<Item = &'static str> {
    CASES.iter().filter(|cases| cases.only_here).flat_map(|cases| cases.names.iter().copied())
}

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
    let chosen = CASES.iter().filter(|cases| runs_on(cases, release));
    let lines: Vec<String> = chosen.filter_map(|cases| line(cases, filter)).collect();
    if lines.is_empty() {
        return Ok(None);
    }
    boot(release, Some(agent), &lines).map(Some)
}

fn runs_on(cases: &Cases, release: &str) -> bool {
    cases.on.contains(&release) || !RELEASES.contains(&release)
}

/// The command line in the guest; none if the filter leaves no case.
fn line(cases: &Cases, filter: Option<&str>) -> Option<String> {
    let words = match (cases.names, filter) {
        // Programs that run whole know their cases' names themselves.
        ([], filter) => filter.unwrap_or_default().to_owned(),
        (names, filter) => {
            let left = names.iter().filter(|name| filter.is_none_or(|part| name.contains(part)));
            let left: Vec<&str> = left.copied().collect();
            if left.is_empty() {
                return None;
            }
            format!("--exact {}", left.join(" "))
        }
    };
    Some(format!("{} --test-threads=1 {words}", cases.program))
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
    let names: BTreeSet<&str> = CASES.iter().map(|cases| cases.program).collect();
    for name in &names {
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
    for name in names {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{CASES, RELEASES, line, only_here_names, runs_on};
    use crate::workspace::root;

    fn lines(release: &str, filter: Option<&str>) -> Vec<String> {
        let chosen = CASES.iter().filter(|cases| runs_on(cases, release));
        chosen.filter_map(|cases| line(cases, filter)).collect()
    }

    #[test]
    fn each_kernel_runs_its_cases_and_another_kernel_all() {
        let every = lines("5.10", None);
        assert_eq!(every.len(), CASES.len());
        for release in RELEASES {
            let lines = lines(release, None);
            assert!(lines.iter().any(|line| line.starts_with("kernels ")), "{lines:?}");
            assert!(lines.len() < every.len(), "{lines:?}");
        }
    }

    #[test]
    fn a_filter_leaves_what_it_names() {
        let lines = lines("6.12", Some("netkit"));
        // A program that runs whole is asked by the filter itself.
        assert_eq!(lines[0], "complexity --test-threads=1 netkit");
        assert!(lines[1].starts_with("devices --test-threads=1 --exact pods_on_macvlan"));
        assert_eq!(lines.len(), 2, "{lines:?}");
    }

    /// A case that is misspelt here, or not listed, would run nowhere.
    #[test]
    fn every_listed_case_exists_and_those_of_devices_are_all_listed() {
        let mut listed = BTreeSet::new();
        for cases in CASES {
            let path = root().join("tests/tests").join(cases.program).with_extension("rs");
            let text = std::fs::read_to_string(&path).unwrap();
            for name in cases.names {
                assert!(text.contains(&format!("\nfn {name}(")), "{name} in {}", path.display());
                listed.insert(*name);
            }
        }
        let text = std::fs::read_to_string(root().join("tests/tests/devices.rs")).unwrap();
        let own = text.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next());
        for name in own {
            assert!(listed.contains(name), "{name}");
            assert!(only_here_names().any(|known| known == name), "{name}");
        }
    }
}
