//! Which devices the pods' packets cross. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::link::Link;
use flannel_ebpf::abi::direction;
use ipnetwork::Ipv4Network;

use super::matches::Names;
use super::ranges::Addresses;

/// Both directions, as bits: 1 << [`direction::OUT`], 1 << [`direction::IN`].
pub const BOTH: u8 = OUT | IN;
/// Pod to peer.
pub const OUT: u8 = 1 << direction::OUT;
/// Peer to pod.
pub const IN: u8 = 1 << direction::IN;

/// The pods' packets cross it on the pods' side.
const PODS: u8 = 1;
/// They cross it on the peers' side.
const PEERS: u8 = 2;
/// What the programs send leaves by it in the kernel's way.
const SENDS: u8 = 4;

/// What decides on which side of the node a device is.
#[derive(Clone, Copy, Debug)]
pub struct NodeDevices<'a> {
    /// All links.
    pub links: &'a [Link],
    /// The pods' veths.
    pub pods: &'a [u32],
    /// Interface index of the underlay device.
    pub underlay: u32,
    /// Interface index of `flannel.<VNI>`, if there is one.
    pub overlay: Option<u32>,
    /// Peers may be reached without a tunnel: the pods' packets cross the underlay
    /// device as they are.
    pub direct: bool,
    /// The node's own subnet.
    pub subnet: Ipv4Network,
}

/// The devices of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    by_name: BTreeMap<String, Side>,
    /// The node's own addresses.
    local: Addresses,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Side {
    /// Bits of [`PODS`], [`PEERS`] and [`SENDS`].
    crossed: u8,
    loopback: bool,
}

impl Devices {
    /// Sorts a node's devices.
    ///
    /// On the pods' side are their veths with all that these are ports of, what has
    /// an address of the node's subnet (a gateway, whatever it stands on), and veths
    /// that lead nowhere but back (from bridge to bridge). On the peers' side are
    /// `flannel.<VNI>` and, without a tunnel, the underlay, and what they are ports
    /// of.
    pub fn of(node: NodeDevices<'_>) -> Self {
        let mut crossed: HashMap<u32, u8> = HashMap::new();
        let by_index: HashMap<u32, &Link> =
            node.links.iter().map(|link| (link.ifindex, link)).collect();
        let pods: HashSet<u32> = node.pods.iter().copied().collect();
        for link in node.links {
            let pods = pods.contains(&link.ifindex)
                || (link.kind == "veth" && link.lower_netns.is_none())
                || link.addresses.iter().any(|own| node.subnet.contains(own.network.ip()));
            if link.ifindex == node.underlay {
                let side = if node.direct { PEERS | SENDS } else { SENDS };
                mark(&by_index, link, side, &mut crossed);
            } else if Some(link.ifindex) == node.overlay {
                mark(&by_index, link, PEERS, &mut crossed);
            } else if pods {
                mark(&by_index, link, PODS, &mut crossed);
            }
        }
        let side = |link: &Link| Side {
            crossed: crossed.get(&link.ifindex).copied().unwrap_or(0),
            loopback: link.loopback,
        };
        let addresses = node.links.iter().flat_map(|link| &link.addresses);
        let addresses = addresses.map(|own| u32::from(own.network.ip()));
        Self {
            by_name: node.links.iter().map(|link| (link.name.clone(), side(link))).collect(),
            local: Addresses::of(addresses.map(|own| (own, own))),
        }
    }

    /// Directions of the pods' packets that come by one of these devices.
    pub fn come_by(&self, names: &Names) -> u8 {
        self.cross(names, OUT, IN)
    }

    /// Directions of the pods' packets that leave by one of these devices.
    pub fn leave_by(&self, names: &Names) -> u8 {
        self.cross(names, IN, OUT)
    }

    /// The same, without what leaves by them on the fast path, too.
    pub fn leave_only_by(&self, names: &Names) -> u8 {
        if *names == Names::Any {
            return BOTH;
        }
        let skipped = self.fitting(names).filter(|side| side.crossed & SENDS == 0);
        skipped.fold(0, |directions, side| directions | side.directions(IN, OUT))
    }

    fn cross(&self, names: &Names, by_pods: u8, by_peers: u8) -> u8 {
        if *names == Names::Any {
            return BOTH;
        }
        self.fitting(names)
            .fold(0, |directions, side| directions | side.directions(by_pods, by_peers))
    }

    fn fitting<'a>(&'a self, names: &'a Names) -> impl Iterator<Item = &'a Side> {
        self.by_name.iter().filter(|(name, _)| names.fit(name)).map(|(_, side)| side)
    }

    /// Whether tunnel packets may leave by one of these devices, from one of these
    /// addresses.
    pub fn tunnel_leaves(&self, names: &Names, source: &Addresses) -> bool {
        self.tunnel_comes(names, source)
    }

    /// Whether tunnel packets may come by one of these devices, by any that is not
    /// the pods', to one of these addresses.
    pub fn tunnel_comes(&self, names: &Names, destination: &Addresses) -> bool {
        if destination.and(&self.local).is_empty() {
            return false;
        }
        let possible = |side: &Side| !side.loopback && side.crossed != PODS;
        *names == Names::Any || self.fitting(names).any(possible)
    }
}

impl Side {
    fn directions(self, by_pods: u8, by_peers: u8) -> u8 {
        let pods = if self.crossed & PODS != 0 { by_pods } else { 0 };
        let peers = if self.crossed & PEERS != 0 { by_peers } else { 0 };
        pods | peers
    }
}

