//! Whether a lease stands for a peer: each rule and its message, once.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::Lease;
use crate::backend::{Backend, Misfit};
use crate::link::{Link, vrf_of};
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

/// The node's addresses, where packets to a peer's PublicIP could never leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    own: BTreeSet<Ipv4Addr>,
    /// To all nodes of a link.
    broadcast: BTreeSet<Ipv4Addr>,
}

impl NodeAddresses {
    /// Those of the links that are asked along with this one: a VRF has its own.
    pub fn of(links: &[Link], underlay: u32) -> Self {
        let vrf = vrf_of(links, underlay);
        let asked = |link: &&Link| !link.addresses.is_empty() && vrf_of(links, link.ifindex) == vrf;
        let addresses = links.iter().filter(asked).flat_map(|link| &link.addresses);
        let mut found = Self::default();
        for network in addresses.map(|address| address.network) {
            found.own.insert(network.ip());
            // RFC 3021: a link between two has none.
            found.broadcast.extend((network.prefix() < 31).then(|| network.broadcast()));
        }
        found
    }
}

/// The node that a peer is programmed on.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// Our subnet.
    pub subnet: Ipv4Network,
    /// The overlay network.
    pub network: Ipv4Network,
    /// Our VTEP's MAC, where peers have some.
    pub vtep_mac: Option<MacAddr>,
    /// PublicIP and the underlay's address.
    pub addresses: [Ipv4Addr; 2],
    /// All that it has.
    pub node: &'a NodeAddresses,
}

/// Why a peer cannot be programmed here, whatever the other leases say.
///
/// # Errors
/// It cannot.
pub fn unfit(peer: Peer, here: &Here<'_>) -> Result<(), NoPeer> {
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
    let address = peer.public_ip;
    sendable(address)?;
    ours(address, here.addresses.into_iter().chain(here.node.own.get(&address).copied()))?;
    match here.node.broadcast.contains(&address) {
        true => Err(NoPeer::BadPublicIp(address)),
        false => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::LinkAddress;

    fn link(ifindex: u32, kind: &str, master: Option<u32>, addresses: &[&str]) -> Link {
        let address = |text: &&str| LinkAddress {
            network: text.parse().unwrap(),
            permanent: true,
            deprecated: false,
            global: true,
        };
        let addresses = addresses.iter().map(address).collect();
        Link { ifindex, kind: kind.to_owned(), master, addresses, ..Link::default() }
    }

    /// Why a peer with this PublicIP is left out.
    fn why(public_ip: &str) -> Option<NoPeer> {
        let links = [
            link(1, "", None, &["127.0.0.1/8"]),
            link(2, "", None, &["192.0.2.11/24", "198.51.100.1/31"]),
            link(3, "bridge", None, &["10.5.1.1/24"]),
            link(4, "vxlan", None, &["10.5.1.0/32"]),
            link(5, "vrf", None, &[]),
            link(6, "", Some(5), &["203.0.113.9/24"]),
        ];
        let here = Here {
            subnet: "10.5.1.0/24".parse().unwrap(),
            network: "10.5.0.0/16".parse().unwrap(),
            vtep_mac: None,
            addresses: ["192.0.2.11", "198.51.100.77"].map(|text| text.parse().unwrap()),
            node: &NodeAddresses::of(&links, 2),
        };
        let subnet = "10.5.7.0/24".parse().unwrap();
        let peer =
            Peer { subnet, vtep_mac: MacAddr([2; 6]), public_ip: public_ip.parse().unwrap() };
        unfit(peer, &here).err()
    }

    #[test]
    fn a_public_ip_that_never_leaves_the_node_is_no_peers() {
        for own in ["192.0.2.11", "198.51.100.77", "198.51.100.1", "10.5.1.1", "10.5.1.0"] {
            assert_eq!(why(own), Some(NoPeer::OwnPublicIp(own.parse().unwrap())));
        }
        for all in
            ["192.0.2.255", "10.5.1.255", "255.255.255.255", "224.0.0.1", "0.1.2.3", "127.0.0.9"]
        {
            assert_eq!(why(all), Some(NoPeer::BadPublicIp(all.parse().unwrap())));
        }
        // The other end of a link between two, another VRF's, and what may be on the link.
        for other in ["198.51.100.0", "203.0.113.9", "203.0.113.255", "192.0.2.0", "169.254.1.7"] {
            assert_eq!(why(other), None, "{other}");
        }
    }
}
