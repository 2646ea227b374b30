//! [`Op`]: one idempotent step of a plan.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::checksum::TunnelChecksum;
use crate::desired::Device;
use crate::mac::MacAddr;
use crate::observed::{DirectRoute, ObservedRoute};
use crate::peer::Peer;

/// One idempotent step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Delete a link that has our device's name but not its attributes.
    DeleteDevice {
        /// Its name.
        name: String,
        /// Why it cannot stay (for the log).
        why: String,
    },
    /// Create the device, down, with MAC and MTU.
    CreateDevice(Device),
    /// Give the device its MAC back.
    SetMac(MacAddr),
    /// Set its MTU.
    SetMtu(u32),
    /// Switch its `tx-checksum-ip-generic`: on, so that whoever sends the outer packet
    /// makes the checksums, or off.
    SetChecksum(TunnelChecksum),
    /// Let it carry packets although a protocol held it down: `protodown off`.
    EndProtoDown,
    /// Set it up.
    SetUp,
    /// Add `<address>/32`.
    AddAddress(Ipv4Addr),
    /// Route: `local <address>` in the local table, as the kernel makes it with an address.
    PutLocal(Ipv4Addr),
    /// Remove an address of the overlay network that is not ours (any more).
    RemoveAddress(Ipv4Network),
    /// Neighbour entry: `subnet.0 lladdr <mac> PERMANENT`, replacing.
    PutNeighbour(Ipv4Addr, MacAddr),
    /// Remove a neighbour entry.
    RemoveNeighbour(Ipv4Addr, MacAddr),
    /// FDB entry: `<mac> dst <public ip> self permanent`, replacing.
    PutFdb(MacAddr, Ipv4Addr),
    /// Remove an FDB entry.
    RemoveFdb(MacAddr, Ipv4Addr),
    /// BPF maps: put a peer.
    PutMaps(Peer),
    /// BPF maps: remove a peer.
    RemoveMaps(Ipv4Network),
    /// Route: `<subnet> via <subnet.0> onlink`, replacing.
    PutRoute(Ipv4Network),
    /// Route: `<network> dev <device>`, for a device without neighbours.
    PutLinkRoute(Ipv4Network),
    /// Remove a route.
    RemoveRoute(ObservedRoute),
    /// Route: `<subnet> via <public ip> dev <underlay>`, replacing whatever
    /// leads to the same subnet.
    PutDirect(DirectRoute),
    /// Remove a direct route.
    RemoveDirect(DirectRoute),
}

impl Op {
    /// Whether it concerns the BPF maps and not the kernel's tables.
    pub fn is_maps(&self) -> bool {
        matches!(self, Self::PutMaps(_) | Self::RemoveMaps(_))
    }

    /// Whether it concerns a route through the underlay, and so needs no
    /// device of ours.
    pub fn is_direct(&self) -> bool {
        matches!(self, Self::PutDirect(_) | Self::RemoveDirect(_))
    }
}
