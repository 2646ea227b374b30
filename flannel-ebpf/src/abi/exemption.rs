//! Packets that the fast path never carries: those that a rule of the node judges
//! one by one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entries of [`map::EXEMPTIONS`](super::map::EXEMPTIONS). More rules than this
/// become one entry that matches everything.
pub const MAX_EXEMPTIONS: u32 = 64;

/// What one rule may match: addresses, ports, protocol and direction; the
/// default matches every packet.
///
/// A flow is exempt if its tuple matches before or after the kernel's
/// translation, or with its source before and its destination after it (as
/// FORWARD sees it).
#[repr(C, align(8))]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Exemption {
    /// Source network, network byte order.
    pub source: [u8; 4],
    /// Its netmask; zero: any source.
    pub source_mask: [u8; 4],
    /// Destination network, network byte order.
    pub destination: [u8; 4],
    /// Its netmask; zero: any destination.
    pub destination_mask: [u8; 4],
    /// Lowest source port, host byte order.
    pub sport_min: u16,
    /// Highest source port, host byte order.
    pub sport_max: u16,
    /// Lowest destination port, host byte order.
    pub dport_min: u16,
    /// Highest destination port, host byte order.
    pub dport_max: u16,
    /// IP protocol; 0: any.
    pub proto: u8,
    /// [`direction::OUT`](super::direction::OUT) or
    /// [`direction::IN`](super::direction::IN); 0: both.
    pub direction: u8,
    /// 1: the packets that answer are exempt as well (a conntrack helper, a
    /// rule that looks at the connection).
    pub both_ways: u8,
    /// Always zero.
    pub reserved: [u8; 5],
}

impl Default for Exemption {
    fn default() -> Self {
        Self {
            source: [0; 4],
            source_mask: [0; 4],
            destination: [0; 4],
            destination_mask: [0; 4],
            sport_min: 0,
            sport_max: u16::MAX,
            dport_min: 0,
            dport_max: u16::MAX,
            proto: 0,
            direction: 0,
            both_ways: 0,
            reserved: [0; 5],
        }
    }
}
