//! The data path, which opens beside the start: the verifier takes its time. Leases,
//! device and rules are taken care of meanwhile.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use flannel_core::backend::{Backend, Reaches};
use flannel_core::config::NetworkConfig;
use flannel_core::status::{DatapathKind, PacketRulesMode, What};
use flannel_core::underlay::Underlay;
use tokio::task::JoinHandle;

use super::start;
use crate::bpf::{self, Ahead, FastPath, Needs, XdpMode};
use crate::cli::{DatapathMode, Options};
use crate::datapath::{self, Demanded, Opened};
use crate::firewall::packet_rules::follow::RulesFollower;
use crate::kernel::netlink::RealKernel;
use crate::kernel::{Kernel as _, KernelError};
use crate::reconcile::packet_rules;
use crate::status::{Shared, SharedDatapath, lock};
use crate::task;

/// The process that is started ahead has ended by then, if nobody wanted it.
const PREPARED: Duration = Duration::from_secs(6);

/// A start waits so long for a data path that needs no verifier.
const PINNED: Duration = Duration::from_millis(15);

/// What is made for the data path before it is known what the node needs.
pub(super) struct Preparing(Option<JoinHandle<Option<Ahead>>>);

impl Preparing {
    /// Begins with it.
    pub(super) fn begin(options: &Options) -> Self {
        let (mode, programs) = (options.datapath, options.programs.clone());
        Self(Some(tokio::task::spawn_blocking(move || datapath::ahead(mode, &programs))))
    }

    /// Waits for `config`. Where that takes long, nothing is kept for it.
    pub(super) async fn during<T>(&mut self, config: impl Future<Output = T>) -> T {
        let mut config = pin!(config);
        match tokio::time::timeout(PREPARED, &mut config).await {
            Ok(config) => config,
            Err(_) => {
                drop(self.take().await);
                config.await
            }
        }
    }

    async fn take(&mut self) -> Option<Ahead> {
        task::joined(self.0.take()?.await).await.ok().flatten()
    }
}

/// A data path that is being opened, and what is done once it is.
pub(super) struct Opening {
    task: JoinHandle<Result<Opened, Demanded>>,
    /// No verifier may be needed: there are programs of the run before, or none are wanted.
    quick: bool,
    config: NetworkConfig,
    mode: DatapathMode,
    pin_dir: PathBuf,
    /// Within which rules that judge each packet have to count, and how often they are read
    /// in any case; `None` where nobody asks.
    rules_every: Option<(Duration, Duration)>,
    shared: Shared,
    datapath: SharedDatapath,
}

impl Opening {
    /// Begins to open it.
    ///
    /// # Errors
    /// The links cannot be listed.
    pub(super) async fn begin(
        options: &Options,
        kernel: &RealKernel,
        config: &NetworkConfig,
        underlay: &Underlay,
        preparing: &mut Preparing,
        (shared, datapath): (&Shared, &SharedDatapath),
    ) -> Result<Self, KernelError> {
        let card = match options.programs.xdp {
            XdpMode::Native => true,
            XdpMode::Auto => start::is_card(&kernel.links().await?, underlay),
            XdpMode::Generic | XdpMode::Off => false,
        };
        let (mode, programs) = (options.datapath, options.programs.clone());
        let wanted = mode != DatapathMode::Kernel && config.backend.facts().has_programs();
        let quick = !wanted || bpf::are_pinned(&programs.pin_dir);
        let (backend, underlay) = (config.backend.clone(), underlay.clone());
        let needs = needs(mode, &backend, card);
        let ahead = preparing.take().await;
        let task = tokio::task::spawn_blocking(move || match backend.facts().has_programs() {
            true => datapath::open(mode, &programs, (needs, ahead), &underlay),
            false => datapath::without(mode, &programs, backend.kind()),
        });
        let asked = &options.fast_path;
        let respected =
            asked.packet_rules == PacketRulesMode::Respect && asked.mode != FastPath::Off;
        Ok(Self {
            task,
            quick,
            config: config.clone(),
            mode,
            pin_dir: options.programs.pin_dir.clone(),
            rules_every: respected.then_some((asked.window, options.resync_interval)),
            shared: shared.clone(),
            datapath: SharedDatapath::clone(datapath),
        })
    }

    /// One that ends with the task.
    #[cfg(test)]
    pub(super) fn of(
        task: JoinHandle<Result<Opened, Demanded>>,
        config: NetworkConfig,
        shared: Shared,
        datapath: SharedDatapath,
    ) -> Self {
        Self {
            task,
            quick: false,
            config,
            mode: DatapathMode::Auto,
            pin_dir: PathBuf::from("/nonexistent"),
            rules_every: None,
            shared,
            datapath,
        }
    }

    /// Waits a moment, in which programs of the run before are open. On a first start it
    /// would be for nothing.
    pub(super) async fn soon(&mut self) -> Option<Result<Option<RulesFollower>, Demanded>> {
        if !self.quick {
            return None;
        }
        tokio::time::timeout(PINNED, self.opened()).await.ok()
    }

    /// Waits until it is open, and lets others use it. Returns who reads the rules that
    /// keep flows from its fast path. Cancel safe; not to be called again then.
    ///
    /// # Errors
    /// `--datapath=ebpf` was asked for, and cannot be had.
    pub(super) async fn opened(&mut self) -> Result<Option<RulesFollower>, Demanded> {
        let opened = task::joined((&mut self.task).await).await;
        let opened = opened.unwrap_or_else(|panicked| {
            datapath::refused(self.mode, &self.pin_dir, format!("opening it: {panicked}"))
        })?;
        Ok(self.take(opened))
    }

    /// Tells which data path it is.
    fn take(&self, opened: Opened) -> Option<RulesFollower> {
        let (mode, reason) = match opened {
            Opened::Ebpf(loaded) => {
                *lock(&self.datapath) = Some(loaded);
                (DatapathKind::Ebpf, None)
            }
            Opened::Kernel(_) if self.config.backend.facts().reaches() == Reaches::Process => {
                (DatapathKind::UdpProxy, None)
            }
            Opened::Kernel(reason) => (DatapathKind::Kernel, reason),
        };
        {
            let mut state = self.shared.lock();
            state.datapath.mode = Some(mode);
            state.datapath.reason.clone_from(&reason);
            state.note(What::Datapath { mode, reason });
        }
        let (window, every) = self.rules_every.filter(|_| mode == DatapathKind::Ebpf)?;
        let overlay = packet_rules::overlay(self.config.network, &self.config.backend);
        Some(RulesFollower::start(overlay, window, every))
    }
}

/// The programs that have to be there when the agent is ready. Pods' programs are loaded
/// after it where there are no pods; but who demands eBPF wants to know at once.
fn needs(mode: DatapathMode, backend: &Backend, card: bool) -> Needs {
    let reaches = backend.facts().reaches();
    match mode {
        DatapathMode::Ebpf => Needs::all(card),
        DatapathMode::Auto | DatapathMode::Kernel => {
            Needs { tunnel: reaches.by_vteps(), direct: reaches.directly(), pods: false, card }
        }
    }
}
