//! The table of faults, by what they happen to.

mod devices;
mod files;
mod hooks;
mod others;
mod process;
mod routes;
mod rules;
mod store;
mod sysctls;
mod underlay;

pub(super) use self::devices::DEVICES;
pub(super) use self::files::FILES;
pub(super) use self::hooks::HOOKS;
pub(super) use self::others::OTHERS;
pub(super) use self::process::PROCESS;
pub(super) use self::routes::ROUTES;
pub(super) use self::rules::{CHAINS, RULES};
pub(super) use self::store::{CONFIG, STORE};
pub(super) use self::sysctls::SYSCTLS;
pub(super) use self::underlay::UNDERLAY;

use super::cluster::Cluster;
use super::fault::{Act, Fault};

/// All that can happen to one cluster with nftables.
pub(super) fn all() -> Vec<Fault> {
    [DEVICES, ROUTES, HOOKS, RULES, FILES, STORE, PROCESS, UNDERLAY, SYSCTLS, OTHERS].concat()
}

/// While the kernel lets nothing through, the fast path does not carry on.
fn nothing_passes(cluster: &Cluster) {
    let from = cluster.streams.now();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let sent = from..cluster.streams.now();
    assert_eq!(cluster.streams.lost(sent.clone()), sent.len() as u32, "something passes");
}
