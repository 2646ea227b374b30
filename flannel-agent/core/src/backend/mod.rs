//! The backends: how a node reaches its peers. One file has all facts of one backend.
//! Another is a file, a variant of [`Backend`], and a line of the one match:
//! [`Backend::facts`]. Nothing else asks which backend it is; `cargo xtask tidy` looks.

pub mod alloc;
pub mod host_gw;
mod settings;
pub mod udp;
pub mod vxlan;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use strum::{
    Display, EnumDiscriminants, EnumIter, IntoEnumIterator as _, IntoStaticStr, VariantArray,
};

pub use self::settings::{BackendSettings, SettingsError};
pub use self::udp::UdpConfig;
pub use self::vxlan::VxlanConfig;
use crate::mac::MacAddr;
use crate::text;

/// A backend with its settings.
#[derive(Clone, Debug, PartialEq, Eq, EnumDiscriminants, EnumIter)]
#[strum_discriminants(
    name(BackendKind),
    doc = "The type of a backend, as flannel spells it.",
    derive(PartialOrd, Ord, Serialize, Deserialize, JsonSchema),
    derive(Display, IntoStaticStr, VariantArray),
    serde(rename_all = "kebab-case"),
    strum(serialize_all = "kebab-case")
)]
pub enum Backend {
    /// Tunnels of the kernel's VXLAN device.
    Vxlan(VxlanConfig),
    /// A route to each peer through the underlay.
    HostGw,
    /// IPv4 packets in UDP datagrams, by a process.
    Udp(UdpConfig),
    /// A lease and subnet.env, and nothing else.
    Alloc,
}

impl Backend {
    /// What is to be known of it.
    pub fn facts(&self) -> &dyn Facts {
        match self {
            Self::Vxlan(settings) => settings,
            Self::HostGw => &host_gw::HostGw,
            Self::Udp(settings) => settings,
            Self::Alloc => &alloc::Alloc,
        }
    }

    /// What no `Backend` in the network config means.
    pub fn unasked() -> Self {
        Self::Udp(UdpConfig::default())
    }

    /// Its type.
    pub fn kind(&self) -> BackendKind {
        self.into()
    }

    /// The type with its settings.
    pub fn describe(&self) -> String {
        match self.facts().settings() {
            Some(settings) => format!("{} ({settings})", self.kind()),
            None => self.kind().to_string(),
        }
    }
}

/// What is to be known of a backend.
pub trait Facts {
    /// The backend with the settings that the network config gives.
    ///
    /// # Errors
    /// A setting cannot be used.
    fn configured(&self, settings: &BackendSettings<'_>) -> Result<Backend, SettingsError>;

    /// Its settings in words, if it has any.
    fn settings(&self) -> Option<String> {
        None
    }

    /// Settings of the tunnel by the kernel's VXLAN device, if there is one.
    fn vxlan(&self) -> Option<&VxlanConfig> {
        None
    }

    /// Name of its device, if it has one.
    fn device(&self) -> Option<String> {
        None
    }

    /// UDP port of its packets, if it has one.
    fn port(&self) -> Option<u16> {
        None
    }

    /// Bytes that it adds to an IPv4 underlay's packets.
    fn overhead(&self) -> u32 {
        0
    }

    /// MTU of the underlay to assume, in bytes; `None`: the interface's.
    fn underlay_mtu(&self) -> Option<u32> {
        None
    }

    /// How peers are reached.
    fn reaches(&self) -> Reaches;

    /// Whether our programs can carry its packets.
    fn has_programs(&self) -> bool {
        false
    }

    /// Whether PublicIP has to be an address of the underlay: looked at at the start,
    /// and followed.
    fn wants_own_address(&self) -> bool {
        false
    }

    /// What a node's lease tells; `mac` is its VTEP's.
    fn publishes(&self, mac: MacAddr) -> Published;

    /// Reads a peer's lease: the MAC of its VTEP, zero where there are none.
    ///
    /// # Errors
    /// It is no peer with this backend.
    fn read_peer(&self, told: Told<'_>) -> Result<MacAddr, Misfit>;
}

/// How peers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaches {
    /// Through a VXLAN device.
    Tunnel,
    /// By routes through the underlay where they are on its link, else through a VXLAN
    /// device.
    DirectOrTunnel,
    /// By routes through the underlay.
    Direct,
    /// By a process, through a device of its own and a port.
    Process,
    /// Not at all: there are no peers.
    Nobody,
}

impl Reaches {
    /// Those on the underlay's link by routes through it.
    pub const fn directly(self) -> bool {
        matches!(self, Self::Direct | Self::DirectOrTunnel)
    }

