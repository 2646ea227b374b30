//! `--tunnel-checksum`: who makes the checksums of packets that go into the tunnel.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who makes the checksums of TCP and UDP in packets that go into the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum TunnelChecksum {
    /// The network card, if it says that it can; the device is left as it is
    #[default]
    Device,
    /// The kernel, before the tunnel, for cards that make wrong ones: the fast path then
    /// carries nothing into the tunnel
    Kernel,
}

impl TunnelChecksum {
    /// What the device is to be, where the last run had `before`; `None`: what it is.
    pub fn wanted(self, before: Self) -> Option<Self> {
        (self == Self::Kernel || before == Self::Kernel).then_some(self)
    }

    /// Whether it is the default, for what is written only if it is not.
    pub fn is_device(&self) -> bool {
        *self == Self::Device
    }
}

impl fmt::Display for TunnelChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Kernel => "kernel",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::TunnelChecksum::{Device, Kernel};

    #[test]
    fn a_device_that_others_have_set_stays_so() {
        assert_eq!(Device.wanted(Device), None);
        assert_eq!(Device.wanted(Kernel), Some(Device), "we did it");
        assert_eq!((Kernel.wanted(Device), Kernel.wanted(Kernel)), (Some(Kernel), Some(Kernel)));
    }
}
