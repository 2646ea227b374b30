//! The daemon: start in order, then the loop.

pub mod keeper;
mod serve;
mod start;

use std::path::PathBuf;

use ipnetwork::Ipv4Network;

use crate::bpf::LoadOptions;
use crate::cli::Options;
use crate::datapath::{self, Opened};
use crate::desired;
use crate::files::lock::{LockError, StateLock};
use crate::files::state;
use crate::firewall::nft::Nft;
use crate::kernel::netlink::RealKernel;
use crate::kernel::sysctl::Sysctl;
use crate::kernel::{KernelError, events};
use crate::reconcile::{Identity, Reconciler, Settings};
use crate::source::SourceError;
use crate::status::{LeaseStatus, Shared, SharedDatapath, lock};
use crate::underlay::UnderlayError;
use crate::{control, notify};

/// Why the daemon did not start. Each ends it with exit code 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another agent has the state directory, or it cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The control socket cannot be made.
    #[error("control socket {}: {source}", path.display())]
    Control {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
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
    #[error("the VXLAN device could not be set up: {0}")]
    Device(String),
    /// A signal handler could not be installed.
    #[error("signal handler: {0}")]
    Signal(std::io::Error),
}

/// Runs the daemon until it is told to stop. Everything stays in place then,
/// and goes on forwarding.
///
/// # Errors
/// It could not start.
pub async fn run(options: Options) -> Result<(), StartError> {
    let mut shutdown = serve::Shutdown::install().map_err(StartError::Signal)?;
    let _lock = StateLock::take(&options.state_dir)?;
    let shared = Shared::default();
    let datapath = SharedDatapath::default();
    control::serve(&options.state_dir, shared.clone(), SharedDatapath::clone(&datapath)).map_err(
        |source| StartError::Control { path: control::path(&options.state_dir), source },
    )?;
    tokio::select! {
        served = start_and_serve(&options, &shared, &datapath) => served,
        () = shutdown.requested() => {
            notify::stopping();
            tracing::info!("stopping; device, routes, rules, programs and lease stay");
            Ok(())
        }
    }
}

async fn start_and_serve(
    options: &Options,
    shared: &Shared,
    datapath: &SharedDatapath,
) -> Result<(), StartError> {
    let source = start::connect(options).await?;
    let config = start::wait_for_config(&*source, shared).await;
    shared.lock().store_api = source.api();
    let crate::config::Backend::Vxlan(vxlan) = &config.backend;
    let kernel = RealKernel::open()?;
    let underlay = start::choose_underlay(&kernel, options).await?;
    tracing::info!(
        interface = underlay.name,
        address = %underlay.address,
        public_ip = %underlay.public_ip,
        mtu = underlay.mtu,
        "using this underlay"
    );
    let device = format!("flannel.{}", vxlan.vni);
    let before = start::Before::read(options, &kernel, &device).await;
    let (lease, vtep_mac) =
        start::acquire(&*source, shared, &config, vxlan.vni, underlay.public_ip, &before).await?;
    tracing::info!(subnet = %lease.subnet, public_ip = %lease.attrs.public_ip, mac = %vtep_mac, "lease acquired");
    shared.lock().lease = Some(LeaseStatus {
        subnet: lease.subnet,
        public_ip: lease.attrs.public_ip,
        expires: lease.expires,
    });

    start::retire_device(&kernel, &before, &device).await;
    let load = LoadOptions { pin_dir: options.pin_dir.clone(), attach: options.attach };
    let opened = datapath::open(options.datapath, &load, &underlay)?;
    match opened {
        Opened::Ebpf(loaded) => {
            *lock(datapath) = Some(loaded);
            shared.lock().datapath.mode = "ebpf";
        }
        Opened::Kernel(reason) => {
            let mut state = shared.lock();
            state.datapath.mode = "kernel";
            state.datapath.reason = reason;
        }
    }
    // Subscribed before the first look, so that no change falls between.
    let events = events::subscribe()?;
    let identity = Identity {
        subnet: lease.subnet,
        network: config.network,
        vtep_mac,
        underlay,
        vxlan: vxlan.clone(),
    };
    let settings = Settings {
        iface: options.iface.clone(),
        public_ip: options.public_ip,
        masquerade: options.ip_masq,
        fast_path: options.fast_path == crate::cli::FastPath::Confirmed,
        window: options.fast_path_window,
        verify_source: options.verify_source,
        attach_iface: options.attach_iface.clone(),
    };
    let reconciler = Reconciler::new(
        kernel,
        Nft::default(),
        SharedDatapath::clone(datapath),
        shared.clone(),
        Sysctl::default(),
        settings,
        identity,
    );
    let remembered = before.state.as_ref().map(|state| state.sysctls.clone()).unwrap_or_default();
    serve::Loop::new(options, source, config.network, lease, reconciler, shared.clone(), remembered)
        .run(events)
        .await
}

/// Subnet and MAC that this node had, for the files.
fn previous_subnet(
    state: Option<&state::NodeState>,
    env: Option<Ipv4Network>,
) -> Option<Ipv4Network> {
    state.map(|state| state.subnet).or(env)
}
