//! The value under a lease's key, byte for byte as flannel writes it.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::mac::MacAddr;

/// `BackendType` of the VXLAN backend.
pub const VXLAN: &str = "vxlan";

/// What a node publishes about itself (flannel's `lease.LeaseAttrs`).
///
/// The order of the fields is the order of flannel's JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeaseAttrs {
    /// Underlay address.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// IPv6 underlay address; `null` when there is none, absent before v0.15.
    #[serde(rename = "PublicIPv6", default)]
    pub public_ipv6: Option<Ipv6Addr>,
    /// Empty for the backends without one (udp, alloc).
    #[serde(rename = "BackendType", default, skip_serializing_if = "String::is_empty")]
    pub backend_type: String,
    /// Backend-specific, passed through as it is.
    #[serde(rename = "BackendData", default, skip_serializing_if = "Option::is_none")]
    pub backend_data: Option<Box<RawValue>>,
    /// Backend-specific for IPv6, passed through as it is.
    #[serde(rename = "BackendV6Data", default, skip_serializing_if = "Option::is_none")]
    pub backend_v6_data: Option<Box<RawValue>>,
}

impl PartialEq for LeaseAttrs {
    fn eq(&self, other: &Self) -> bool {
        let text = |raw: &Option<Box<RawValue>>| raw.as_deref().map(|raw| raw.get().to_owned());
        self.public_ip == other.public_ip
            && self.public_ipv6 == other.public_ipv6
            && self.backend_type == other.backend_type
            && text(&self.backend_data) == text(&other.backend_data)
            && text(&self.backend_v6_data) == text(&other.backend_v6_data)
    }
}

/// `BackendData` of a VXLAN lease (flannel's `vxlanLeaseAttrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VxlanData {
    /// Absent before v0.12; readers ignore it.
    #[serde(rename = "VNI", default)]
    pub vni: u32,
    /// MAC of the node's VTEP.
    #[serde(rename = "VtepMAC")]
    pub vtep_mac: MacAddr,
}
