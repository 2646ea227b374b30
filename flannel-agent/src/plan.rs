//! The difference between desired and observed, as ordered operations. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::desired::{Device, Peer};
use crate::mac::MacAddr;

/// The device as read back from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedDevice {
    /// Interface index.
    pub ifindex: u32,
    /// `None` if a link of this name exists that is no VXLAN device.
    pub vxlan: Option<ObservedVxlan>,
    /// Its MAC.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// IPv4 addresses on it, host bits kept.
    pub addresses: BTreeSet<Ipv4Network>,
}

/// VXLAN attributes that cannot be changed after creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedVxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Local tunnel address.
    pub local: Option<Ipv4Addr>,
    /// Interface index of the underlay device (0: none).
    pub underlay: u32,
    /// Group-based policy extension.
    pub gbp: bool,
    /// Learns FDB entries.
    pub learning: bool,
}

/// A route through our device, as read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedRoute {
    /// Destination.
    pub destination: Ipv4Network,
    /// Gateway, if any.
    pub gateway: Option<Ipv4Addr>,
    /// RTNH_F_ONLINK.
    pub onlink: bool,
}

/// What is really there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The device, if a link of its name exists.
    pub device: Option<ObservedDevice>,
    /// Permanent neighbour entries on the device.
    pub neighbours: BTreeMap<Ipv4Addr, MacAddr>,
    /// FDB entries of the device (unicast).
    pub fdb: BTreeSet<(MacAddr, Ipv4Addr)>,
    /// IPv4 routes through the device, main table.
    pub routes: BTreeSet<ObservedRoute>,
    /// Subnets in the BPF maps; `None` when there are no maps.
    pub maps: Option<BTreeMap<Ipv4Network, Peer>>,
}

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
    /// Set it up.
    SetUp,
    /// Add `<address>/32`.
    AddAddress(Ipv4Addr),
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
    /// Remove a route.
    RemoveRoute(ObservedRoute),
}
