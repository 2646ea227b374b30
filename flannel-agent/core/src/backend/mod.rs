//! The backends: how a node reaches its peers.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type of a backend, as flannel spells it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum BackendKind {
    /// Tunnels of the kernel's VXLAN device.
    Vxlan,
    /// A route to each peer through the underlay.
    HostGw,
    /// IPv4 packets in UDP datagrams, by a process.
    Udp,
    /// A lease and subnet.env, and nothing else.
    Alloc,
}

impl BackendKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Vxlan, Self::HostGw, Self::Udp, Self::Alloc];

    /// As flannel spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Udp => "udp",
            Self::Alloc => "alloc",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_flannels_names() {
        for kind in BackendKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
