//! `flannel-agent cleanup`: removes everything that is ours from this node.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use flannel_core::blackhole;
use flannel_core::checksum::TunnelChecksum;
use flannel_core::op::Op;
use flannel_core::subnet::within;
use flannel_core::text;
use ipnetwork::Ipv4Network;

use super::{complain, print};
use crate::backend::{self, udp};
use crate::bpf;
use crate::cli::CleanupArgs;
use crate::control;
use crate::files::lock::{LockError, StateLock};
use crate::files::rules;
use crate::files::state::{self, NodeState};
use crate::firewall::chosen;
use crate::kernel::netlink::RealKernel;
use crate::kernel::sysctl::Sysctl;
use crate::kernel::{Kernel as _, KernelError, PROTOCOL, clsact};

/// Tries every step, and prints what it did and what failed. Needs neither the
/// agent nor etcd; the lease stays in etcd until it runs out, so that a node
/// that comes back gets its subnet again.
///
/// With `--keep-device`, what flanneld goes on with stays: the device with its
/// routes, neighbour and FDB entries, direct routes, `subnet.env` and the
/// sysctls, which connections that are open rely on. The TUN device of udp goes,
/// as flanneld makes its own, and another one if ours is there.
pub async fn run(args: &CleanupArgs) -> u8 {
    let state_dir = args.state.dir.as_path();
    let lock = StateLock::take(state_dir);
    if let Err(error) = &lock
        && !args.force
    {
        complain(&match error {
            LockError::Taken(path) => format!(
                "an agent runs with state directory {}: stop the agent first, or use --force",
                path.display()
            ),
            LockError::Unusable { .. } => error.to_string(),
        });
        return 1;
    }
    let state = state::load(state_dir).state;
    let mut steps = Steps::default();
    // Before the rules: nobody shall put them back.
    if let Err(error) = rules::remove(state_dir) {
        steps.failed(error);
    }
    // Programs first: what follows is the kernel path's.
    detach_programs(args, state.as_ref(), &mut steps);
    let networks = state.as_ref().map(NodeState::networks).unwrap_or_default();
    match remove_blackholes(&networks).await {
        Ok(0) => {}
        Ok(_) => steps.did("removed the blackhole route of the node's subnet".to_owned()),
        Err(error) => steps.failed(error),
    }
    match &state {
        state if args.keep_device => leave(state.as_ref(), &mut steps).await,
        Some(state) => remove_device(state, &args.subnet_file.path, &mut steps).await,
        // They may be flanneld's.
        None => print(&format!(
            "no state file in {}: a flannel device and subnet.env, if there, are left alone",
            state_dir.display()
        )),
    }
    // Last, so that as little as possible goes without them. Flannel may have its
    // own by now, which stay.
    let mine = networks.into_iter().collect();
    match chosen::remove_all(&[], &mine).await {
        Ok(true) => steps.did("removed the firewall rules".to_owned()),
        Ok(false) => {}
        Err(error) => steps.failed(error),
    }
    steps.remove_file(&control::path(state_dir));
    // What is left to do stays known.
    if steps.failed == 0 {
        steps.remove_file(&state::path(state_dir));
        let _ = fs::remove_file(state_dir.join("lock"));
    }
    // Kept if somebody else has put something there.
    let _ = fs::remove_dir(state_dir);
    steps.end()
}

/// Detaches the programs, and removes the qdiscs that were made for them.
fn detach_programs(args: &CleanupArgs, state: Option<&NodeState>, steps: &mut Steps) {
    let qdiscs = clsact::with_our_filter().unwrap_or_else(|error| {
        steps.failed(error);
        Vec::new()
    });
    let pin_dir = args.pins.dir.as_path();
    let pinned = state.and_then(|state| state.pin_dir.as_deref());
    let former = state.into_iter().flat_map(|state| &state.traces.former_pin_dirs);
    let former: BTreeSet<&Path> = former.map(PathBuf::as_path).collect();
    for dir in former.iter().copied().chain([pin_dir, pinned.unwrap_or(pin_dir)]) {
        match bpf::cleanup(dir, args.force) {
            Ok(removed) if removed.is_empty() => {}
            // Somebody else has it now.
            Err(error) if error.foreign && former.contains(dir) => {}
            Ok(removed) => {
                let pins = text::counted(removed.len(), "pin");
                steps.did(format!("detached the programs ({pins})"));
            }
            Err(error) => steps.failed(error),
        }
    }
    for ifindex in qdiscs {
        if let Err(error) = clsact::remove_if_unused(ifindex) {
            steps.failed(error);
        }
    }
}

