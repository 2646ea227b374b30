//! Why a network config cannot be used, in flannel's words.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::backend::{BackendKind, SettingsError};
use crate::go_json::GoType;

/// Why a network config cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("{0}")]
    Syntax(String),
    /// The document is JSON, but not an object.
    #[error("json: cannot unmarshal {0} into Go value of type subnet.Config; expected an object")]
    NotAnObject(String),
    /// A top-level key has a value of the wrong type.
    #[error("json: cannot unmarshal {value} into Go struct field Config.{key} of type {expected}")]
    WrongType {
        /// The key as the documentation spells it.
        key: &'static str,
        /// Kind of the value found, for numbers with the number.
        value: String,
        /// The type that it should have.
        expected: GoType,
    },
    /// The network is not in CIDR notation.
    #[error("invalid CIDR address: {value} (key {key})")]
    BadCidr {
        /// The key.
        key: &'static str,
        /// What stands there.
        value: String,
    },
    /// The address cannot be read.
    #[error("Invalid IP address format (key {key}: {value})")]
    BadAddress {
        /// The key.
        key: &'static str,
        /// What stands there.
        value: String,
    },
    /// An IPv6 address or network where an IPv4 one belongs.
    #[error("Address is not an IPv4 address (key {key}: {value})")]
    NotIpv4 {
        /// The key.
        key: &'static str,
        /// What stands there.
        value: String,
    },
    /// No `Network`, or `0.0.0.0/0`.
    #[error("please define a correct Network parameter in the flannel config")]
    NoNetwork,
    /// `SubnetLen` over 30.
    #[error("SubnetLen must be less than /31 (it is {0})")]
    SubnetLenTooLong(i64),
    /// `SubnetLen` less than two bits longer than the network's prefix.
    #[error(
        "network must be able to accommodate at least four subnets \
         (SubnetLen {subnet_len}, Network {network})"
    )]
    TooFewSubnets {
        /// The prefix length asked for.
        subnet_len: i64,
        /// The network.
        network: Ipv4Network,
    },
    /// A network longer than /28.
    #[error("network is too small. Minimum useful network prefix is /28 (Network {0})")]
    NetworkTooSmall(Ipv4Network),
    /// `SubnetMin` or `SubnetMax` outside the network.
    #[error("{key} is not in the range of the Network ({address}, Network {network})")]
    OutOfNetwork {
        /// The key.
        key: &'static str,
        /// Its value.
        address: Ipv4Addr,
        /// The network.
        network: Ipv4Network,
    },
    /// `SubnetMin` or `SubnetMax` is not the start of a subnet.
    #[error("{key} is not on a SubnetLen boundary: {address} (SubnetLen {subnet_len})")]
    OffBoundary {
        /// The key.
        key: &'static str,
        /// Its value.
        address: Ipv4Addr,
        /// Prefix length of the subnets.
        subnet_len: u8,
    },
    /// `Backend` is not an object with a string `Type`.
    #[error(
        "error decoding Backend property of config: json: cannot unmarshal {value} into {into}"
    )]
    BadBackend {
        /// Kind of the value found.
        value: String,
        /// Go's name of what it should become.
        into: &'static str,
    },
    /// A backend type that flannel has and we do not.
    #[error(
        "Backend.Type {0} is not supported yet; supported: {supported}",
        supported = BackendKind::supported()
    )]
    UnsupportedBackend(String),
    /// A backend type that nobody knows.
    #[error(
        "unknown backend type: {0} (key Backend.Type; supported: {supported})",
        supported = BackendKind::supported()
    )]
    UnknownBackend(String),
    /// A setting of the backend.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A setting of flannel that is not there yet.
    #[error("{key}={value} is not supported yet; {hint}")]
    NotSupported {
        /// The key.
        key: &'static str,
        /// Its value.
        value: bool,
        /// What to write instead.
        hint: &'static str,
    },
}

impl ConfigError {
    /// The key that is at fault (`Backend.VNI` for a key within an object);
    /// `None` when the document as a whole is.
    pub fn key(&self) -> Option<String> {
        let key = match self {
            Self::Syntax(_) | Self::NotAnObject(_) => return None,
            Self::WrongType { key, .. }
            | Self::BadCidr { key, .. }
            | Self::BadAddress { key, .. }
            | Self::NotIpv4 { key, .. }
            | Self::OutOfNetwork { key, .. }
            | Self::OffBoundary { key, .. }
            | Self::NotSupported { key, .. } => key,
            Self::NoNetwork | Self::NetworkTooSmall(_) => "Network",
            Self::SubnetLenTooLong(_) | Self::TooFewSubnets { .. } => "SubnetLen",
            Self::BadBackend { .. } => "Backend",
            Self::UnsupportedBackend(_) | Self::UnknownBackend(_) => "Backend.Type",
            Self::Settings(error) => return Some(format!("Backend.{}", error.key())),
        };
        Some(key.to_owned())
    }
}
