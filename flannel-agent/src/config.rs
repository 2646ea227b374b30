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

/// The network config cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ConfigError(String);

impl NetworkConfig {
    /// Reads the config's JSON.
    ///
    /// # Errors
    /// When it is no JSON, or has no usable `Network`.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        #[derive(serde::Deserialize)]
        struct Wire {
            #[serde(rename = "Network")]
            network: Ipv4Network,
            #[serde(rename = "SubnetLen", default = "class_c")]
            subnet_len: u8,
            #[serde(rename = "SubnetMin")]
            subnet_min: Option<std::net::Ipv4Addr>,
            #[serde(rename = "SubnetMax")]
            subnet_max: Option<std::net::Ipv4Addr>,
        }
        fn class_c() -> u8 {
            24
        }
        let wire: Wire = serde_json::from_str(text).map_err(|e| ConfigError(e.to_string()))?;
        let size = 1u32 << (32 - u32::from(wire.subnet_len));
        let (first, last) =
            (u32::from(wire.network.network()), u32::from(wire.network.broadcast()));
        Ok(Self {
            network: wire.network,
            subnet_len: wire.subnet_len,
            subnet_min: wire.subnet_min.unwrap_or((first + size).into()),
            subnet_max: wire.subnet_max.unwrap_or((last + 1 - size).into()),
            backend: Backend::Vxlan(VxlanConfig {
                vni: 1,
                port: 8472,
                gbp: false,
                learning: false,
                mtu: None,
            }),
        })
    }
}