/// Removes the device, direct routes and subnet.env, and sets the sysctls back.
async fn remove_device(state: &NodeState, subnet_file: &Path, steps: &mut Steps) {
    for device in state.device.iter().chain(&state.traces.former_devices) {
        steps.delete(device).await;
    }
    match delete_direct_routes(&state.networks()).await {
        Ok(0) => {}
        Ok(count) => steps.did(format!("deleted {count} direct routes")),
        Err(error) => steps.failed(error),
    }
    restore_sysctls(state, steps);
    steps.remove_file(state.subnet_file.as_deref().unwrap_or(subnet_file));
}

/// What flanneld cannot take up goes, and what we set on the device; says what stays.
async fn leave(state: Option<&NodeState>, steps: &mut Steps) {
    let device = state.and_then(|state| state.device.as_deref());
    if device == Some(udp::DEVICE) {
        steps.delete(udp::DEVICE).await;
        print("left for flanneld: subnet.env");
    } else {
        if let Some((device, TunnelChecksum::Kernel)) =
            device.zip(state.map(|state| state.traces.tunnel_checksum))
        {
            match leave_checksums(device).await {
                Ok(()) => steps.did(format!("set checksums by the card back on {device}")),
                Err(error) => steps.failed(error),
            }
        }
        print("left for flanneld: the device, routes, neighbours, FDB and subnet.env");
    }
    for (name, before) in state.iter().flat_map(|state| &state.traces.sysctls) {
        print(&format!("left as it is, for open connections: {name}, which was {before} before"));
    }
}

/// Undoes `--tunnel-checksum=kernel` on a device that stays.
async fn leave_checksums(name: &str) -> Result<(), KernelError> {
    let kernel = RealKernel::open()?;
    if !backend::is_ours(&kernel, name).await? {
        return Ok(());
    }
    let op = Op::SetChecksum(TunnelChecksum::Device);
    kernel.apply(name, &[op]).await.into_iter().collect()
}

/// How many there were, within our overlay networks if those are known.
async fn remove_blackholes(networks: &BTreeSet<Ipv4Network>) -> Result<usize, KernelError> {
    let kernel = RealKernel::open()?;
    let (mut ours, _) = blackhole::diff(None, &kernel.blackholes().await?);
    ours.retain(|route| networks.is_empty() || are_within(networks, route.destination));
    for route in &ours {
        kernel.remove_blackhole(*route).await?;
    }
    Ok(ours.len())
}

async fn delete_device(name: &str) -> Result<bool, KernelError> {
    let kernel = RealKernel::open()?;
    if !backend::is_ours(&kernel, name).await? {
        return Ok(false);
    }
    let op = Op::DeleteDevice { name: name.to_owned(), why: "cleanup".to_owned() };
    kernel.apply(name, &[op]).await.into_iter().collect::<Result<(), _>>().map(|()| true)
}

fn are_within(networks: &BTreeSet<Ipv4Network>, subnet: Ipv4Network) -> bool {
    networks.iter().any(|network| within(*network, subnet))
}

/// Deletes our direct routes within the overlay networks; how many there were.
async fn delete_direct_routes(networks: &BTreeSet<Ipv4Network>) -> Result<usize, KernelError> {
    let kernel = RealKernel::open()?;
    let routes = kernel.direct_routes(PROTOCOL).await?.into_iter();
    let ours = routes.filter(|route| are_within(networks, route.destination));
    let ops: Vec<Op> = ours.map(Op::RemoveDirect).collect();
    let results = kernel.apply("", &ops).await;
    results.into_iter().collect::<Result<(), _>>().map(|()| ops.len())
}

fn restore_sysctls(state: &NodeState, steps: &mut Steps) {
    let sysctl = Sysctl::default();
    for (name, before) in &state.traces.sysctls {
        match sysctl.write(&name.replace('.', "/"), before) {
            Ok(()) => steps.did(format!("set {name} back to {before}")),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => steps.failed(error),
        }
    }
}

#[derive(Default)]
struct Steps {
    done: usize,
    failed: usize,
}

impl Steps {
    fn did(&mut self, what: String) {
        self.done += 1;
        print(&what);
    }

    async fn delete(&mut self, device: &str) {
        match delete_device(device).await {
            Ok(true) => self.did(format!("deleted {device} with its routes")),
            Ok(false) => {}
            Err(error) => self.failed(error),
        }
    }

    fn remove_file(&mut self, path: &Path) {
        match fs::remove_file(path) {
            Ok(()) => self.did(format!("removed {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.failed(format!("remove {}: {error}", path.display())),
        }
    }

    fn failed(&mut self, error: impl std::fmt::Display) {
        self.failed += 1;
        complain(&format!("failed: {error}"));
    }

    fn end(self) -> u8 {
        match (self.done, self.failed) {
            (0, 0) => print("nothing of ours was there"),
            (_, 0) => {}
            (_, failed) => {
                complain(&format!("{} failed; run it again", text::counted(failed, "step")))
            }
        }
        u8::from(self.failed > 0)
    }
}
