//! End-to-end cases under another kernel: Debian's, in a virtual machine whose
//! processor qemu emulates in software, so that no hardware support is asked
//! for. The machine has no disk: its initramfs holds the modules, the tools and
//! the tests' programs.

mod image;
mod package;

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::programs::{E2E, Programs};

const AGENT: &str = "flannel-agent";

/// The kernels that `cargo xtask test` boots at its end, side by side.
pub(crate) const RELEASES: &[&str] = &["6.1", "6.12"];

/// What a run may take, in seconds; a guest that hangs is ended then.
const LIMIT: u32 = 1800;

/// How much longer than on bare metal everything may take, for the tests'
/// `FLANNEL_TEST_PATIENCE`.
const PATIENCE: u32 = 8;

/// What the kernel says, in its directory.
const CONSOLE: &str = "console.log";

/// What the guest's init says when it has done everything.
pub(crate) const DONE: &str = "guest: done, programs that failed:";

/// End-to-end cases of one module.
struct Cases {
    module: &'static str,
    names: &'static [&'static str],
    /// Of [`RELEASES`], those that run them. Any other kernel runs everything.
    on: &'static [&'static str],
    /// Other cases show the same of this kernel, or nearly: only `--kernel` runs them.
    asked_for: bool,
    /// They need what only the emulated machine has: two network cards on one
    /// wire, kinds of links that are modules of Debian's kernels, or programs that
    /// watch others, which some hosts' kernels refuse.
    only_here: bool,
}

impl Cases {
    /// Their names as libtest has them.
    fn paths(&self) -> impl Iterator<Item = String> {
        self.names.iter().map(|name| format!("{}::{name}", self.module))
    }
}

const fn cases_of(module: &'static str, names: &'static [&'static str]) -> Cases {
    Cases { module, names, on: RELEASES, asked_for: false, only_here: false }
}

const fn on(release: &'static [&'static str], cases: Cases) -> Cases {
    Cases { on: release, ..cases }
}

const fn asked_for(cases: Cases) -> Cases {
    Cases { asked_for: true, ..cases }
}

const fn only_here(cases: Cases) -> Cases {
    Cases { only_here: true, ..cases }
}

/// The cases that say something about a kernel. All agents start as they do by
/// default or with clsact filters, which is what a kernel without tcx has. To
/// keep the run short, a kernel takes only what no other kernel shows.
const CASES: &[Cases] = &[
    cases_of("kernels", &["default_options_attach_in_the_kernels_best_form"]),
    on(
        &["6.1"],
        cases_of(
            "kernels",
            &[
                "tcx_is_refused_where_the_kernel_has_none",
                "every_packets_ticket_is_there_at_its_exit",
                "cleanup_leaves_nothing_of_the_programs",
            ],
        ),
    ),
    cases_of("complexity", &["programs_cost_what_the_table_says"]),
    on(&["6.1"], cases_of("restart", &["killed_and_started_with_clsact_filters"])),
    on(&["6.1"], cases_of("xdp", &["native_carries_udp_and_tcp_whole"])),
    on(&["6.1"], asked_for(cases_of("connectivity", &["datapath_auto_chooses_ebpf_here"]))),
    on(
        &["6.1"],
        asked_for(cases_of("fallback", &["no_capability", "a_program_that_the_verifier_refuses"])),
    ),
    on(&["6.1"], asked_for(cases_of("restart", &["stopped_with_clsact_filters"]))),
    on(&["6.1"], asked_for(cases_of("cleanup", &["clsact"]))),
    on(&["6.1"], asked_for(cases_of("xdp", &["cleanup_removes_it"]))),
    on(&["6.1"], only_here(cases_of("xdp", &["auto_takes_a_network_card"]))),
    on(&["6.1"], only_here(cases_of("clock", &["a_clock_that_is_set_changes_nothing"]))),
    on(&["6.1"], only_here(cases_of("monitor", &["packets_are_told_with_hook_and_outcome"]))),
    on(&["6.12"], only_here(cases_of("monitor", &["carried_packets_are_told_and_counted"]))),
    on(
        &["6.12"],
        only_here(cases_of(
            "devices",
            &[
                "a_vlan_underlay_carries_the_fast_path",
                "a_bond_underlay_carries_the_fast_path_before_and_after_a_failover",
                "a_vrf_underlay_carries_the_fast_path",
                "an_underlay_address_without_a_wire_is_served_or_said_not_to_be",
                "pods_on_macvlan_ipvlan_and_netkit_are_reached_and_told_of",
            ],
        )),
    ),
];

/// The cases that no other machine can run.
pub(crate) fn only_here_cases() -> impl Iterator<Item = String> {
    CASES.iter().filter(|cases| cases.only_here).flat_map(Cases::paths)
}

