//! What the node should look like, from leases, underlay and config. Pure.

pub mod roster;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use flannel_ebpf::abi::MAX_PEERS;
use ipnetwork::Ipv4Network;

use crate::backend::{Backend, Reaches, VxlanConfig};
use crate::checksum::TunnelChecksum;
use crate::lease::judge::{Here, NoPeer, NodeAddresses, unfit};
use crate::mac::MacAddr;
use crate::peer::Peer;
use crate::reach::{NextHop, PeerReach};
use crate::underlay::Underlay;

/// Smallest MTU that IPv4 allows for a link (RFC 791).
const MIN_MTU: u32 = 68;

/// The VXLAN device `flannel.<VNI>` as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `flannel.<VNI>`.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Local tunnel address.
    pub local: Ipv4Addr,
    /// Interface index of the underlay device.
    pub underlay: u32,
    /// The VTEP's MAC, given at creation.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Group-based policy extension.
    pub gbp: bool,
    /// Whether the device learns FDB entries from traffic.
    pub learning: bool,
    /// First address of our subnet; the device carries it as a /32.
    pub address: Ipv4Addr,
    /// Who makes the checksums of what it sends; `None`: as it is.
    pub checksum: Option<TunnelChecksum>,
}

/// Everything that the node should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The overlay network, host bits zero; routes and addresses on our device
    /// within it that are not wanted here are removed.
    pub network: Ipv4Network,
    /// MTU for pods in bytes.
    pub mtu: u32,
    /// Backend.MTU, where it is more than the underlay's, which counts then.
    pub cut_mtu: Option<u32>,
    /// The VXLAN device; `None` with the backends that have none.
    pub device: Option<Device>,
    /// Interface index of the underlay, which direct routes lead through.
    pub underlay: u32,
    /// All peers by subnet.
    pub peers: BTreeMap<Ipv4Network, Peer>,
    /// Subnets of those peers that are reached without encapsulation.
    pub direct: BTreeSet<Ipv4Network>,
    /// Subnets of those peers that do not fit into the programs' tables, the
    /// newest leases: the kernel's path alone reaches them.
    pub unmapped: BTreeSet<Ipv4Network>,
}

impl Desired {
    /// How packets get to the peer with this subnet.
    pub fn reach(&self, subnet: &Ipv4Network) -> PeerReach {
        if self.direct.contains(subnet) { PeerReach::Direct } else { PeerReach::Tunnel }
    }

    /// The peers that are reached through the device.
    pub fn tunnelled(&self) -> impl Iterator<Item = &Peer> + Clone {
        self.peers.values().filter(|peer| !self.direct.contains(&peer.subnet))
    }
}

/// What this node is, apart from its peers.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Our subnet, host bits zero.
    pub subnet: Ipv4Network,
    /// The overlay network, host bits zero.
    pub network: Ipv4Network,
    /// Our VTEP's MAC.
    pub vtep_mac: MacAddr,
    /// The external interface.
    pub underlay: &'a Underlay,
    /// All addresses of the node.
    pub addresses: &'a NodeAddresses,
    /// The backend with its settings.
    pub backend: &'a Backend,
    /// The next hop to each PublicIP, where the backend asks for it.
    pub next_hops: &'a BTreeMap<Ipv4Addr, NextHop>,
    /// Who is to make the checksums of what goes into a tunnel; `None`: as it is.
    pub checksum: Option<TunnelChecksum>,
}

/// A peer that cannot be programmed, for logs and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The peer as its lease says.
    pub peer: Peer,
    /// Why not.
    pub reason: Rejection,
}

/// Why a peer is left out.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// It cannot be one of ours, whatever the others say.
    #[error(transparent)]
    Unfit(#[from] NoPeer),
    /// A later lease says that this MAC is elsewhere.
    #[error("a newer lease, of {0}, has the same VTEP MAC with another PublicIP")]
    MacMoved(Ipv4Network),
    /// host-gw, and the peer is not on the underlay's link.
    #[error(
        "host-gw needs its PublicIP {0} on the link of the underlay (interface {1}), but {2}; use \
         vxlan with DirectRouting"
    )]
    NotOnLink(Ipv4Addr, u32, NextHop),
    /// Both need the same gateway address; the more specific subnet keeps it.
    #[error("{0} begins at the same address and is more specific")]
    SameFirstAddress(Ipv4Network),
}

/// The pods' packets cannot be wrapped with these settings.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "MTU {mtu} of {source_of} leaves {} bytes inside the tunnel, fewer than the 68 that IPv4 needs",
    mtu.saturating_sub(*overhead)
)]
pub struct MtuTooSmall {
    /// The MTU, without the overhead taken off.
    pub mtu: u32,
    /// Bytes that the backend adds.
    pub overhead: u32,
    /// `Backend.MTU`, or the interface.
    pub source_of: String,
}

