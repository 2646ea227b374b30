//! The daemon: start in order, then the loop.

mod acquire;
mod answering;
mod config;
pub mod keeper;
mod open_files;
mod opening;
#[cfg(test)]
mod protocol;
mod serve;
mod shutdown;
mod single;
mod start;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use flannel_core::config::NetworkConfig;
use flannel_core::desired;
use flannel_core::firewall::upstream::Place;
use flannel_core::status::What;
use flannel_core::underlay::{Underlay, UnderlayError, Wish};
use ipnetwork::Ipv4Network;

use self::answering::Answering;
use self::opening::{Opening, Preparing};
use self::shutdown::Shutdown;
use crate::cli::{DatapathMode, Options};
use crate::control::ControlSocket;
use crate::datapath;
use crate::files::lock::{LockError, StateLock};
use crate::files::state::{self, ThisRun, Traces};
use crate::files::{leftovers, rules};
use crate::firewall::FirewallError;
use crate::firewall::chosen::Later;
use crate::healthz::HealthzError;
use crate::kernel::netlink::RealKernel;
use crate::kernel::sysctl::Sysctl;
use crate::kernel::{Kernel as _, KernelError, events};
use crate::metrics::Exporter;
use crate::reconcile::{Identity, LoopOptions, Reconciler};
use crate::responder;
use crate::source::SourceError;
use crate::status::{Shared, SharedDatapath, lock};
use crate::task::TaskEnded;
use crate::{control, healthz, memory, notify};

/// Why the daemon did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another agent has the state directory, or it cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Another agent has our device, network or pin directory.
    #[error(transparent)]
    Single(#[from] single::SingleError),
    /// The control socket cannot be made.
    #[error("listen on the control socket {}: {source}; see --state-dir", path.display())]
    Control {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Nobody can ask for our health.
    #[error(transparent)]
    Healthz(#[from] HealthzError),
    /// The firewall that was asked for cannot be used.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// Netlink cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// No interface for the underlay.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// The underlay has no room for VXLAN.
    #[error(transparent)]
    Mtu(#[from] desired::MtuTooSmall),
    /// The store cannot be used with these settings, or gives no lease.
    #[error("{call}: {source}")]
    Source {
        /// What was tried.
        call: &'static str,
        /// Why not.
        source: SourceError,
    },
    /// `--datapath=ebpf` cannot be had.
    #[error(transparent)]
    Datapath(#[from] datapath::Demanded),
    /// The device could not be made.
    #[error("device not set up: {0}")]
    Device(String),
    /// The backend host-gw, and peers could not send to us.
    #[error(
        "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which \
         breaks host-gw: {public_ip} is no address of {interface}, which has {address}"
    )]
    PublicIp {
        /// What the lease would say.
        public_ip: Ipv4Addr,
        /// Name of the interface.
        interface: String,
        /// Its address.
        address: Ipv4Addr,
    },
    /// The PublicIP is in use.
    #[error(
        "PublicIP {public_ip} is another node's, which runs and holds its lease ({holder}). Give \
         this node an address of its own (-public-ip, -iface): a cloned machine may have kept the \
         other's. If this node replaces the other, stop flannel there first"
    )]
    Duplicate {
        /// Ours, and the other node's.
        public_ip: Ipv4Addr,
        /// The other node's lease.
        holder: String,
    },
    /// The lease was lost while running, and `--on-lost-lease=exit`.
    #[error(
        "the lease of {subnet} is lost: {why}. Ending, as --on-lost-lease=exit says; device, \
         routes, rules and programs stay"
    )]
    LeaseLost {
        /// Our subnet.
        subnet: Ipv4Network,
        /// What became of it.
        why: String,
    },
    /// A task that was to last has ended.
    #[error(transparent)]
    Task(#[from] TaskEnded),
    /// Nobody could be answered.
    #[error("start the thread that answers others: {0}")]
    Thread(std::io::Error),
    /// A signal handler could not be installed.
    #[error("install a signal handler: {0}")]
    Signal(std::io::Error),
}

impl StartError {
    /// Exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::LeaseLost { .. } => 4,
            _ => 1,
        }
    }
}

/// Runs the daemon until it is told to stop. Everything stays in place then,
/// and goes on forwarding.
///
/// # Errors
/// It could not start, or its lease is lost and it is to end then.
pub async fn run(options: Options) -> Result<(), StartError> {
    open_files::raise();
    let mut shutdown = Shutdown::install().map_err(StartError::Signal)?;
    let mut state_lock = StateLock::take_soon(&options.state_dir).await?;
    let state_dir = &options.state_dir;
    for path in [state::path(state_dir), rules::path(state_dir), options.subnet_file.clone()] {
        leftovers::remove(&path);
    }
    let shared = Shared::default();
    shared.note(What::Started { version: env!("CARGO_PKG_VERSION").to_owned() });
    let datapath = SharedDatapath::default();
    let answering = Answering::start(&shared).map_err(StartError::Thread)?;
    let socket = {
        let _there = answering.enter();
        control::serve(&options.state_dir, shared.clone(), SharedDatapath::clone(&datapath))
            .map_err(|source| StartError::Control {
                path: control::path(&options.state_dir),
                source,
            })?
    };
    let exporter = Exporter::new(
        shared.clone(),
        SharedDatapath::clone(&datapath),
        options.metrics,
        options.programs.verify_source,
    );
    let (health, state) = (options.healthz.clone(), shared.clone());
    let health = async move { healthz::serve(&health, state, exporter).await };
    let _healthz = answering.run(health).await?;
    let told =
        Told { shared: &shared, datapath: &datapath, answering: &answering, socket: &socket };
    tokio::select! {
        served = start_and_serve(&options, told, &mut state_lock) => served,
        ended = shared.task_has_ended() => Err(ended.into()),
        () = shutdown.requested() => {
            notify::stopping();
            shared.note(What::Stopping);
            if let Some(datapath) = lock(&datapath).as_mut()
                && let Err(error) = datapath.leave()
            {
                tracing::warn!(%error, "programs not told that the agent stops");
            }
            tracing::info!("agent stops; device, routes, rules, programs and lease stay");
            Ok(())
        }
    }
}

