//! What the agent puts right.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::op::Op;

/// Something that somebody else had changed or removed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// The overlay's device.
    Device,
    /// Its addresses.
    Address,
    /// Routes of peers on it.
    Route,
    /// Neighbour entries.
    Neighbour,
    /// FDB entries.
    Fdb,
    /// Routes of peers without a tunnel.
    DirectRoute,
    /// Entries of the programs' maps.
    Map,
    /// Programs at their hooks.
    Hook,
    /// Firewall rules.
    Firewall,
    /// subnet.env.
    SubnetFile,
    /// The state file, or that with the firewall's rules.
    StateFile,
}

impl Repair {
    /// All.
    pub const ALL: [Self; 11] = [
        Self::Device,
        Self::Address,
        Self::Route,
        Self::Neighbour,
        Self::Fdb,
        Self::DirectRoute,
        Self::Map,
        Self::Hook,
        Self::Firewall,
        Self::SubnetFile,
        Self::StateFile,
    ];

    /// What it is, for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Address => "device address",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Fdb => "FDB entry",
            Self::DirectRoute => "direct route",
            Self::Map => "map entry",
            Self::Hook => "hook",
            Self::Firewall => "firewall rules",
            Self::SubnetFile => "subnet file",
            Self::StateFile => "state file",
        }
    }

    /// As metrics and JSON name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Address => "address",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Fdb => "fdb",
            Self::DirectRoute => "direct_route",
            Self::Map => "map",
            Self::Hook => "hook",
            Self::Firewall => "firewall",
            Self::SubnetFile => "subnet_file",
            Self::StateFile => "state_file",
        }
    }

    /// What an operation puts right.
    pub fn of(op: &Op) -> Self {
        match op {
            Op::DeleteDevice { .. }
            | Op::CreateDevice(_)
            | Op::SetMac(_)
            | Op::SetMtu(_)
            | Op::SetChecksum(_)
            | Op::EndProtoDown
            | Op::SetUp => Self::Device,
            Op::AddAddress(_) | Op::PutLocal(_) | Op::RemoveAddress(_) => Self::Address,
            Op::PutRoute(_) | Op::PutLinkRoute(_) | Op::RemoveRoute(_) => Self::Route,
            Op::PutNeighbour(..) | Op::RemoveNeighbour(..) => Self::Neighbour,
            Op::PutFdb(..) | Op::RemoveFdb(..) => Self::Fdb,
            Op::PutDirect(_) | Op::RemoveDirect(_) => Self::DirectRoute,
            Op::PutMaps(_) | Op::RemoveMaps(_) => Self::Map,
        }
    }
}
