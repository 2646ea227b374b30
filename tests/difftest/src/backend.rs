//! The backends whose data paths are compared.

/// How packets get to the other node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// In a tunnel.
    Vxlan,
    /// As they are.
    HostGw,
}

impl Backend {
    /// Name in the network's configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        }
    }
}
