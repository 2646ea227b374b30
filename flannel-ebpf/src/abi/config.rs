//! Settings that the agent gives to the programs.

use super::TicketNumbers;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Settings that every program reads; the only element of [`map::CFG`](super::map::CFG).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Config {
    /// [`ABI_VERSION`](super::ABI_VERSION) of the agent that wrote this.
    pub abi_version: u32,
    /// A confirmation counts only in the generation it was made in.
    pub generation: u32,
    /// Life of a confirmation in nanoseconds.
    pub window_ns: u64,
    /// Life of a confirmation of a UDP flow in nanoseconds: no longer than the
    /// window, and shorter than conntrack's timeouts.
    pub udp_window_ns: u64,
    /// Bits of [`flag`].
    pub flags: u32,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Interface index of the underlay device.
    pub underlay_ifindex: u32,
    /// Interface index of `flannel.<VNI>`.
    pub overlay_ifindex: u32,
    /// Underlay address of this node, the outer source of what we send.
    pub local_ip: [u8; 4],
    /// Network address of the overlay.
    pub network: [u8; 4],
    /// Netmask of the overlay.
    pub netmask: [u8; 4],
    /// Network address of our own subnet.
    pub subnet: [u8; 4],
    /// Netmask of our own subnet.
    pub subnet_mask: [u8; 4],
    /// UDP destination port of the tunnel; 0: there is none.
    pub port: [u8; 2],
    /// Largest inner IP packet in bytes (MTU of `flannel.<VNI>`).
    pub mtu: u16,
    /// Own VTEP MAC.
    pub vtep_mac: [u8; 6],
    /// Lowest UDP source port (`net.ipv4.ip_local_port_range`).
    pub sport_min: u16,
    /// Highest UDP source port.
    pub sport_max: u16,
    /// Largest IP packet to a direct peer in bytes (MTU of the underlay device).
    pub direct_mtu: u16,
    /// Entries of [`map::EXEMPTIONS`](super::map::EXEMPTIONS) in use.
    pub exemptions: u32,
    /// Interface index of the VRF that the underlay device is in; 0: none.
    pub underlay_vrf: u32,
    /// How tickets are numbered; all zero: there are none yet.
    pub tickets: TicketNumbers,
    /// Always zero, which the verifier does not know.
    pub reserved: u8,
    /// TTL of outer headers (`net.ipv4.ip_default_ttl`) less 64, modulo 256.
    pub ttl_above_64: u8,
}

impl Config {
    /// The same, but the verifier cannot know it. All that follows a condition it goes
    /// through once for each outcome that it knows.
    #[inline(always)]
    pub fn unsure(&self, holds: bool) -> bool {
        // The compiler would give each outcome a copy of what follows.
        core::hint::black_box(u8::from(holds)) ^ self.reserved != 0
    }
}

/// Bits of [`Config::flags`].
pub mod flag {
    /// Use confirmed flows. Without it the programs only count and guard.
    pub const FAST_PATH: u32 = 1;
    /// Confirm TCP flows too (conntrack is liberal, or not there).
    pub const TCP: u32 = 2;
    /// Drop packets that fail the source check.
    pub const VERIFY_DROP: u32 = 4;
    /// Count packets that fail the source check. With neither bit the check is off.
    pub const VERIFY_COUNT: u32 = 8;
    /// Some peers are reached without a tunnel ([`subnet_flag::DIRECT`](crate::abi::subnet_flag::DIRECT)).
    pub const DIRECT: u32 = 32;
    /// Repeat for a new TCP connection what the kernel did with the last one
    /// between the same client and service, from its SYN on.
    pub const EAGER: u32 = 64;
    /// `from_wire` runs in the underlay's driver, and `from_underlay` takes
    /// what it hands over.
    pub const XDP: u32 = 128;
    /// The tunnel carries marks (VXLAN-GBP).
    pub const GBP: u32 = 256;
    /// Something on `flannel.<VNI>` acts on what leaves by it: no packet goes
    /// around it outwards, on the fast path or by the shortcut.
    pub const KEEP_OUT: u32 = 512;
    /// Something on the underlay or on `flannel.<VNI>` acts on what comes in:
    /// the fast path carries nothing inwards.
    pub const KEEP_IN: u32 = 1024;
    /// Something on the underlay acts on tunnel packets that come in: they go
    /// by the kernel's device, not by the shortcut.
    pub const KEEP_TUNNEL: u32 = 2048;
    /// Routing rules look at firewall marks: the way of a marked packet is the
    /// kernel's to find.
    pub const MARKED_ROUTES: u32 = 4096;
    /// Some peers did not fit into the tables: an outer source that is in none
    /// may be theirs, so it is counted and not dropped.
    pub const MORE_PEERS: u32 = 8192;
}
