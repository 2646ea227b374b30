//! What the node remembers across restarts, as it stands in `state.json`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checksum::TunnelChecksum;
use crate::mac::MacAddr;
use crate::status::Attachment;

/// Version of the file's format that this program writes. A file of a higher
/// one is not read.
pub const VERSION: u32 = 1;

/// The contents of `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeState {
    /// Version of the format; the agent writes the newest.
    pub version: u32,
    /// The PublicIP of the lease.
    pub public_ip: Ipv4Addr,
    /// The flags that it was chosen by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<String>,
    /// The node's subnet, host bits zero.
    #[schemars(with = "String")]
    pub subnet: Ipv4Network,
    /// MAC of the VTEP.
    pub vtep_mac: MacAddr,
    /// Name of the VXLAN device, with the backend that has one.
    #[serde(default)]
    pub device: Option<String>,
    /// VXLAN network identifier, with the backend that has one.
    #[serde(default)]
    pub vni: Option<u32>,
    /// The overlay network; absent in files of early versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub network: Option<Ipv4Network>,
    /// How the programs were attached; `None` on the kernel path.
    #[serde(default)]
    pub attach: Option<Attachment>,
    /// Where subnet.env was written, absolute.
    #[serde(default)]
    pub subnet_file: Option<PathBuf>,
    /// Where maps and links were pinned, absolute.
    #[serde(default)]
    pub pin_dir: Option<PathBuf>,
    /// Sysctls that the agent changed, with the values they had before.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Who makes the checksums of what the device sends, if we have changed it.
    #[serde(default, skip_serializing_if = "TunnelChecksum::is_device")]
    pub tunnel_checksum: TunnelChecksum,
}

/// Read first, so that a newer format is told from a broken file.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Reads what the file holds.
///
/// # Errors
/// Why it cannot be used.
pub fn parse(bytes: &[u8]) -> Result<NodeState, String> {
    let Version { version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if version > VERSION {
        return Err(format!(
            "its format is version {version} of a newer agent, this one knows {VERSION}"
        ));
    }
    let state: NodeState = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if state.subnet.ip() != state.subnet.network() {
        return Err(format!("its subnet {} has host bits", state.subnet));
    }
    if !state.vtep_mac.is_unicast() {
        return Err(format!("its VTEP MAC {} is not a unicast address", state.vtep_mac));
    }
    Ok(state)
}
