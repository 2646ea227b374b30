//! Peers: where they are, and what was carried for them.

use super::MAX_PEER_STATS;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Key of [`map::SUBNETS4`](super::map::SUBNETS4): what follows the prefix length in an LPM key.
pub type SubnetKey = [u8; 4];

/// Bits of [`Subnet::flags`].
pub mod subnet_flag {
    /// Routed over the underlay as it is (host-gw, DirectRouting).
    pub const DIRECT: u16 = 1;
    /// Bits above that: how large packets on the way may be.
    pub const LARGEST: u32 = 1;
}

/// One overlay subnet: where it is reached.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Subnet {
    /// MAC of the peer's VTEP, the inner destination MAC; zero if it has none.
    pub vtep_mac: [u8; 6],
    /// Bits of [`subnet_flag`]; above [`subnet_flag::LARGEST`] one more than
    /// [`Subnet::largest`], 0 if that is not bounded.
    pub flags: u16,
    /// The peer's underlay address (`PublicIP`), the outer destination.
    pub public_ip: [u8; 4],
    /// Index into [`map::PEER_STATS`](super::map::PEER_STATS), and the link to [`map::PEERS4`](super::map::PEERS4).
    pub peer_id: u32,
}

impl Subnet {
    /// Largest bound that fits.
    pub const MOST: u16 = u16::MAX >> subnet_flag::LARGEST;

    /// Largest IP packet that the routes on the way to this peer take by an MTU of their
    /// own, in bytes; 0 if all packets are the kernel's to send. `bpf_fib_lookup` tells of
    /// no MTU that is not locked.
    #[inline(always)]
    pub const fn largest(&self) -> u16 {
        (self.flags >> subnet_flag::LARGEST).wrapping_sub(1)
    }

    /// [`Subnet::flags`] of a peer with this bound, if it has one.
    pub const fn flags(direct: bool, largest: Option<u16>) -> u16 {
        let direct = if direct { subnet_flag::DIRECT } else { 0 };
        match largest {
            None => direct,
            Some(most) if most >= Self::MOST => direct | Self::MOST << subnet_flag::LARGEST,
            Some(largest) => direct | (largest + 1) << subnet_flag::LARGEST,
        }
    }
}

/// One peer, by its underlay address.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Peer {
    /// The id that the peer's subnet carries.
    pub peer_id: u32,
}

/// Packets and bytes (inner IP packets) of one peer.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PeerStats {
    /// Sent on the fast path: packets (GSO packets count once).
    pub tx_fast_packets: u64,
    /// Sent on the fast path: bytes.
    pub tx_fast_bytes: u64,
    /// Sent through the kernel device: packets.
    pub tx_kernel_packets: u64,
    /// Sent through the kernel device: bytes.
    pub tx_kernel_bytes: u64,
    /// Received on the fast path: packets.
    pub rx_fast_packets: u64,
    /// Received on the fast path: bytes.
    pub rx_fast_bytes: u64,
    /// Received through the kernel device: packets.
    pub rx_kernel_packets: u64,
    /// Received through the kernel device: bytes.
    pub rx_kernel_bytes: u64,
}

impl PeerStats {
    /// Where a peer's counters of a CPU are. The last slot of a CPU is of all peers without
    /// one of their own.
    #[inline(always)]
    pub const fn index(cpu: u32, peer_id: u32) -> u32 {
        let last = MAX_PEER_STATS - 1;
        let slot = if peer_id < last { peer_id } else { last };
        cpu.wrapping_mul(MAX_PEER_STATS).wrapping_add(slot)
    }
}

/// Where packets of a peer's subnet come from though its lease names another
/// address.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Stranger {
    /// Monotonic time in ns of the last one.
    pub time_ns: u64,
    /// Packets.
    pub packets: u64,
    /// The last inner source.
    pub inner_source: [u8; 4],
    /// Id of the peer that holds it ([`Subnet::peer_id`]).
    pub peer_id: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_stands_beside_the_flags() {
        let largest = |direct, largest| {
            let subnet = Subnet { flags: Subnet::flags(direct, largest), ..Subnet::default() };
            assert_eq!(subnet.flags & subnet_flag::DIRECT != 0, direct);
            subnet.largest()
        };
        for direct in [false, true] {
            assert_eq!(largest(direct, None), u16::MAX);
            for bound in [0, 1, 1300, 9000, Subnet::MOST - 1] {
                assert_eq!(largest(direct, Some(bound)), bound);
            }
            // What cannot be told apart is the smaller one.
            for bound in [Subnet::MOST, 40_000, u16::MAX] {
                assert_eq!(largest(direct, Some(bound)), Subnet::MOST - 1);
            }
        }
    }
}
