//! The network config JSON under `<prefix>/config`.

use ipnetwork::Ipv4Network;

/// A validated network config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The overlay network, host bits zero.
    pub network: Ipv4Network,
    /// Prefix length of each node's subnet.
    pub subnet_len: u8,
    /// First subnet that may be given out (its network address).
    pub subnet_min: std::net::Ipv4Addr,
    /// Last subnet that may be given out (its network address).
    pub subnet_max: std::net::Ipv4Addr,
    /// The backend.
    pub backend: Backend,
}

/// The `Backend` object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// `"Type": "vxlan"`.
    Vxlan(VxlanConfig),
}

/// Settings of the VXLAN backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanConfig {
    /// VXLAN network identifier (1).
    pub vni: u32,
    /// UDP port (8472, the kernel's default, when 0 or absent).
    pub port: u16,
    /// Group-based policy.
    pub gbp: bool,
    /// Let the device learn.
    pub learning: bool,
    /// MTU of the underlay to assume; `None`: the interface's.
    pub mtu: Option<u32>,
}
