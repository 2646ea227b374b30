//! What `status` tells of a judgement.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::programs::Inward;
use super::reason::Reason;

/// What the fast path carries on this node, and why it does not carry the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnvelopeReport {
    /// Ways that are the kernel's for the whole node.
    pub kept: Vec<Kept>,
    /// The pods' veths.
    pub veths: Vec<VethReport>,
    /// Pods' devices that no program can serve.
    pub not_served: Vec<NotServed>,
    /// Hooks where no program of ours runs.
    pub hooks: Vec<HookReport>,
}

/// A way that is the kernel's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Kept {
    /// Which.
    pub way: KeptWay,
    /// Why.
    pub why: Vec<Reason>,
}

/// Ways that can be the kernel's, by the names of the programs' flags.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum KeptWay {
    /// All that leaves by `flannel.<VNI>`.
    KeepOut,
    /// All that comes from peers.
    KeepIn,
    /// The outer packets of the tunnel.
    KeepTunnel,
    /// What carries a firewall mark.
    MarkedRoutes,
    /// What goes to and comes from peers that are in no table.
    MorePeers,
}

impl fmt::Display for KeptWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KeepOut => "what leaves through the tunnel",
            Self::KeepIn => "what comes from peers",
            Self::KeepTunnel => "tunnel packets that come in",
            Self::MarkedRoutes => "packets with a firewall mark",
            Self::MorePeers => "some peers",
        })
    }
}

/// One veth of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VethReport {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub ifindex: u32,
    /// What the pod sends.
    pub outward: Outward,
    /// What comes for the pod.
    pub inward: Inward,
    /// What stands in the way.
    pub why: Vec<Reason>,
}

impl VethReport {
    /// Whether nothing stands in the way.
    pub fn is_free(&self) -> bool {
        self.why.is_empty()
    }
}

/// Who carries what a pod sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outward {
    /// The fast path.
    Carried,
    /// The kernel.
    Kept,
}

/// Devices of pods that no program can serve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct NotServed {
    /// `netkit`, `ipvlan`...
    pub kind: String,
    /// The device of this node: the pod's own end, or what its device stands on.
    pub device: String,
    /// How many.
    pub pods: usize,
}

impl fmt::Display for NotServed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not served: {} on {}", self.kind, self.device)?;
        if self.pods > 1 {
            write!(f, " ({} pods)", self.pods)?;
        }
        Ok(())
    }
}

/// A hook where no program of ours runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HookReport {
    /// `<interface>/<program>`.
    pub hook: String,
    /// Why not.
    pub reason: String,
}
