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

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::cluster::Cluster;
use super::fault::{Act, Fault};

/// All that can happen to one cluster with nftables.
pub(super) fn all() -> Vec<Fault> {
    [DEVICES, ROUTES, HOOKS, RULES, FILES, STORE, PROCESS, UNDERLAY, SYSCTLS, OTHERS].concat()
}

/// What may well come together on a node.
const TOGETHER: [[&str; 2]; 5] = [
    ["etcd is killed", "the pins are removed"],
    ["nft hangs", "another gateway has the route"],
    ["the disk is full", "another node takes our lease"],
    ["etcd hangs", "the card has no carrier"],
    ["etcd is killed", "the disk is full"],
];

/// Faults that overlap: those of [`TOGETHER`], and so many chosen at random of what lasts,
/// from two tables. The agent has to run to tell of them.
pub(super) fn pairs(random: &mut StdRng, count: usize) -> Vec<Vec<Fault>> {
    let all = all();
    let named = |name| all.iter().find(|fault| fault.name == name).copied().expect("a row");
    let mut pairs: Vec<Vec<Fault>> =
        TOGETHER.iter().map(|names| names.iter().copied().map(named).collect()).collect();
    let tables = [DEVICES, HOOKS, RULES, FILES, STORE, UNDERLAY, SYSCTLS, OTHERS];
    let lasting = tables.map(|table| -> Vec<Fault> {
        let fits = |fault: &&Fault| fault.lasts > 0 && !fault.alone && !fault.long;
        table.iter().filter(fits).copied().collect()
    });
    let by_chance = std::iter::repeat_with(|| {
        let tables: Vec<_> = lasting.choose_multiple(random, 2).collect();
        tables.into_iter().filter_map(|table| table.choose(random).copied()).collect()
    });
    pairs.extend(by_chance.filter(|pair: &Vec<Fault>| can_be_told(pair)).take(count));
    pairs
}

/// Without a way to the store a node learns nothing of it.
fn can_be_told(pair: &[Fault]) -> bool {
    let of = |table: &[Fault]| {
        pair.iter().find(|fault| table.iter().any(|row| row.name == fault.name)).copied()
    };
    of(UNDERLAY).is_none() || of(STORE).is_none_or(|fault| fault.told.is_none())
}

/// While the kernel lets nothing through, the fast path does not carry on.
fn nothing_passes(cluster: &Cluster) {
    let from = cluster.streams.now();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let sent = from..cluster.streams.now();
    assert_eq!(cluster.streams.lost(sent.clone()), sent.len() as u32, "something passes");
}
