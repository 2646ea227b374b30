//! What `from_wire` tells `from_underlay`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ABI_VERSION;

/// What `from_wire` leaves in a packet's metadata, where `from_underlay` finds
/// it: the tunnel's headers are gone, and this is where the packet goes.
///
/// The same for all packets of a flow (GRO merges only packets whose metadata
/// are equal), and no larger than the 32 bytes that older kernels allow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Handover {
    /// [`HANDOVER`].
    pub magic: u32,
    /// [`Config::generation`](super::Config::generation) of the decision.
    pub generation: u32,
    /// [`Flow::out_ifindex`](super::Flow::out_ifindex).
    pub out_ifindex: u32,
    /// [`Flow::peer_id`](super::Flow::peer_id).
    pub peer_id: u32,
    /// [`Flow::action`](super::Flow::action) in the lowest byte, above it the
    /// priority that the packet leaves with.
    pub action: u32,
    /// [`Flow::dst_mac`](super::Flow::dst_mac).
    pub dst_mac: [u8; 6],
    /// [`Flow::src_mac`](super::Flow::src_mac).
    pub src_mac: [u8; 6],
}

/// [`Handover::magic`].
pub const HANDOVER: u32 = 0xf1a2_0000 | ABI_VERSION;