/// Fetches what a run needs, unless it is there: the kernel's package.
///
/// # Errors
/// The package cannot be had.
pub(crate) fn prepare(release: &str) -> Result<()> {
    package::get(release).map(|_| ())
}

/// The cases that a kernel runs, of those whose name contains one of `filter`, if
/// there is one. `asked_for`: this kernel was named.
pub(crate) fn chosen(release: &str, asked_for: bool, filter: &[&str]) -> Vec<String> {
    let all = !RELEASES.contains(&release);
    let chosen = CASES
        .iter()
        .filter(|cases| all || cases.on.contains(&release) && (asked_for || !cases.asked_for));
    let fits = |path: &String| filter.is_empty() || filter.iter().any(|part| path.contains(part));
    chosen.flat_map(Cases::paths).filter(fits).collect()
}

/// A command that boots the kernel, runs these cases and prints what they print;
/// its last line begins with [`DONE`].
///
/// # Errors
/// Something cannot be built or fetched.
pub(crate) fn cases(release: &str, programs: &Programs, names: &[String]) -> Result<Command> {
    let line = format!("{E2E} --test-threads=1 --exact {}", names.join(" "));
    boot(release, programs, &line)
}

/// A command that boots the kernel and runs one program of the lab.
///
/// # Errors
/// Something cannot be built or fetched.
pub(crate) fn program(release: &str, programs: &Programs, name: &str) -> Result<Command> {
    boot(release, programs, name)
}

fn boot(release: &str, programs: &Programs, line: &str) -> Result<Command> {
    let kernel = package::get(release)?;
    // The agent that `FLANNEL_AGENT` names, as the cases have it.
    let agent = match std::env::var_os("FLANNEL_AGENT") {
        Some(path) => path.into(),
        None => programs.path(AGENT)?.to_path_buf(),
    };
    let mut files = vec![(AGENT, agent), (E2E, programs.e2e()?.to_path_buf())];
    for name in ["flannel-traffic", "flannel-complexity"] {
        files.push((name, programs.path(name)?.to_path_buf()));
    }
    let image = image::build(&kernel, &files, line)?;
    Ok(machine(&kernel.image, &image, &kernel.dir.join(CONSOLE)))
}

/// The last lines, at most `count`, that this kernel said when it ran last.
pub(crate) fn last_lines(release: &str, count: usize) -> Vec<String> {
    let said = std::fs::read(package::dir(release).join(CONSOLE)).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.lines().map(str::to_owned).collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

/// The machine: what the kernel says goes to a file, what the init and the
/// tests say to standard output. Its processors take turns on one thread. On two, one may
/// run stale code while the other patches the kernel, which crashes then by an int3 that
/// it put there itself ("Oops: int3", seen with qemu 7.2).
fn machine(kernel: &Path, initramfs: &Path, console: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", &LIMIT.to_string(), "qemu-system-x86_64"]);
    command.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "2560"]);
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

    use super::{CASES, Cases, RELEASES, chosen, only_here_cases};
    use crate::workspace::root;

    #[test]
    fn each_kernel_runs_its_cases_and_another_kernel_all() {
        let every = chosen("5.10", false, &[]);
        assert_eq!(every.len(), CASES.iter().map(|cases| cases.names.len()).sum::<usize>());
        for release in RELEASES {
            let some = chosen(release, true, &[]);
            assert!(some.iter().any(|path| path.starts_with("kernels::")), "{some:?}");
            assert!(some.len() < every.len(), "{some:?}");
            assert!(chosen(release, false, &[]).iter().all(|path| some.contains(path)));
        }
    }

    #[test]
    fn a_filter_leaves_what_it_names() {
        let left = chosen("6.12", false, &["netkit"]);
        assert_eq!(left, ["devices::pods_on_macvlan_ipvlan_and_netkit_are_reached_and_told_of"]);
        assert!(chosen("6.1", true, &["netkit"]).is_empty());
    }

    /// A case that is misspelt here, or not listed, would run nowhere.
    #[test]
    fn every_listed_case_exists_and_modules_about_kernels_are_listed_whole() {
        let cases = root().join("tests/tests/e2e");
        let mut listed = BTreeSet::new();
        for Cases { module, names, .. } in CASES {
            let path = cases.join(module).with_extension("rs");
            let text = std::fs::read_to_string(&path).unwrap();
            for name in *names {
                assert!(text.contains(&format!("\nfn {name}(")), "{name} in {}", path.display());
                listed.insert(format!("{module}::{name}"));
            }
        }
        let here: BTreeSet<_> = only_here_cases().collect();
        for (module, known) in [("complexity", &listed), ("kernels", &listed), ("devices", &here)] {
            let text = std::fs::read_to_string(cases.join(module).with_extension("rs")).unwrap();
            let own = text.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next());
            for name in own {
                assert!(known.contains(&format!("{module}::{name}")), "{module}::{name}");
            }
        }
    }
}
