//! The network config JSON under `<prefix>/config`.
//!
//! Meaning and message texts are flannel's. What flannel says stands word for
//! word in our messages; where that does not tell which key is meant or what
//! to do, something follows it.

mod error;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use ipnetwork::Ipv4Network;

pub use self::error::ConfigError;
pub use crate::backend::vxlan::MAX_VNI;
pub use crate::backend::{Backend, SettingsError, UdpConfig, VxlanConfig};
use crate::backend::{BackendKind, BackendSettings};
pub use crate::go_json::GoType;
use crate::go_json::{Kind, Value, excerpt, names, set};

/// Backend types of flannel, of now and of earlier, that are not there.
const FLANNELS_OTHER_BACKENDS: [&str; 9] = [
    "ipip",
    "wireguard",
    "ipsec",
    "extension",
    "tencent-vpc",
    "ali-vpc",
    "aliyun-vpc",
    "aws-vpc",
    "gce",
];

/// A validated network config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The overlay network, host bits zero.
    pub network: Ipv4Network,
    /// Prefix length of each node's subnet.
    pub subnet_len: u8,
    /// First subnet that may be given out (its network address).
    pub subnet_min: Ipv4Addr,
    /// Last subnet that may be given out (its network address).
    pub subnet_max: Ipv4Addr,
    /// The backend.
    pub backend: Backend,
}

impl NetworkConfig {
    /// Its keys, with what they are.
    pub fn described(&self) -> [(&'static str, String); 5] {
        [
            ("Network", self.network.to_string()),
            ("SubnetLen", self.subnet_len.to_string()),
            ("SubnetMin", self.subnet_min.to_string()),
            ("SubnetMax", self.subnet_max.to_string()),
            ("Backend", self.backend.describe()),
        ]
    }

    /// What it has other than `before`, key by key.
    pub fn differences(&self, before: &Self) -> Vec<String> {
        let both = self.described().into_iter().zip(before.described());
        both.filter(|(now, before)| now != before)
            .map(|((key, now), (_, before))| format!("{key} {now} for {before}"))
            .collect()
    }

    /// The addresses of all subnets that may be given out.
    pub fn pods(&self) -> RangeInclusive<Ipv4Addr> {
        let size = u32::MAX.checked_shr(self.subnet_len.into()).unwrap_or(0);
        self.subnet_min..=Ipv4Addr::from_bits(self.subnet_max.to_bits() | size)
    }
}

/// The top-level keys as they stand in the document.
struct Document<'a> {
    enable_ipv4: bool,
    enable_ipv6: bool,
    network: Option<Ipv4Network>,
    subnet_len: i64,
    subnet_min: Option<Ipv4Addr>,
    subnet_max: Option<Ipv4Addr>,
    backend: Option<Value<'a>>,
}

impl NetworkConfig {
    /// Reads and checks a network config as flannel's etcd manager does.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let document = Document::read(text)?;
        if document.enable_ipv6 {
            let hint = "remove it: only IPv4 overlays are there so far";
            return Err(ConfigError::NotSupported { key: "EnableIPv6", value: true, hint });
        }
        if !document.enable_ipv4 {
            let hint = "remove it: only IPv4 overlays are there so far";
            return Err(ConfigError::NotSupported { key: "EnableIPv4", value: false, hint });
        }
        let network = document
            .network
            .filter(|network| network.prefix() > 0)
            .ok_or(ConfigError::NoNetwork)?;
        let subnet_len = subnet_len(network, document.subnet_len)?;
        let (subnet_min, subnet_max) = range(network, subnet_len, &document)?;
        let backend = Backend::read(document.backend)?;
        Ok(Self { network, subnet_len, subnet_min, subnet_max, backend })
    }
}

impl<'a> Document<'a> {
    fn read(text: &'a str) -> Result<Self, ConfigError> {
        let mut document = Self {
            enable_ipv4: true,
            enable_ipv6: false,
            network: None,
            subnet_len: 0,
            subnet_min: None,
            subnet_max: None,
            backend: None,
        };
        let value = Value::parse(text).map_err(ConfigError::Syntax)?;
        if value.kind() == Kind::Null {
            return Ok(document);
        }
        let members =
            value.members().ok_or_else(|| ConfigError::NotAnObject(value.kind().to_string()))?;
        for (key, value) in members {
            let is = |field| names(&key, field);
            if is("Network") {
                document.network = Some(network("Network", value)?);
            } else if is("SubnetMin") {
                document.subnet_min = address("SubnetMin", value)?;
            } else if is("SubnetMax") {
                document.subnet_max = address("SubnetMax", value)?;
            } else if is("SubnetLen") {
                let read = |value: Value<'_>| value.integer().filter(|len| *len >= 0);
                set(&mut document.subnet_len, value, GoType::Uint, read)
                    .map_err(wrong_type("SubnetLen", GoType::Uint))?;
            } else if is("EnableIPv4") {
                set(&mut document.enable_ipv4, value, GoType::Bool, Value::boolean)
                    .map_err(wrong_type("EnableIPv4", GoType::Bool))?;
            } else if is("EnableIPv6") {
                set(&mut document.enable_ipv6, value, GoType::Bool, Value::boolean)
                    .map_err(wrong_type("EnableIPv6", GoType::Bool))?;
            } else if is("Backend") {
                document.backend = Some(value);
            }
        }
        Ok(document)
    }
}

