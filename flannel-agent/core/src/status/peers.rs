//! The peers, as `peers` shows them.

use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::{BackendKind, Reaches};
use crate::mac::MacAddr;

/// A peer, and what went to it and came from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerStatus {
    /// The peer's subnet.
    #[schemars(with = "String")]
    pub subnet: Ipv4Network,
    /// Its underlay address.
    pub public_ip: Ipv4Addr,
    /// MAC of its VTEP; `null` with the backends that have none.
    pub vtep_mac: Option<MacAddr>,
    /// How it is reached.
    pub path: PeerPath,
    /// `ok`, or what is wrong.
    pub state: PeerState,
    /// Packets and bytes; zero on the kernel path.
    #[serde(flatten)]
    pub counters: Counters,
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PeerPath {
    /// By a route through the underlay.
    Direct,
    /// As the backend does.
    #[serde(untagged)]
    Backend(BackendKind),
}

impl PeerPath {
    /// By what packets get there.
    pub fn reaches(self) -> Reaches {
        match self {
            Self::Direct => Reaches::Direct,
            Self::Backend(kind) => kind.backend().facts().reaches(),
        }
    }
}

impl fmt::Display for PeerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Backend(backend) => backend.fmt(f),
        }
    }
}

/// Whether a peer can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "String", into = "String")]
#[schemars(with = "String")]
pub enum PeerState {
    /// It can.
    Ok,
    /// The programs' tables have no place for it; the kernel's path reaches it.
    Unmapped,
    /// Something of it cannot be programmed, for this reason.
    Pending(String),
}

const OK: &str = "ok";
const UNMAPPED: &str = "ok, by the kernel's path only: the programs' tables are full";

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => OK,
            Self::Unmapped => UNMAPPED,
            Self::Pending(reason) => reason,
        })
    }
}

impl From<PeerState> for String {
    fn from(state: PeerState) -> Self {
        state.to_string()
    }
}

impl From<String> for PeerState {
    fn from(text: String) -> Self {
        match text.as_str() {
            OK => Self::Ok,
            UNMAPPED => Self::Unmapped,
            _ => Self::Pending(text),
        }
    }
}

/// Packets and bytes of a peer, as the backend counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Counters {
    /// By path, of the programs.
    Programs(PeerCounters),
    /// Of the udp backend's proxy.
    Udp(UdpCounters),
    /// It is counted together with other peers: there are more than counters.
    Shared {},
}

/// Packets and bytes of one peer, by who carried them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerCounters {
    /// Sent on the fast path: packets.
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

/// Packets and bytes (of IPv4 packets, headers included) of one peer of the udp
/// backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UdpCounters {
    /// Sent: packets.
    pub tx_udp_packets: u64,
    /// Sent: bytes.
    pub tx_udp_bytes: u64,
    /// Received: packets.
    pub rx_udp_packets: u64,
    /// Received: bytes.
    pub rx_udp_bytes: u64,
}
