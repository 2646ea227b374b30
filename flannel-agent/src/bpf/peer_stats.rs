//! The map of the peers' counters: an array with a part for each CPU.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use flannel_core::status::PeerCounters;
use flannel_ebpf::abi::{self, MAX_PEER_STATS, PeerStats};

use super::cpus::possible_cpus;
use super::{BpfError, sys};

/// Elements that one batch call carries.
const BATCH: usize = 1024;

/// The map.
pub(super) struct PeerStatsMap {
    map: OwnedFd,
    cpus: u32,
}

/// Elements of the map: the parts of all CPUs.
///
/// # Errors
/// The CPUs cannot be counted.
pub(super) fn entries() -> Result<u32, BpfError> {
    Ok(possible_cpus()?.saturating_mul(MAX_PEER_STATS))
}

impl PeerStatsMap {
    /// The map behind this descriptor.
    ///
    /// # Errors
    /// The CPUs cannot be counted.
    pub(super) fn new(map: OwnedFd) -> Result<Self, BpfError> {
        Ok(Self { map, cpus: possible_cpus()? })
    }

    /// Lets the counters of these peers begin at zero. Those that they share with others
    /// go on.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn clear(&self, ids: &[u32]) -> Result<(), BpfError> {
        let own = ids.iter().filter(|id| **id < MAX_PEER_STATS - 1);
        let indices: Vec<u32> =
            own.flat_map(|id| (0..self.cpus).map(|cpu| PeerStats::index(cpu, *id))).collect();
        for indices in indices.chunks(BATCH) {
            let zeros = vec![PeerStats::default(); indices.len()];
            if sys::update_batch(self.map.as_fd(), indices, &zeros).is_ok() {
                continue;
            }
            for index in indices {
                sys::update_element(self.map.as_fd(), index, &PeerStats::default())
                    .map_err(|error| failed("write map", &error))?;
            }
        }
        Ok(())
    }

    /// Sums over the CPUs of the first `slots` slots.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn sums(&self, slots: u32) -> Result<Vec<PeerCounters>, BpfError> {
        let mut sums = vec![PeerCounters::default(); slots as usize];
        for cpu in 0..self.cpus {
            for (part, sums) in (0..slots).step_by(BATCH).zip(sums.chunks_mut(BATCH)) {
                let first = PeerStats::index(cpu, part);
                let read =
                    self.read(first, sums.len()).map_err(|error| failed("read map", &error))?;
                sums.iter_mut().zip(&read).for_each(|(sum, stats)| add(sum, stats));
            }
        }
        Ok(sums)
    }

    /// So many elements from `first` on.
    fn read(&self, first: u32, count: usize) -> io::Result<Vec<PeerStats>> {
        let mut values = vec![PeerStats::default(); count];
        let mut keys = vec![0_u32; count];
        // A reading goes on behind a key.
        let behind = first.checked_sub(1).map(|key| [key, 0]);
        match sys::lookup_batch(self.map.as_fd(), behind, &mut keys, &mut values) {
            Ok((read, _)) if read == count => Ok(values),
            _ => (first..)
                .take(count)
                .map(|index| Ok(sys::lookup_element(self.map.as_fd(), &index)?.unwrap_or_default()))
                .collect(),
        }
    }
}

fn failed(call: &'static str, error: &io::Error) -> BpfError {
    BpfError::new(call, abi::map::PEER_STATS, error)
}

fn add(sum: &mut PeerCounters, cpu: &PeerStats) {
    sum.tx_fast_packets += cpu.tx_fast_packets;
    sum.tx_fast_bytes += cpu.tx_fast_bytes;
    sum.tx_kernel_packets += cpu.tx_kernel_packets;
    sum.tx_kernel_bytes += cpu.tx_kernel_bytes;
    sum.rx_fast_packets += cpu.rx_fast_packets;
    sum.rx_fast_bytes += cpu.rx_fast_bytes;
    sum.rx_kernel_packets += cpu.rx_kernel_packets;
    sum.rx_kernel_bytes += cpu.rx_kernel_bytes;
}
