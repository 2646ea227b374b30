//! Where packets are sent, and where frames are watched.

use super::world::{LEFT, Side};

/// Who sends a packet.
#[derive(Clone, Copy, Debug)]
pub enum Sender {
    /// The pod of this node, to its gateway.
    Pod(Side),
    /// This node's underlay device, past everything else on the node: a tunnel
    /// packet that nobody's kernel made.
    Wire(Side),
}

/// Where frames are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tap {
    /// What comes to the left pod.
    LeftPod,
    /// What comes to the right pod.
    RightPod,
    /// The underlay: what this node sends.
    CableFrom(Side),
}

impl Tap {
    /// Whether that is the underlay.
    pub const fn is_cable(self) -> bool {
        matches!(self, Self::CableFrom(_))
    }
}

impl std::fmt::Display for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LeftPod => "left pod",
            Self::RightPod => "right pod",
            Self::CableFrom(LEFT) => "left node",
            Self::CableFrom(_) => "right node",
        })
    }
}
