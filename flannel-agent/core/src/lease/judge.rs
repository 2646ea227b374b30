//! Whether a lease stands for a peer: each rule and its message, once.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::Lease;
use crate::backend::{Backend, Misfit};
use crate::mac::MacAddr;
use crate::peer::Peer;
use crate::subnet::within;

/// What the store knows of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// Our subnet, once we have one.
    pub subnet: Option<Ipv4Network>,
    /// What peers send to.
    pub public_ip: Ipv4Addr,
}

/// Why a lease is no peer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoPeer {
    /// Our own subnet, whoever holds it.
    #[error("its subnet is ours")]
    OwnSubnet,
    /// Its subnet covers (part of) ours.
    #[error("its subnet overlaps ours, {0}")]
    OverlapsOwn(Ipv4Network),
    /// PublicIP is ours: an old lease of this node, or a duplicate address.
    #[error("its PublicIP {0} is ours: an old lease of this node, or an address given twice")]
    OwnPublicIp(Ipv4Addr),
    /// Not in the overlay network.
    #[error("its subnet is not within the overlay network {0}")]
    OutsideNetwork(Ipv4Network),
    /// It tells our backend of no peer.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The MAC is ours: a cloned machine.
    #[error("its VTEP MAC is ours; was this machine cloned?")]
    OwnMac,
    /// PublicIP cannot be an underlay destination.
    #[error("PublicIP {0} is no unicast address")]
    BadPublicIp(Ipv4Addr),
    /// PublicIP is a pod's: packets to it would go into their own tunnel.
    #[error(
        "its PublicIP {0} is an address of its own subnet: was the pods' bridge taken for the \
         underlay there? --iface names another"
    )]
    InOwnSubnet(Ipv4Addr),
}

/// Whether this lease is a peer, as far as the store's data tell. What the node's
/// devices have to say follows in [`unfit`].
///
/// # Errors
/// It is none.
pub fn judge(
    lease: &Lease,
    network: Ipv4Network,
    backend: &Backend,
    own: Option<Own>,
) -> Result<Peer, NoPeer> {
    let public_ip = lease.attrs.public_ip;
    if own.is_some_and(|own| own.subnet == Some(lease.subnet)) {
        return Err(NoPeer::OwnSubnet);
    }
    ours(public_ip, own.map(|own| own.public_ip))?;
    inside(network, lease.subnet)?;
    let vtep_mac = backend.facts().read_peer(lease.attrs.told())?;
    sendable(public_ip)?;
    outside(lease.subnet, public_ip)?;
    Ok(Peer { subnet: lease.subnet, vtep_mac, public_ip })
}

/// The node that a peer is programmed on.
#[derive(Clone, Copy, Debug)]
pub struct Here {
    /// Our subnet.
    pub subnet: Ipv4Network,
    /// The overlay network.
    pub network: Ipv4Network,
    /// Our VTEP's MAC, where peers have some.
    pub vtep_mac: Option<MacAddr>,
    /// PublicIP and the underlay's address.
    pub addresses: [Ipv4Addr; 2],
}

/// Why a peer cannot be programmed here, whatever the other leases say.
///
/// # Errors
/// It cannot.
pub fn unfit(peer: Peer, here: &Here) -> Result<(), NoPeer> {
    inside(here.network, peer.subnet)?;
    if within(here.subnet, peer.subnet) || within(peer.subnet, here.subnet) {
        return Err(NoPeer::OverlapsOwn(here.subnet));
    }
    if let Some(own) = here.vtep_mac {
        peer.vtep_mac.is_unicast().then_some(()).ok_or(Misfit::BadMac(peer.vtep_mac))?;
        if peer.vtep_mac == own {
            return Err(NoPeer::OwnMac);
        }
    }
    sendable(peer.public_ip)?;
    ours(peer.public_ip, here.addresses)
}

fn inside(network: Ipv4Network, subnet: Ipv4Network) -> Result<(), NoPeer> {
    if within(network, subnet) { Ok(()) } else { Err(NoPeer::OutsideNetwork(network)) }
}

fn ours(public_ip: Ipv4Addr, own: impl IntoIterator<Item = Ipv4Addr>) -> Result<(), NoPeer> {
    match own.into_iter().any(|own| own == public_ip) {
        true => Err(NoPeer::OwnPublicIp(public_ip)),
        false => Ok(()),
    }
}

fn outside(subnet: Ipv4Network, public_ip: Ipv4Addr) -> Result<(), NoPeer> {
    if subnet.contains(public_ip) { Err(NoPeer::InOwnSubnet(public_ip)) } else { Ok(()) }
}

/// Packets can be sent to `address`.
fn sendable(address: Ipv4Addr) -> Result<(), NoPeer> {
    let [first, ..] = address.octets();
    // 0.0.0.0/8 is "this network", 240.0.0.0/4 is reserved (RFC 1122, 3.2.1.3).
    match first != 0 && first < 240 && !address.is_loopback() && !address.is_multicast() {
        true => Ok(()),
        false => Err(NoPeer::BadPublicIp(address)),
    }
}
