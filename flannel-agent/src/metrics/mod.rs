//! `/metrics`. The loop writes into the shared state; a scrape reads that and the
//! programs' counters, and nothing waits for it.

pub mod catalogue;
mod encode;
mod format;
mod process;
#[cfg(test)]
mod reference;
mod snapshot;
mod totals;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use clap::{ArgAction, Args};
use flannel_core::health::{Found, Subject};
use ipnetwork::Ipv4Network;

pub use self::format::Format;
use self::process::Process;
use self::snapshot::Snapshot;
use self::totals::{Totals, Traffic};
use crate::bpf::VerifySource;
use crate::flag;
use crate::status::{Shared, SharedDatapath, lock};

/// What is told besides the default.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct MetricsOptions {
    /// Tell packets and bytes of each peer in /metrics
    #[arg(long = "metrics-peers", value_name = "BOOL", value_parser = flag::go_bool,
          num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", action = ArgAction::Set)]
    pub peers: bool,
}

/// Answers scrapes.
pub struct Exporter {
    shared: Shared,
    datapath: SharedDatapath,
    options: MetricsOptions,
    verify_source: VerifySource,
    totals: Mutex<Totals>,
}

impl Exporter {
    /// An exporter of this agent, whose programs treat forged packets so.
    pub fn new(
        shared: Shared,
        datapath: SharedDatapath,
        options: MetricsOptions,
        verify_source: VerifySource,
    ) -> Self {
        Self { shared, datapath, options, verify_source, totals: Mutex::default() }
    }

    /// The text of a scrape. It may wait for the data path while many hooks are
    /// being attached, so it is for a thread that may block.
    pub fn scrape(&self, format: Format) -> String {
        // One scrape after the other: sums take what was counted since the last.
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let mut snapshot = Snapshot::of(&self.shared.lock());
        snapshot.forged_are_dropped = self.verify_source == VerifySource::Drop;
        let peers = self.count(&mut snapshot);
        if self.options.peers {
            snapshot.by_peer = peers.iter().map(|(peer, all)| (*peer, all.clone())).collect();
        }
        let shortcut = snapshot.outcomes.get("shortcut_encap").copied();
        let shortcut = shortcut.zip(snapshot.outcomes.get("shortcut_decap").copied());
        snapshot.traffic = totals.take(peers, shortcut.map(<[u64; 2]>::from));
        drop(totals);
        snapshot.process = Process::read();
        format.of(encode::text(snapshot))
    }

    /// Outcomes, and the counters of each peer.
    fn count(&self, snapshot: &mut Snapshot) -> BTreeMap<Ipv4Network, Vec<Traffic>> {
        let proxy = self.shared.lock().proxy.clone();
        if let Some(outcomes) = proxy.outcomes() {
            snapshot.outcomes = outcomes;
            let peers = proxy.peer_counters().unwrap_or_default();
            return peers.iter().map(|(peer, all)| (*peer, totals::of_udp_peer(all))).collect();
        }
        // The peers are counted without the lock: that takes some milliseconds.
        let read = lock(&self.datapath).as_ref().map(|datapath| {
            snapshot.narrow_peers = Some(datapath.bounds().len() as u64);
            datapath.outcomes().map(|outcomes| (outcomes, datapath.meter()))
        });
        let read = read
            .map(|read| read.and_then(|(outcomes, meter)| Ok((outcomes, meter.peer_counters()?))));
        match read {
            None => BTreeMap::new(),
            Some(Ok((outcomes, peers))) => {
                self.shared.report(Subject::Counters, Found::well());
                snapshot.outcomes = outcomes;
                peers.iter().map(|(peer, all)| (*peer, totals::of_peer(all))).collect()
            }
            Some(Err(error)) => {
                self.shared.report(Subject::Counters, Found::not_well(error.to_string()));
                BTreeMap::new()
            }
        }
    }
}

#[cfg(test)]
mod tests;