/// What others are told of this node, and by whom.
#[derive(Clone, Copy)]
struct Told<'a> {
    shared: &'a Shared,
    datapath: &'a SharedDatapath,
    answering: &'a Answering,
    socket: &'a Arc<ControlSocket>,
}

async fn start_and_serve(
    options: &Options,
    told: Told<'_>,
    state_lock: &mut StateLock,
) -> Result<(), StartError> {
    let Told { shared, datapath, answering, socket } = told;
    let mut preparing = Preparing::begin(options);
    let source = start::connect(options).await?;
    let config = preparing.during(start::wait_for_config(&*source, shared)).await;
    // What has read the flags is not needed while all leases are listed.
    memory::give_back();
    shared.lock().store.api = source.api();
    let kernel = RealKernel::open()?;
    let device = config.backend.facts().device();
    let _single = only_one(options, &config, device.as_deref())?;
    let before = start::Before::read(options, &kernel, device.as_deref()).await;
    let (wish, underlay) = choose_underlay(options, &kernel, &config, &before).await?;
    let told = (shared, datapath);
    let opening =
        Opening::begin(options, &kernel, &config, &underlay, &mut preparing, told).await?;
    let (lease, vtep_mac) =
        acquire::acquire(&*source, shared, &config, underlay.public_ip, &before).await?;
    let mut traces = traces(options, &config, lease.subnet, &before);
    start::retire(&kernel, &mut traces, config.network, device.as_deref()).await;
    datapath::retire_former(&mut traces.former_pin_dirs);
    let _responder = (options.connectivity_port != 0).then(|| {
        let _there = answering.enter();
        responder::start(options.connectivity_port, config.network, shared.clone())
    });
    let identity = Identity {
        subnet: lease.subnet,
        network: config.network,
        vtep_mac,
        underlay,
        backend: config.backend.clone(),
    };
    let own = kernel.own();
    let reconciler = Reconciler::new(
        kernel,
        Later::new(options.firewall, traces.former_places.iter().copied().collect()),
        SharedDatapath::clone(datapath),
        shared.clone(),
        Sysctl::default(),
        settings(options, wish),
        identity,
    )
    .with_traces(traces);
    let _config = config::ConfigFollower::start(
        Arc::clone(&source),
        config,
        options.resync_interval,
        shared.clone(),
    );
    reconciler.watch().scope().set_own(own);
    // Subscribed before the first look, so that no change falls between.
    let events = events::subscribe(reconciler.watch().scope())?;
    // Nor is what has listed them while the first pass puts them into the kernel.
    memory::give_back();
    serve::Loop::new(options, state_lock, source, lease, reconciler, shared.clone())
        .looking_after(Arc::clone(socket))
        .run(events, Some(opening))
        .await
}

/// What earlier runs changed on the node or left there. The state file names it until it
/// is undone, so it is undone before the file is written anew, or written down there.
fn traces(
    options: &Options,
    config: &NetworkConfig,
    subnet: Ipv4Network,
    before: &start::Before,
) -> Traces {
    let pin_dir = &options.programs.pin_dir;
    let device = config.backend.facts().device();
    let present = ThisRun {
        node: Place { network: config.network, subnet },
        device: device.as_deref(),
        pin_dir: &std::path::absolute(pin_dir).unwrap_or_else(|_| pin_dir.clone()),
        tunnel_checksum: options.tunnel_checksum,
    };
    Traces::found(before.state.as_ref(), before.node, present)
}

/// Takes what one agent alone may have: network, device and pin directory.
fn only_one(
    options: &Options,
    config: &NetworkConfig,
    device: Option<&str>,
) -> Result<single::Single, single::SingleError> {
    let has_programs =
        options.datapath != DatapathMode::Kernel && config.backend.facts().has_programs();
    let pins = has_programs.then_some(options.programs.pin_dir.as_path());
    single::Single::take(config.network, device, pins)
}

/// The underlay, and what it is chosen by from now on.
async fn choose_underlay(
    options: &Options,
    kernel: &RealKernel,
    config: &NetworkConfig,
    before: &start::Before,
) -> Result<(Wish, Underlay), StartError> {
    let wish = Wish {
        familiar: before.familiar(&options.underlay),
        pods: Some(config.pods()),
        ..options.underlay.clone()
    };
    let underlay = start::choose_underlay(kernel, &wish).await?;
    if config.backend.facts().wants_own_address() {
        start::check_public_ip(&kernel.links().await?, &underlay)?;
    }
    Ok((wish, underlay))
}

/// What passes need of the flags, with what narrows the choice of the underlay.
fn settings(options: &Options, underlay: Wish) -> LoopOptions {
    LoopOptions {
        underlay,
        rules: options.rules,
        blackhole: options.ip_blackhole_route,
        fast_path: options.fast_path,
        programs: options.programs.clone(),
        tunnel_checksum: options.tunnel_checksum,
    }
}

/// Subnet and MAC that this node had, for the files.
fn previous_subnet(
    state: Option<&state::NodeState>,
    env: Option<Ipv4Network>,
) -> Option<Ipv4Network> {
    state.map(|state| state.subnet).or(env)
}
