//! What the underlay carries.

use serde::{Deserialize, Serialize};

use flannel_tests::netns::Netns;

/// A kind of underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// Super-packets of up to 64 KiB, as a veth carries them: nothing is cut
    /// or put together between the two sockets
    Gso,
    /// As a network card: cut to the MTU before the wire, put together again
    /// by GRO at the receiver
    Mtu,
}

impl Wire {
    /// Name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gso => "gso",
            Self::Mtu => "mtu",
        }
    }

    /// Title of its table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Gso => "GSO wire: super-packets over veth",
            Self::Mtu => "MTU wire: cut to the MTU before the wire, GRO at the receiver",
        }
    }

    /// Makes the veth `device` one end of such a wire.
    ///
    /// Checksums stay offloaded on both: a network card computes them, too. A
    /// veth with GRO receives by NAPI, as a network card does.
    ///
    /// # Panics
    /// ethtool fails.
    pub fn set(self, netns: &Netns, device: &str) {
        let (cut, join, queue) = match self {
            Self::Gso => ("on", "off", "noqueue"),
            Self::Mtu => ("off", "on", "pfifo_fast"),
        };
        netns.sh(&format!("tc qdisc replace dev {device} root {queue}"));
        // Tunnels' aggregates and those of UDP have features of their own.
        netns.sh(&format!(
            "ethtool -K {device} tso {cut} gso {cut} tx-udp-segmentation {cut} \
             tx-udp_tnl-segmentation {cut} tx-udp_tnl-csum-segmentation {cut} gro {join}"
        ));
    }
}