impl Backend {
    fn read(value: Option<Value<'_>>) -> Result<Self, ConfigError> {
        let Some(value) = value else { return Ok(Self::unasked()) };
        let members = match value.kind() {
            Kind::Null => Vec::new(),
            kind => value.members().ok_or_else(|| ConfigError::BadBackend {
                value: kind.to_string(),
                into: "Go value of type struct { Type string }",
            })?,
        };
        let mut backend_type = String::new();
        for (key, value) in &members {
            if names(key, "Type") {
                let into = "Go struct field .Type of type string";
                set(&mut backend_type, *value, GoType::String, Value::string)
                    .map_err(|value| ConfigError::BadBackend { value, into })?;
            }
        }
        if let Some(kind) = BackendKind::named(&backend_type) {
            return Ok(kind.backend().facts().configured(&BackendSettings::new(members))?);
        }
        let lower = backend_type.to_lowercase();
        Err(match FLANNELS_OTHER_BACKENDS.contains(&lower.as_str()) {
            true => ConfigError::UnsupportedBackend(lower),
            false => ConfigError::UnknownBackend(excerpt(&backend_type)),
        })
    }
}

fn wrong_type(key: &'static str, expected: GoType) -> impl FnOnce(String) -> ConfigError {
    move |value| ConfigError::WrongType { key, value, expected }
}

/// A value that flannel's own address types read, which do not skip `null`.
fn address_text(value: Value<'_>) -> String {
    value.string().unwrap_or_else(|| value.text().to_owned())
}

fn network(key: &'static str, value: Value<'_>) -> Result<Ipv4Network, ConfigError> {
    let text = address_text(value);
    let bad = || ConfigError::BadCidr { key, value: excerpt(&text) };
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    match address.parse().map_err(|_| bad())? {
        IpAddr::V4(address) => {
            let network = Ipv4Network::new(address, prefix).map_err(|_| bad())?;
            Ipv4Network::new(network.network(), prefix).map_err(|_| bad())
        }
        IpAddr::V6(_) if prefix <= 128 => Err(ConfigError::NotIpv4 { key, value: excerpt(&text) }),
        IpAddr::V6(_) => Err(bad()),
    }
}

/// An address; `0.0.0.0` means "not given".
fn address(key: &'static str, value: Value<'_>) -> Result<Option<Ipv4Addr>, ConfigError> {
    let text = address_text(value);
    // Go takes an address that is mapped to IPv6 for the IPv4 one.
    match text.parse().map(|address: IpAddr| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => Ok((!address.is_unspecified()).then_some(address)),
        Ok(IpAddr::V6(_)) => Err(ConfigError::NotIpv4 { key, value: excerpt(&text) }),
        Err(_) => Err(ConfigError::BadAddress { key, value: excerpt(&text) }),
    }
}

/// The prefix length of the subnets; `asked` is 0 when none is given.
fn subnet_len(network: Ipv4Network, asked: i64) -> Result<u8, ConfigError> {
    let prefix = network.prefix();
    match asked {
        0 if prefix > 28 => Err(ConfigError::NetworkTooSmall(network)),
        0 if prefix <= 22 => Ok(24),
        0 => Ok(prefix + 2),
        _ => {
            let len = u8::try_from(asked)
                .ok()
                .filter(|len| *len <= 30)
                .ok_or(ConfigError::SubnetLenTooLong(asked))?;
            if len < prefix + 2 {
                return Err(ConfigError::TooFewSubnets { subnet_len: asked, network });
            }
            Ok(len)
        }
    }
}

/// The first and the last subnet to give out. The network's first subnet is
/// left out by default: its address would be the network's own.
fn range(
    network: Ipv4Network,
    subnet_len: u8,
    document: &Document<'_>,
) -> Result<(Ipv4Addr, Ipv4Addr), ConfigError> {
    let size = 1u32 << (32 - subnet_len);
    let first = u32::from(network.network()) + size;
    let last = u32::from(network.broadcast()) & !(size - 1);
    let checked = |key, given: Option<Ipv4Addr>, default: u32| match given {
        None => Ok(Ipv4Addr::from(default)),
        Some(address) if !network.contains(address) => {
            Err(ConfigError::OutOfNetwork { key, address, network })
        }
        Some(address) if u32::from(address) & (size - 1) != 0 => {
            Err(ConfigError::OffBoundary { key, address, subnet_len })
        }
        Some(address) => Ok(address),
    };
    Ok((
        checked("SubnetMin", document.subnet_min, first)?,
        checked("SubnetMax", document.subnet_max, last)?,
    ))
}
