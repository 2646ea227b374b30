//! What the node should look like, from leases, underlay and config. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::mac::MacAddr;

/// The VXLAN device `flannel.<VNI>` as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `flannel.<VNI>`.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Local tunnel address.
    pub local: Ipv4Addr,
    /// Interface index of the underlay device.
    pub underlay: u32,
    /// The VTEP's MAC, given at creation.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Group-based policy extension.
    pub gbp: bool,
    /// Whether the device learns FDB entries from traffic.
    pub learning: bool,
    /// First address of our subnet; the device carries it as a /32.
    pub address: Ipv4Addr,
    /// The overlay network; other addresses within it on the device are not wanted.
    pub network: Ipv4Network,
}

/// A lease that is not ours, reduced to what the data plane needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// The peer's overlay subnet.
    pub subnet: Ipv4Network,
    /// MAC of its VTEP.
    pub vtep_mac: MacAddr,
    /// Its underlay address.
    pub public_ip: Ipv4Addr,
}

/// Everything that the node should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The VXLAN device.
    pub device: Device,
    /// All peers by subnet.
    pub peers: BTreeMap<Ipv4Network, Peer>,
}
