//! Counters that are read without the lock of the data path: reading those of
//! thousands of peers takes milliseconds.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use flannel_core::status::PeerCounters;
use flannel_ebpf::abi::MAX_PEER_STATS;
use ipnetwork::Ipv4Network;

use super::BpfError;
use super::peer_stats::PeerStatsMap;

/// Stands for all peers that have no counters of their own.
pub const OTHERS: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0) {
    Some(network) => network,
    None => panic!("0 is a length"),
};

/// What reads counters. The real one is `RealMeter`, the one for tests
/// `fake::FakeDatapath`.
pub trait Meter: Send {
    /// Counters of each peer that was in the maps when this was made. Those that share one
    /// are together under [`OTHERS`].
    ///
    /// # Errors
    /// The map cannot be read.
    fn peer_counters(&self) -> Result<BTreeMap<Ipv4Network, PeerCounters>, BpfError>;
}

/// A [`Meter`] of loaded programs.
pub(super) struct RealMeter {
    pub(super) stats: Arc<PeerStatsMap>,
    /// Subnets with the peers' ids.
    pub(super) peers: Vec<(Ipv4Network, u32)>,
}

impl Meter for RealMeter {
    fn peer_counters(&self) -> Result<BTreeMap<Ipv4Network, PeerCounters>, BpfError> {
        const SHARED: u32 = MAX_PEER_STATS - 1;
        let slots = self.peers.iter().map(|(network, id)| (*network, (*id).min(SHARED)));
        let highest = slots.clone().map(|(_, slot)| slot).max();
        let sums = self.stats.sums(highest.map_or(0, |slot| slot + 1))?;
        let named = slots.map(|(network, slot)| {
            (if slot < SHARED { network } else { OTHERS }, sums[slot as usize])
        });
        Ok(named.collect())
    }
}
