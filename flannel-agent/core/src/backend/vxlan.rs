//! `"Type": "vxlan"`: tunnels of the kernel's VXLAN device, `flannel.<VNI>`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::to_raw_value;

use super::settings::{GoStruct, Target};
use super::{
    Backend, BackendKind, BackendSettings, Facts, Misfit, Published, Reaches, SettingsError, Told,
};
use crate::go_json::Fields;
use crate::mac::MacAddr;
use crate::text;

/// UDP port of the kernel's VXLAN devices when none is given.
pub const DEFAULT_PORT: u16 = 8472;

/// Largest VXLAN network identifier whose device, `flannel.<VNI>`, has a name that
/// the kernel takes: 15 characters.
pub const MAX_VNI: u32 = 9_999_999;

/// Bytes that VXLAN adds to an IPv4 underlay's packets: 20 IPv4 + 8 UDP +
/// 8 VXLAN + 14 inner Ethernet.
pub const OVERHEAD: u32 = 50;

/// VNIs that can be used, for messages.
const VNIS: &str = "0 to 9999999: the device flannel.<VNI> may have a name of 15 characters";

/// Smallest MTU of the underlay that leaves IPv4's minimum of 68 bytes inside.
const MIN_UNDERLAY_MTU: u32 = 68 + OVERHEAD;

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
    /// MTU of the underlay to assume in bytes; `None`: the interface's.
    pub mtu: Option<u32>,
    /// Peers that are reached without a gateway get a route through the
    /// underlay in place of the tunnel.
    pub direct_routing: bool,
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self {
            vni: 1,
            port: DEFAULT_PORT,
            gbp: false,
            learning: false,
            mtu: None,
            direct_routing: false,
        }
    }
}

impl VxlanConfig {
    /// Name of the device.
    pub fn device_name(&self) -> String {
        format!("flannel.{}", self.vni)
    }
}

impl Facts for VxlanConfig {
    fn configured(&self, settings: &BackendSettings<'_>) -> Result<Backend, SettingsError> {
        let (mut vni, mut port, mut mtu) = (self.vni.into(), 0, 0);
        let (mut gbp, mut learning) = (self.gbp, self.learning);
        let mut direct_routing = self.direct_routing;
        let flannels = GoStruct { backend: BackendKind::Vxlan, name: "VXLANConfig" };
        settings.read(
            flannels,
            &mut [
                ("VNI", Target::Integer(&mut vni)),
                ("Port", Target::Integer(&mut port)),
                ("MTU", Target::Integer(&mut mtu)),
                ("GBP", Target::Boolean(&mut gbp)),
                ("Learning", Target::Boolean(&mut learning)),
                ("DirectRouting", Target::Boolean(&mut direct_routing)),
            ],
        )?;
        let out_of_range = |key, value, range| SettingsError::OutOfRange { key, value, range };
        let vni = u32::try_from(vni)
            .ok()
            .filter(|vni| *vni <= MAX_VNI)
            .ok_or_else(|| out_of_range("VNI", vni, VNIS))?;
        let port = match u16::try_from(port) {
            Ok(0) => DEFAULT_PORT,
            Ok(port) => port,
            Err(_) => return Err(out_of_range("Port", port, "0 to 65535 (0: the kernel's 8472)")),
        };
        let mtu = match u32::try_from(mtu) {
            Ok(0) => None,
            Ok(bytes) if (MIN_UNDERLAY_MTU..=65535).contains(&bytes) => Some(bytes),
            _ => {
                let range = "118 to 65535, or 0 for the interface's";
                return Err(out_of_range("MTU", mtu, range));
            }
        };
        Ok(Backend::Vxlan(Self { vni, port, gbp, learning, mtu, direct_routing }))
    }

    fn settings(&self) -> Option<String> {
        let Self { vni, port, gbp, learning, mtu, direct_routing } = self;
        let mtu = mtu.map_or("of the interface".to_owned(), |mtu| mtu.to_string());
        Some(format!(
            "VNI {vni}, Port {port}, GBP {gbp}, Learning {learning}, MTU {mtu}, \
             DirectRouting {direct_routing}"
        ))
    }

    fn vxlan(&self) -> Option<&VxlanConfig> {
        Some(self)
    }

    fn device(&self) -> Option<String> {
        Some(self.device_name())
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }

    fn overhead(&self) -> u32 {
        OVERHEAD
    }

    fn underlay_mtu(&self) -> Option<u32> {
        self.mtu
    }

    fn reaches(&self) -> Reaches {
        if self.direct_routing { Reaches::DirectOrTunnel } else { Reaches::Tunnel }
    }

    fn has_programs(&self) -> bool {
        true
    }

    fn publishes(&self, mac: MacAddr) -> Published {
        VxlanData { vni: self.vni, vtep_mac: mac }.published()
    }

    fn read_peer(&self, told: Told<'_>) -> Result<MacAddr, Misfit> {
        let mac = VxlanData::read(told)?.vtep_mac;
        if mac.is_unicast() { Ok(mac) } else { Err(Misfit::BadMac(mac)) }
    }
}

/// `BackendData` of a VXLAN lease (flannel's `vxlanLeaseAttrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VxlanData {
    /// Absent before v0.12; readers ignore it.
    #[serde(rename = "VNI")]
    pub vni: u32,
    /// MAC of the node's VTEP.
    #[serde(rename = "VtepMAC")]
    pub vtep_mac: MacAddr,
}

impl VxlanData {
    /// As a lease has it.
    pub fn published(&self) -> Published {
        Published {
            backend_type: BackendKind::Vxlan.name().to_owned(),
            // A number and a text always have a JSON form.
            data: to_raw_value(self).ok(),
        }
    }

    /// The VTEP that a VXLAN lease tells of.
    ///
    /// # Errors
    /// It is another backend's lease, or `BackendData` is unusable.
    pub fn read(told: Told<'_>) -> Result<Self, Misfit> {
        told.is_of(BackendKind::Vxlan)?;
        let data = told.data.ok_or(Misfit::NoData)?.get();
        serde_json::from_str(data).map_err(|error| Misfit::BadData {
            data: text::shown(data, 80),
            cause: text::shown(&error.to_string(), text::VALUE),
        })
    }
}

impl<'de> Deserialize<'de> for VxlanData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Fields::deserialize(deserializer)?;
        let vtep_mac = fields.read("VtepMAC")?;
        Ok(Self {
            vni: fields.read("VNI")?.unwrap_or_default(),
            vtep_mac: vtep_mac.ok_or_else(|| D::Error::missing_field("VtepMAC"))?,
        })
    }
}
