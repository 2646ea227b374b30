//! What the agent tells of itself: one set of types, which the agent fills, the
//! control socket sends, the commands print and the tests read.
//!
//! Members that exist keep name and meaning. `docs/schemas/` has their JSON schemas.

mod absent;
mod datapath;
mod events;
mod flows;
mod outcomes;
mod packet_rules;
mod packets;
mod peers;
mod sysdump;
#[cfg(test)]
mod tests;
mod time;
mod udp;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::datapath::{
    Attachment, DatapathKind, DatapathStatus, FlowTableStatus, XdpPlace, XdpStatus,
};
pub use self::events::{Event, Events, What};
pub use self::flows::{Ends, FlowDirection, FlowPath, FlowProto, FlowStatus, NotFast};
pub use self::packet_rules::{PacketRulesMode, PacketRulesStatus};
pub use self::packets::{PacketEvent, PacketVerdict, Tunnel};
pub use self::peers::{Counters, PeerCounters, PeerPath, PeerState, PeerStatus, UdpCounters};
pub use self::sysdump::{SysdumpPart, SysdumpReport};
pub use self::udp::UdpOutcome;
use crate::backend::BackendKind;
use crate::checksum::TunnelChecksum;
use crate::health::Line;
use crate::mac::MacAddr;

/// The state of a node's agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The data path.
    pub datapath: DatapathStatus,
    /// The backend's type; empty before the first pass.
    #[serde(with = "absent")]
    #[schemars(schema_with = "absent::schema::<BackendKind>")]
    pub backend: Option<BackendKind>,
    /// The firewall in use and why it is this one, once chosen.
    pub firewall: Option<String>,
    /// Rules that judge each packet; `null` where there is no fast path.
    pub packet_rules: Option<PacketRulesStatus>,
    /// Our lease, once acquired.
    pub lease: Option<LeaseStatus>,
    /// The device, once created.
    pub device: Option<DeviceStatus>,
    /// The store.
    pub store: StoreStatus,
    /// Number of peers.
    pub peers: usize,
    /// Peers to which the fast path does not send all that fits the device, as a route
    /// there has an MTU or a hop limit of its own.
    #[serde(default)]
    pub narrow_peers: Vec<NarrowPeer>,
    /// Packets by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Present complaints.
    pub health: Vec<Line>,
    /// Leases and keys that are left out, with the reason.
    pub ignored: Vec<String>,
}

/// A peer that a route's own MTU or hop limit bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NarrowPeer {
    /// The peer's subnet.
    #[schemars(with = "String")]
    pub subnet: Ipv4Network,
    /// Bytes of the largest IP packet that the fast path sends there by the underlay, the
    /// tunnel's headers too; 0: the kernel sends all.
    pub largest: u16,
}

/// Our lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseStatus {
    /// Our subnet.
    #[schemars(with = "String")]
    pub subnet: Ipv4Network,
    /// What peers send to.
    pub public_ip: Ipv4Addr,
    /// Seconds left; `null` for a reservation.
    pub expires_in_seconds: Option<u64>,
}

/// The overlay's device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceStatus {
    /// `flannel.<VNI>`, or `flannel0`.
    pub name: String,
    /// MAC of our VTEP; `null` with the backends that have none.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Who makes the checksums of what goes into the tunnel (`--tunnel-checksum`); `null`
    /// without a tunnel.
    #[serde(default)]
    pub checksum: Option<TunnelChecksum>,
}

/// The store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoreStatus {
    /// It is being followed.
    pub connected: bool,
    /// Why it is not.
    pub detail: Option<String>,
    /// By which of etcd's APIs, and why if it was not asked for.
    pub api: Option<String>,
}
