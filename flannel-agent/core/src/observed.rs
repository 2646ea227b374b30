//! What is on the node, as read back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::checksum::TunnelChecksum;
use crate::mac::MacAddr;
use crate::peer::Peer;

/// The device as read back from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedDevice {
    /// Interface index.
    pub ifindex: u32,
    /// `None` if a link of this name exists that is no VXLAN device.
    pub vxlan: Option<ObservedVxlan>,
    /// Its MAC.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// A protocol holds it down (`protodown`): it carries nothing, though it is up.
    pub proto_down: bool,
    /// It is a port of a bridge, which takes what comes out of the tunnel.
    pub bridge_port: bool,
    /// IPv4 addresses on it, host bits kept.
    pub addresses: BTreeSet<Ipv4Network>,
    /// Those of them that have no route in the local table, or one behind another: what is
    /// for them is not the node's, as it seems to the kernel.
    pub unrouted: BTreeSet<Ipv4Addr>,
    /// Who makes the checksums of what it sends; `None` if the kernel does not tell.
    pub checksum: Option<TunnelChecksum>,
}

/// VXLAN attributes that only creation sets, as far as we are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedVxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Local tunnel address.
    pub local: Option<Ipv4Addr>,
    /// Interface index of the underlay device (0: none).
    pub underlay: u32,
    /// Group-based policy extension.
    pub gbp: bool,
    /// Learns FDB entries.
    pub learning: bool,
    /// TTL of outer packets (0: the kernel's own choice).
    pub ttl: u8,
    /// What outer packets say of fragmentation is not the kernel's own choice.
    pub df: bool,
    /// Where frames for unknown MACs go.
    pub remote: Option<Ipv4Addr>,
}

/// A route through our device, as read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObservedRoute {
    /// Destination.
    pub destination: Ipv4Network,
    /// Gateway, if any.
    pub gateway: Option<Ipv4Addr>,
    /// RTNH_F_ONLINK.
    pub onlink: bool,
    /// Priority (RTA_PRIORITY); ours have 0.
    pub metric: u32,
    /// It has a source address or metrics (such as an MTU); ours have none.
    pub extra: bool,
}

impl ObservedRoute {
    /// The route to a peer as [`crate::op::Op::PutRoute`] makes it.
    pub fn to_peer(subnet: Ipv4Network) -> Self {
        Self { gateway: Some(subnet.network()), onlink: true, ..Self::to_link(subnet) }
    }

    /// The route as [`crate::op::Op::PutLinkRoute`] makes it.
    pub fn to_link(network: Ipv4Network) -> Self {
        Self { destination: network, gateway: None, onlink: false, metric: 0, extra: false }
    }
}

/// A route to a peer's subnet through the underlay, main table, metric 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirectRoute {
    /// The peer's subnet.
    pub destination: Ipv4Network,
    /// Its PublicIP.
    pub gateway: Ipv4Addr,
    /// Interface index of the underlay.
    pub ifindex: u32,
    /// It has a source address or metrics (such as an MTU); ours have none.
    pub extra: bool,
}

impl DirectRoute {
    /// The route as [`crate::op::Op::PutDirect`] makes it.
    pub fn to_peer(destination: Ipv4Network, gateway: Ipv4Addr, ifindex: u32) -> Self {
        Self { destination, gateway, ifindex, extra: false }
    }
}

/// What is really there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The device, if a link of its name exists.
    pub device: Option<ObservedDevice>,
    /// Permanent IPv4 neighbour entries on the device.
    pub neighbours: BTreeMap<Ipv4Addr, MacAddr>,
    /// FDB entries of the device: permanent, unicast MAC, with an IPv4
    /// destination on the device's own port and VNI.
    pub fdb: BTreeSet<(MacAddr, Ipv4Addr)>,
    /// IPv4 routes through the device, main table.
    pub routes: BTreeSet<ObservedRoute>,
    /// Direct routes that this agent made (told by their protocol number), or
    /// that it takes over.
    pub direct: BTreeSet<DirectRoute>,
    /// Destinations within the overlay network where another one's route comes first, which
    /// the kernel takes, however many of ours are behind it.
    pub behind: BTreeSet<Ipv4Network>,
    /// Subnets in the BPF maps; `None` when there are no maps.
    pub maps: Option<BTreeMap<Ipv4Network, Peer>>,
}

impl Observed {
    /// The route that the kernel replaces when one with this destination and
    /// metric 0 is put.
    pub fn first_to(&self, destination: Ipv4Network) -> Option<ObservedRoute> {
        let first = ObservedRoute::to_link(destination);
        let last = ObservedRoute {
            gateway: Some(Ipv4Addr::BROADCAST),
            onlink: true,
            metric: u32::MAX,
            extra: true,
            ..first
        };
        self.routes.range(first..=last).find(|route| route.metric == 0).copied()
    }

    /// The first direct route to this destination.
    pub fn direct_to(&self, destination: Ipv4Network) -> Option<DirectRoute> {
        self.all_direct_to(destination).next()
    }

    /// All direct routes to this destination.
    pub fn all_direct_to(
        &self,
        destination: Ipv4Network,
    ) -> impl Iterator<Item = DirectRoute> + '_ {
        let first = DirectRoute::to_peer(destination, Ipv4Addr::UNSPECIFIED, 0);
        let last =
            DirectRoute { gateway: Ipv4Addr::BROADCAST, ifindex: u32::MAX, extra: true, ..first };
        self.direct.range(first..=last).copied()
    }

    /// Where the FDB sends what is for this MAC.
    pub fn destinations(&self, mac: MacAddr) -> impl Iterator<Item = Ipv4Addr> {
        self.fdb.range((mac, Ipv4Addr::UNSPECIFIED)..=(mac, Ipv4Addr::BROADCAST)).map(|(_, ip)| *ip)
    }
}
