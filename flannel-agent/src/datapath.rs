//! Whether eBPF carries packets on this node: `--datapath`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use flannel_core::backend::BackendKind;
use flannel_core::underlay::Underlay;

use crate::bpf::loader::Loaded;
use crate::bpf::{self, Ahead, BpfError, Datapath, Needs, ProgramOptions};
use crate::cli::DatapathMode;
use crate::memory;

/// The data path that was opened, or why it is the kernel's.
pub enum Opened {
    /// eBPF, loaded, not yet attached.
    Ebpf(Box<dyn Datapath>),
    /// The kernel path, with the reason if it was not asked for.
    Kernel(Option<String>),
}

/// eBPF was demanded (`--datapath=ebpf`) and cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("--datapath=ebpf cannot be had: {0}")]
pub struct Demanded(pub String);

/// Opens the data path that `mode` asks for. On the kernel path no program of
/// an earlier run stays attached: nobody would keep its maps true. `needs`: what the
/// node begins with; `ahead`: [`ahead`].
///
/// # Errors
/// `mode` is `ebpf` and something refuses.
pub fn open(
    mode: DatapathMode,
    options: &ProgramOptions,
    (needs, ahead): (Needs, Option<Ahead>),
    underlay: &Underlay,
) -> Result<Opened, Demanded> {
    if mode == DatapathMode::Kernel {
        let _told = retire(&options.pin_dir);
        return Ok(Opened::Kernel(None));
    }
    match try_open(options, (needs, ahead), underlay) {
        Ok(loaded) => Ok(Opened::Ebpf(Box::new(loaded))),
        Err(reason) => refused(mode, &options.pin_dir, reason),
    }
}

/// Starts to make what an eBPF data path needs in any case, while the store is asked for the
/// network config. `None` where programs of the run before are there, or none can be loaded:
/// [`open`] says why.
pub fn ahead(mode: DatapathMode, options: &ProgramOptions) -> Option<Ahead> {
    let wanted = mode != DatapathMode::Kernel && !bpf::are_pinned(&options.pin_dir);
    let fits = || memory::refusal(options.flow_table_size).is_ok_and(|refusal| refusal.is_none());
    if !wanted || missing_capability().is_some() || !fits() {
        return None;
    }
    let started = Ahead::start(options);
    started.inspect_err(|error| tracing::debug!(%error, "program loader not started ahead")).ok()
}

/// What there is instead of eBPF, which cannot be had.
///
/// # Errors
/// `mode` is `ebpf`.
pub fn refused(mode: DatapathMode, pin_dir: &Path, reason: String) -> Result<Opened, Demanded> {
    if mode == DatapathMode::Ebpf {
        return Err(Demanded(reason));
    }
    tracing::warn!(reason, "eBPF data path unavailable; the kernel path carries everything");
    let _told = retire(pin_dir);
    Ok(Opened::Kernel(Some(reason)))
}

/// The kernel's data path for a backend that has no programs.
///
/// # Errors
/// `mode` is `ebpf`.
pub fn without(
    mode: DatapathMode,
    options: &ProgramOptions,
    backend: BackendKind,
) -> Result<Opened, Demanded> {
    let reason = format!("the backend {backend} has no eBPF data path");
    if mode == DatapathMode::Ebpf {
        return Err(Demanded(reason));
    }
    let _told = retire(&options.pin_dir);
    Ok(Opened::Kernel(Some(reason).filter(|_| mode != DatapathMode::Kernel)))
}

fn try_open(
    options: &ProgramOptions,
    (needs, ahead): (Needs, Option<Ahead>),
    underlay: &Underlay,
) -> Result<Loaded, String> {
    if let Some(reason) = underlay.ebpf_refusal() {
        return Err(reason);
    }
    if let Some(missing) = missing_capability() {
        return Err(format!(
            "the process lacks {missing}; give it CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN \
             (CAP_SYS_ADMIN before Linux 5.8)"
        ));
    }
    let size = options.flow_table_size;
    if let Some(reason) = memory::refusal(size).map_err(|error| error.to_string())? {
        return Err(reason);
    }
    Loaded::open(options, needs, ahead).map_err(|error| {
        error.log_verifier();
        match error.verifier_log.as_deref().map(last_lines) {
            Some(log) => format!("{error}; verifier: {log}"),
            None => error.to_string(),
        }
    })
}

fn missing_capability() -> Option<&'static str> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    if !has(Capability::CAP_BPF) && !has(Capability::CAP_SYS_ADMIN) {
        return Some("CAP_BPF");
    }
    if !has(Capability::CAP_PERFMON) && !has(Capability::CAP_SYS_ADMIN) {
        return Some("CAP_PERFMON");
    }
    if !has(Capability::CAP_NET_ADMIN) {
        return Some("CAP_NET_ADMIN");
    }
    None
}

/// What status shows of the verifier's log: its refusal, and the instruction
/// before it.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(4)..].join(" | ")
}

/// Detaches what earlier runs pinned in these directories. What could not be detached
/// stays among them, if it is not somebody else's by now.
pub fn retire_former(pin_dirs: &mut BTreeSet<PathBuf>) {
    pin_dirs.retain(|pin_dir| retire(pin_dir).is_err_and(|error| !error.foreign));
}

fn retire(pin_dir: &Path) -> Result<(), BpfError> {
    let retired = bpf::cleanup(pin_dir, false);
    match &retired {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => tracing::info!(pins = removed.len(), "programs of an earlier run detached"),
        Err(error) => tracing::warn!(%error, "programs of an earlier run not detached"),
    }
    retired.map(drop)
}