/// Marks a link and all that it is, at some remove, a port of.
fn mark(links: &HashMap<u32, &Link>, link: &Link, side: u8, crossed: &mut HashMap<u32, u8>) {
    let mut next = Some(link);
    while let Some(link) = next {
        let sides = crossed.entry(link.ifindex).or_default();
        if *sides & side == side {
            return;
        }
        *sides |= side;
        next = link.master.and_then(|master| links.get(&master)).copied();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::link::LinkAddress;

    fn link(ifindex: u32, name: &str, kind: &str, master: Option<u32>) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            mtu: 1500,
            up: true,
            ethernet: true,
            loopback: name == "lo",
            kind: kind.to_owned(),
            master,
            lower_netns: (kind == "veth").then_some(0),
            ..Link::default()
        }
    }

    /// A node with `lo`, `eth0` (the underlay), `eth1`, `flannel.1`, the bridge
    /// `cni0` with the pod `veth1`, the pod `veth2` without a bridge, and `docker0`.
    pub(in super::super) fn node(direct: bool) -> Devices {
        let links = links();
        Devices::of(NodeDevices {
            links: &links,
            pods: &[4, 5],
            underlay: 2,
            overlay: Some(3),
            direct,
            subnet: "10.5.1.0/24".parse().unwrap(),
        })
    }

    fn address(text: &str) -> LinkAddress {
        LinkAddress {
            network: text.parse().unwrap(),
            permanent: true,
            deprecated: false,
            global: true,
        }
    }

    fn links() -> Vec<Link> {
        vec![
            link(1, "lo", "", None),
            Link { addresses: vec![address("192.0.2.1/24")], ..link(2, "eth0", "", None) },
            link(3, "flannel.1", "vxlan", None),
            link(4, "veth1", "veth", Some(6)),
            link(5, "veth2", "veth", None),
            link(6, "cni0", "bridge", None),
            link(7, "docker0", "bridge", None),
            link(8, "eth1", "", None),
        ]
    }

    #[test]
    fn devices_say_the_direction() {
        let devices = node(true);
        for (name, input, output) in [
            ("veth1", OUT, IN),
            ("veth2", OUT, IN),
            ("cni0", OUT, IN),
            ("flannel.1", IN, OUT),
            ("eth0", IN, OUT),
            ("eth1", 0, 0),
            ("docker0", 0, 0),
            ("lo", 0, 0),
            ("none", 0, 0),
            ("veth*", OUT, IN),
            ("*", BOTH, BOTH),
        ] {
            let names = Names::of([name]);
            assert_eq!(
                (devices.come_by(&names), devices.leave_by(&names)),
                (input, output),
                "{name}"
            );
        }
        assert_eq!(devices.come_by(&Names::Any), BOTH);
        let anywhere = Addresses::ALL;
        let tunnel = |name: &str| devices.tunnel_comes(&Names::of([name]), &anywhere);
        assert!(tunnel("eth0") && tunnel("eth1") && !tunnel("lo") && !tunnel("cni0"));
    }

    #[test]
    fn pods_packets_cross_the_underlay_only_without_a_tunnel() {
        let underlay = Names::of(["eth0"]);
        let (tunnel, direct) = (node(false), node(true));
        assert_eq!((tunnel.come_by(&underlay), direct.come_by(&underlay)), (0, IN));
        let to = |address: [u8; 4]| Addresses::prefix(u32::from_be_bytes(address), 32);
        assert!(tunnel.tunnel_comes(&underlay, &to([192, 0, 2, 1])));
        assert!(!tunnel.tunnel_comes(&underlay, &to([192, 0, 2, 2])), "not ours");
        // What the programs send to the underlay leaves by it all the same.
        assert_eq!(direct.leave_by(&underlay), OUT);
        assert_eq!(direct.leave_only_by(&underlay), 0);
        assert_eq!(direct.leave_only_by(&Names::of(["eth0", "flannel.1", "cni0"])), BOTH);
        assert_eq!(direct.leave_only_by(&Names::Any), BOTH);
    }

    #[test]
    fn gateways_and_masters_are_crossed_too() {
        let mut links = links();
        // A VLAN device on the bridge, with the gateway's address; a VRF over the
        // underlay and over it; a cable between two bridges.
        let gateway = address("10.5.1.1/24");
        links.push(Link { addresses: vec![gateway], ..link(9, "cni0.7", "vlan", Some(10)) });
        links.push(link(10, "vrf0", "vrf", None));
        links[1].master = Some(10);
        links.push(Link { lower_netns: None, ..link(11, "cable", "veth", Some(12)) });
        links.push(link(12, "br1", "bridge", None));
        let devices = Devices::of(NodeDevices {
            links: &links,
            pods: &[],
            underlay: 2,
            overlay: Some(3),
            direct: true,
            subnet: "10.5.1.0/24".parse().unwrap(),
        });
        let input = |name: &str| devices.come_by(&Names::of([name]));
        assert_eq!(["cni0.7", "vrf0", "br1", "cni0"].map(input), [OUT, BOTH, OUT, 0]);
    }

    #[test]
    fn masters_in_a_circle_end() {
        let links = [link(2, "a", "", Some(3)), link(3, "b", "", Some(2))];
        let subnet = "10.5.1.0/24".parse().unwrap();
        let node = NodeDevices {
            links: &links,
            pods: &[],
            underlay: 2,
            overlay: None,
            direct: true,
            subnet,
        };
        assert_eq!(Devices::of(node).come_by(&Names::of(["b"])), IN);
    }
}
