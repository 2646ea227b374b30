//! [`Peer`]: another node, as the data plane knows it.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::mac::MacAddr;

/// A lease that is not ours, reduced to what the data plane needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// The peer's overlay subnet.
    pub subnet: Ipv4Network,
    /// MAC of its VTEP; zero with the backends that have none.
    pub vtep_mac: MacAddr,
    /// Its underlay address.
    pub public_ip: Ipv4Addr,
}
