//! How large the flow table is made, so that it holds what it is asked to.
//!
//! The table is an LRU hash. Each CPU takes free entries for itself, 128 at a
//! time, and evicts others to get them when fewer are left. An update of a key
//! that is there takes a free entry too. So a table with as many entries as
//! flows evicts flows that were renewed a moment ago: half of all renewals find
//! theirs gone. With 128 free entries for each CPU none is evicted; with one less,
//! some are. New flows evict old ones only if there are old ones besides those in
//! use: an eighth of the size is enough for as many new flows while all in use are
//! renewed once. `tests/flow_table.rs` measures that.

use super::BpfError;
use super::cpus::possible_cpus;

/// Entries that the kernel moves at a time to one CPU (LOCAL_FREE_TARGET in
/// `kernel/bpf/bpf_lru_list.c`).
const BATCH_OF_A_CPU: u32 = 128;

/// Entries of a table that keeps `flows` flows on this machine.
///
/// # Errors
/// The kernel does not tell how many CPUs it may have.
pub fn entries(flows: u32) -> Result<u32, BpfError> {
    Ok(with_head_room(flows, possible_cpus()?))
}

fn with_head_room(flows: u32, cpus: u32) -> u32 {
    flows.saturating_add(flows / 8).saturating_add(BATCH_OF_A_CPU.saturating_mul(cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eighth_and_a_batch_for_each_cpu() {
        assert_eq!(with_head_room(65_536, 2), 65_536 + 8192 + 256);
        assert_eq!(with_head_room(1024, 64), 1024 + 128 + 8192);
        assert_eq!(with_head_room(u32::MAX, 2), u32::MAX);
    }
}