    /// Some of them by VTEPs.
    pub const fn by_vteps(self) -> bool {
        matches!(self, Self::Tunnel | Self::DirectOrTunnel)
    }
}

/// `BackendType` and `BackendData`, for a lease.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Empty for the backends that do not tell it.
    pub backend_type: String,
    /// As it stands in the lease.
    pub data: Option<Box<RawValue>>,
}

/// The same of a lease that was read.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// `BackendType`; empty where there is none.
    pub backend_type: &'a str,
    /// `BackendData`.
    pub data: Option<&'a RawValue>,
}

impl<'a> From<&'a Published> for Told<'a> {
    fn from(published: &'a Published) -> Self {
        Self { backend_type: &published.backend_type, data: published.data.as_deref() }
    }
}

impl Told<'_> {
    /// Refuses the lease of another backend.
    fn is_of(&self, wanted: BackendKind) -> Result<(), Misfit> {
        match self.backend_type {
            told if told == wanted.name() => Ok(()),
            "" => Err(Misfit::NoType(wanted)),
            _ => {
                let found = text::shown(self.backend_type, 32);
                Err(Misfit::OtherBackend { found, wanted })
            }
        }
    }
}

/// Why a lease tells a backend of no peer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misfit {
    /// Another backend's lease.
    #[error("BackendType is `{found}`, not `{wanted}`")]
    OtherBackend {
        /// The start of what was read.
        found: String,
        /// What there should be.
        wanted: BackendKind,
    },
    /// There is no `BackendType`, as in leases of the udp and alloc backends.
    #[error("BackendType is missing, as udp and alloc write it; the network config says `{0}`")]
    NoType(BackendKind),
    /// There is no `BackendData`.
    #[error("BackendData is missing")]
    NoData,
    /// `BackendData` has no VTEP's MAC.
    #[error("BackendData `{data}` is not a VTEP: {cause}")]
    BadData {
        /// The start of what was read.
        data: String,
        /// Why it could not be decoded.
        cause: String,
    },
    /// A zero or group MAC.
    #[error("VtepMAC {0} is no unicast address")]
    BadMac(MacAddr),
    /// The alloc backend has no peers.
    #[error("the alloc backend has no peers")]
    NoPeers,
}

impl BackendKind {
    /// As flannel spells it.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// That of this name, in any case.
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        Self::VARIANTS.iter().find(|kind| kind.name() == name).copied()
    }

    /// The names of all, for messages.
    pub fn supported() -> String {
        Self::VARIANTS.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
    }

    /// The backend with its default settings.
    pub fn backend(self) -> Backend {
        let found = Backend::iter().find(|backend| backend.kind() == self);
        found.expect("each type is of a variant")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_flannels_names() {
        assert_eq!(BackendKind::supported(), "vxlan, host-gw, udp, alloc");
        for kind in BackendKind::VARIANTS {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(kind.backend().kind(), *kind);
            assert_eq!(BackendKind::named(kind.name()), Some(*kind));
        }
    }

    #[test]
    fn a_process_has_a_device_and_a_port() {
        let udp = Backend::Udp(UdpConfig { port: 4789 });
        let facts = udp.facts();
        assert_eq!(facts.reaches(), Reaches::Process);
        assert_eq!((facts.device().as_deref(), facts.port()), (Some("flannel0"), Some(4789)));
    }

    /// What one node publishes, another with the same backend reads.
    #[test]
    fn each_backend_reads_what_it_publishes() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let vxlan = Backend::Vxlan(VxlanConfig::default());
        for (backend, read) in [
            (vxlan, Ok(mac)),
            (Backend::HostGw, Ok(MacAddr::default())),
            (Backend::Udp(UdpConfig::default()), Ok(MacAddr::default())),
            (Backend::Alloc, Err(Misfit::NoPeers)),
        ] {
            let facts = backend.facts();
            assert_eq!(facts.read_peer((&facts.publishes(mac)).into()), read, "{backend:?}");
        }
    }
}
