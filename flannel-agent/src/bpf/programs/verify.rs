//! Makes the maps and lets the verifier see the programs.

use std::cmp::Reverse;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};

use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use flannel_ebpf::abi::{self, program};

use crate::bpf::cpus::possible_cpus;
use crate::bpf::interrupted::unless_interrupted;
use crate::bpf::pin::PinDir;
use crate::bpf::{BpfError, flow_table, peer_stats};

/// Makes the maps. With `pins` maps of an earlier run are used, and new ones pinned.
pub(super) fn make_maps(
    mut loader: EbpfLoader<'_>,
    object: &[u8],
    flow_table: u32,
    pins: Option<&PinDir>,
) -> Result<Ebpf, BpfError> {
    // The programs read no structures of the kernel: its types would only take 20 MB
    // while they are loaded.
    loader.btf(None);
    loader.map_max_entries(abi::map::FLOWS4, flow_table::entries(flow_table)?);
    let cpus = possible_cpus()?;
    loader.map_max_entries(abi::map::PEER_STATS, peer_stats::entries()?);
    loader.map_max_entries(abi::map::TICKETS, abi::TicketNumbers::of(cpus).region(cpus));
    if let Some(pins) = pins {
        for name in abi::map::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    loader.load(object).map_err(|error| BpfError::new("load maps of", "flannel-ebpf.bpf.o", &error))
}

/// Lets the verifier see the wanted programs, one for each CPU at a time: each takes it
/// long.
pub(super) fn verify(ebpf: &mut Ebpf, wanted: impl Fn(&str) -> bool) -> Result<(), BpfError> {
    let mut waiting: Vec<_> = ebpf.programs_mut().filter(|(name, _)| wanted(name)).collect();
    waiting.sort_by_key(|(name, _)| Reverse(turn(name)));
    let waiting = Mutex::new(waiting);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let verify_all =
        || std::iter::from_fn(next).try_for_each(|(name, found)| load_one(name, found));
    let at_once = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        // This thread is one of them: the kernel would start all of them on the other CPUs.
        let started: Vec<_> = (1..at_once).map(|_| scope.spawn(verify_all)).collect();
        let here = verify_all();
        let ended = started.into_iter().map(|thread| match thread.join() {
            Ok(verified) => verified,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.fold(here, Result::and)
    })
}

/// When the verifier sees a program: those that take it longest come first, or the last
/// one would keep the others' CPUs waiting. The order is that of
/// `flannel-ebpf/prebuilt/COMPLEXITY`.
fn turn(name: &str) -> usize {
    const SLOW: [&str; 5] = [
        program::FROM_UNDERLAY,
        program::TO_OVERLAY,
        program::TO_POD,
        program::TO_UNDERLAY,
        program::FROM_POD,
    ];
    SLOW.iter().position(|slow| *slow == name).unwrap_or(SLOW.len())
}

/// One that refuses the XDP program takes nothing else away.
fn load_one(name: &str, found: &mut Program) -> Result<(), BpfError> {
    let loaded = match found {
        Program::SchedClassifier(found) => unless_interrupted(|| found.load()),
        Program::Xdp(found) => unless_interrupted(|| found.load()),
        _ => Ok(()),
    };
    let loaded = loaded.map_err(|error| BpfError::new("load program", name, &error));
    match loaded {
        Err(error) if name == program::FROM_WIRE => {
            tracing::info!(%error, "XDP unavailable");
            Ok(())
        }
        loaded => loaded,
    }
}

#[cfg(test)]
mod tests {
    use super::turn;

    /// Instructions that the newest of the table's kernels goes through.
    fn verified() -> Vec<(&'static str, u32)> {
        let table = include_str!("../../../../flannel-ebpf/prebuilt/COMPLEXITY");
        let rows = table.lines().filter(|line| !line.starts_with(['#', ' ']));
        rows.filter_map(|row| {
            let mut words = row.split_whitespace();
            Some((words.next()?, words.next_back()?.parse().ok()?))
        })
        .collect()
    }

    #[test]
    fn what_takes_the_verifier_longest_comes_first() {
        let programs = verified();
        assert!(programs.len() > 5, "{programs:?}");
        for (name, cost) in &programs {
            let later = programs.iter().filter(|(other, _)| turn(other) > turn(name));
            for (other, less) in later {
                assert!(less < cost, "{other} takes longer than {name}");
            }
        }
    }
}
