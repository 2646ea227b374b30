//! Peers: where they are, and what was carried for them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Key of [`map::SUBNETS4`](super::map::SUBNETS4): what follows the prefix length in an LPM key.
pub type SubnetKey = [u8; 4];

/// Bits of [`Subnet::flags`].
pub mod subnet_flag {
    /// Routed over the underlay as it is (host-gw, DirectRouting).
    pub const DIRECT: u16 = 1;
}

/// One overlay subnet: where it is reached.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Subnet {
    /// MAC of the peer's VTEP, the inner destination MAC; zero if it has none.
    pub vtep_mac: [u8; 6],
    /// Bits of [`subnet_flag`].
    pub flags: u16,
    /// The peer's underlay address (`PublicIP`), the outer destination.
    pub public_ip: [u8; 4],
    /// Index into [`map::PEER_STATS`](super::map::PEER_STATS), and the link to [`map::PEERS4`](super::map::PEERS4).
    pub peer_id: u32,
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
