//! Masquerade and forward rules of the overlay: as text, and what is there of
//! them.

pub mod chains;
pub mod names;
pub mod packet_rules;
pub mod rules;
pub mod saved;
pub mod upstream;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The overlay network.
    pub network: Ipv4Network,
    /// Our subnet.
    pub subnet: Ipv4Network,
    /// Masquerade traffic that leaves the overlay (`--ip-masq`).
    pub masquerade: bool,
    /// Accept forwarded packets of the overlay (`--iptables-forward-rules`).
    pub forward: bool,
    /// Masquerade from random source ports (not `--ip-masq-fully-random-disable`).
    pub fully_random: bool,
    /// UDP port of the tunnel: masquerade must not use it as a source port,
    /// since answers to it would be taken for VXLAN.
    pub vxlan_port: u16,
}
