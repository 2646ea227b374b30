//! The table of faults, by what they happen to.

mod devices;
mod files;
mod hooks;
mod process;
mod routes;
mod rules;
mod store;
mod underlay;

pub(super) use self::devices::DEVICES;
pub(super) use self::files::FILES;
pub(super) use self::hooks::HOOKS;
pub(super) use self::process::PROCESS;
pub(super) use self::routes::ROUTES;
pub(super) use self::rules::{CHAINS, RULES};
pub(super) use self::store::{CONFIG, STORE};
pub(super) use self::underlay::UNDERLAY;

use super::cluster::Cluster;
use super::fault::{Act, Fault};

/// All that can happen to one cluster with nftables.
pub(super) fn all() -> Vec<Fault> {
    [DEVICES, ROUTES, HOOKS, RULES, FILES, STORE, PROCESS, UNDERLAY].concat()
}