/// What the node should look like, and the peers that had to be left out.
///
/// `peers` come in the order of their leases' revisions, the oldest first:
/// where two have one MAC but different addresses (a node that moved and whose
/// old lease has not run out), the later is right. Two with the same MAC and
/// address (a node with an old and a new subnet) are both kept. A subnet
/// nested in another's is routed like any (the longer prefix wins), unless
/// both begin at the same address.
///
/// # Errors
/// When the underlay's MTU has no room for VXLAN.
pub fn desired(
    node: Node<'_>,
    peers: impl IntoIterator<Item = Peer>,
) -> Result<(Desired, Vec<Rejected>), MtuTooSmall> {
    let (mtu, cut_mtu) = mtu(node)?;
    let device = node.backend.facts().vxlan().map(|vxlan| device(node, vxlan, mtu));
    let mut rejected = Vec::new();
    let mut accepted = BTreeMap::new();
    let mut by_mac: BTreeMap<MacAddr, Peer> = BTreeMap::new();
    let mut candidates = Vec::new();
    for peer in peers {
        match unusable(node, peer) {
            Some(reason) => rejected.push(Rejected { peer, reason }),
            None => {
                by_mac.insert(peer.vtep_mac, peer);
                candidates.push(peer);
            }
        }
    }
    let ages: Vec<Ipv4Network> = candidates.iter().map(|peer| peer.subnet).collect();
    for peer in candidates {
        if device.is_none() {
            accepted.insert(peer.subnet, peer);
            continue;
        }
        let newest = by_mac[&peer.vtep_mac];
        if newest.public_ip == peer.public_ip {
            accepted.insert(peer.subnet, peer);
        } else if newest.subnet != peer.subnet {
            rejected.push(Rejected { peer, reason: Rejection::MacMoved(newest.subnet) });
        }
    }
    let direct = direct(node, &accepted);
    if device.is_some() {
        rejected.extend(take_wider(&mut accepted, &direct));
    }
    let desired = Desired {
        network: node.network,
        mtu,
        cut_mtu,
        device,
        underlay: node.underlay.ifindex,
        unmapped: beyond(&accepted, &ages, MAX_PEERS as usize),
        peers: accepted,
        direct,
    };
    Ok((desired, rejected))
}

/// Subnets of the peers that are reached without encapsulation.
fn direct(node: Node<'_>, peers: &BTreeMap<Ipv4Network, Peer>) -> BTreeSet<Ipv4Network> {
    if !node.backend.facts().reaches().directly() {
        return BTreeSet::new();
    }
    let on_link = |peer: &&Peer| node.next_hops.get(&peer.public_ip) == Some(&NextHop::OnLink);
    peers.values().filter(on_link).map(|peer| peer.subnet).collect()
}

/// Takes out the tunnelled peers whose subnet begins where a more specific one does:
/// routes through the device need a neighbour entry at this address each.
fn take_wider(
    peers: &mut BTreeMap<Ipv4Network, Peer>,
    direct: &BTreeSet<Ipv4Network>,
) -> Vec<Rejected> {
    let mut previous: Option<Ipv4Network> = None;
    let mut wider = Vec::new();
    for subnet in peers.keys().filter(|subnet| !direct.contains(subnet)) {
        if let Some(before) = previous.filter(|before| before.network() == subnet.network()) {
            wider.push((before, *subnet));
        }
        previous = Some(*subnet);
    }
    let taken = wider.into_iter().filter_map(|(subnet, specific)| {
        let reason = Rejection::SameFirstAddress(specific);
        peers.remove(&subnet).map(|peer| Rejected { peer, reason })
    });
    taken.collect()
}

/// The accepted peers that are left when the oldest have their places; `ages` has
/// all that were candidates, the oldest first.
fn beyond(
    accepted: &BTreeMap<Ipv4Network, Peer>,
    ages: &[Ipv4Network],
    places: usize,
) -> BTreeSet<Ipv4Network> {
    if accepted.len() <= places {
        return BTreeSet::new();
    }
    ages.iter().filter(|subnet| accepted.contains_key(subnet)).skip(places).copied().collect()
}

/// MTU for pods in bytes, and Backend.MTU if it is too large.
fn mtu(node: Node<'_>) -> Result<(u32, Option<u32>), MtuTooSmall> {
    let Node { underlay, backend, .. } = node;
    let (overhead, configured) = (backend.facts().overhead(), backend.facts().underlay_mtu());
    let too_large = configured.filter(|mtu| *mtu > underlay.mtu);
    let configured = configured.filter(|mtu| *mtu <= underlay.mtu);
    let outer = configured.unwrap_or(underlay.mtu);
    let mtu = outer.saturating_sub(overhead);
    if mtu < MIN_MTU {
        let source_of = configured.map_or(underlay.name.as_str(), |_| "Backend.MTU").to_owned();
        return Err(MtuTooSmall { mtu: outer, overhead, source_of });
    }
    Ok((mtu, too_large))
}

fn device(node: Node<'_>, vxlan: &VxlanConfig, mtu: u32) -> Device {
    let underlay = node.underlay;
    Device {
        name: vxlan.device_name(),
        vni: vxlan.vni,
        port: vxlan.port,
        local: underlay.address,
        underlay: underlay.ifindex,
        mac: node.vtep_mac,
        mtu,
        gbp: vxlan.gbp,
        learning: vxlan.learning,
        address: node.subnet.network(),
        checksum: node.checksum,
    }
}

fn unusable(node: Node<'_>, peer: Peer) -> Option<Rejection> {
    let own = node.underlay;
    let reaches = node.backend.facts().reaches();
    let here = Here {
        subnet: node.subnet,
        network: node.network,
        vtep_mac: reaches.by_vteps().then_some(node.vtep_mac),
        addresses: [own.public_ip, own.address],
        node: node.addresses,
    };
    if let Err(reason) = unfit(peer, &here) {
        return Some(reason.into());
    }
    if reaches != Reaches::Direct {
        return None;
    }
    let ip = peer.public_ip;
    let hop = node.next_hops.get(&ip).copied().unwrap_or_default();
    (hop != NextHop::OnLink).then_some(Rejection::NotOnLink(ip, own.ifindex, hop))
}

#[cfg(test)]
mod tests;
