//! Counters that are read without the lock of the data path: reading those of
//! thousands of peers takes milliseconds.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use aya::maps::{MapData, PerCpuArray};
use flannel_core::status::PeerCounters;
use flannel_ebpf::abi::{self, MAX_PEER_STATS, PeerStats};
use ipnetwork::Ipv4Network;

use super::BpfError;

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

/// The map of the peers' counters, open once more for reading.
pub(super) type PeerStatsMap = Arc<PerCpuArray<MapData, PeerStats>>;

/// A [`Meter`] of loaded programs.
pub(super) struct RealMeter {
    pub(super) stats: PeerStatsMap,
    /// Subnets with the peers' ids.
    pub(super) peers: Vec<(Ipv4Network, u32)>,
}

impl Meter for RealMeter {
    fn peer_counters(&self) -> Result<BTreeMap<Ipv4Network, PeerCounters>, BpfError> {
        let mut counters = BTreeMap::new();
        for (network, id) in &self.peers {
            let slot = (*id).min(MAX_PEER_STATS - 1);
            let network = if slot < MAX_PEER_STATS - 1 { *network } else { OTHERS };
            if counters.contains_key(&network) {
                continue;
            }
            let values = self
                .stats
                .get(&slot, 0)
                .map_err(|error| BpfError::new("read map", abi::map::PEER_STATS, &error))?;
            let mut sum = PeerCounters::default();
            for cpu in values.iter() {
                sum.tx_fast_packets += cpu.tx_fast_packets;
                sum.tx_fast_bytes += cpu.tx_fast_bytes;
                sum.tx_kernel_packets += cpu.tx_kernel_packets;
                sum.tx_kernel_bytes += cpu.tx_kernel_bytes;
                sum.rx_fast_packets += cpu.rx_fast_packets;
                sum.rx_fast_bytes += cpu.rx_fast_bytes;
                sum.rx_kernel_packets += cpu.rx_kernel_packets;
                sum.rx_kernel_bytes += cpu.rx_kernel_bytes;
            }
            counters.insert(network, sum);
        }
        Ok(counters)
    }
}
