//! What BPF can do on this node, by trying; and whose programs are on devices.

use std::path::Path;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};
use flannel_core::check::facts::{Feature, Foreign, Known, Unknown};
use flannel_ebpf::abi::program;
use nix::net::if_::if_nametoindex;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::sys::{self, TcxHook};

/// The kernel's types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Tries everything that the programs use, and what they are better with.
pub fn features() -> Vec<(Feature, Known<bool>)> {
    let programs =
        [(Feature::Classifier, ProgramType::SchedClassifier), (Feature::Xdp, ProgramType::Xdp)];
    let maps = [
        (Feature::Hash, MapType::Hash),
        (Feature::LruHash, MapType::LruHash),
        (Feature::Array, MapType::Array),
        (Feature::PerCpuArray, MapType::PerCpuArray),
        (Feature::LpmTrie, MapType::LpmTrie),
        (Feature::RingBuffer, MapType::RingBuf),
    ];
    let programs = programs
        .map(|(feature, kind)| (feature, is_program_supported(kind).map_err(Unknown::because)));
    let maps =
        maps.map(|(feature, kind)| (feature, is_map_supported(kind).map_err(Unknown::because)));
    let mut features: Vec<_> = programs.into_iter().chain(maps).collect();
    features.push((Feature::Tcx, has_tcx()));
    features.push((Feature::Btf, Ok(Path::new(BTF).exists())));
    features
}

/// Before Linux 6.6 the question itself is refused.
fn has_tcx() -> Known<bool> {
    let lo = if_nametoindex("lo").map_err(Unknown::because)?;
    match sys::tcx_programs(lo, TcxHook::Ingress) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(Unknown::because(error)),
    }
}

/// Whether a directory, or the next one above it that is there, is on a bpffs.
pub fn is_on_bpffs(path: &Path) -> Known<bool> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    statfs(there).map(|found| found.filesystem_type() == BPF_FS_MAGIC).map_err(Unknown::because)
}

/// Programs on a device's tcx hooks that are no agent's; none where there is no tcx.
pub fn foreign_programs(ifindex: u32, device: &str) -> Known<Vec<Foreign>> {
    let mut foreign = Vec::new();
    for (hook, side) in [(TcxHook::Ingress, "ingress"), (TcxHook::Egress, "egress")] {
        let attached = match sys::tcx_programs(ifindex, hook) {
            Ok(attached) => attached,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
                continue;
            }
            Err(error) => return Err(Unknown::because(error)),
        };
        for sys::Attached { program: id, .. } in attached {
            let name = sys::program_name(id).map_err(Unknown::because)?;
            if !program::ALL.contains(&name.as_str()) {
                let what = format!("the program {name} (id {id})");
                foreign.push(Foreign { device: device.to_owned(), side, what });
            }
        }
    }
    Ok(foreign)
}

/// Names of the programs on a device's tcx hooks. What cannot be read is left out.
pub fn programs_on(ifindex: u32) -> Vec<String> {
    let hooks = [TcxHook::Ingress, TcxHook::Egress];
    let attached = hooks.into_iter().filter_map(|hook| sys::tcx_programs(ifindex, hook).ok());
    attached.flatten().filter_map(|one| sys::program_name(one.program).ok()).collect()
}
