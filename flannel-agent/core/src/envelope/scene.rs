//! Which devices packets of pods and peers pass.

use std::collections::{BTreeMap, BTreeSet};

use super::devices::PodEnd;
use super::programs::Inlet;
use super::report::NotServed;
use crate::link::Link;
use crate::pods::{self, Choice};

/// The devices by their roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scene {
    /// The pods' veths, by index.
    pub veths: Vec<Veth>,
    /// `flannel.<VNI>`, and what stands on it.
    pub overlay: Vec<u32>,
    /// Devices by which packets of peers come; the underlay is the first.
    pub inlets: Vec<Inlet>,
    /// What a packet passes between a port and routing, by the port's bridge:
    /// the bridge itself, and the devices that stand on it.
    pub stacks: BTreeMap<u32, Vec<u32>>,
    /// Names of all links.
    pub names: BTreeMap<u32, String>,
    /// Pods' devices on this side that no program can serve.
    pub not_served: BTreeSet<NotServed>,
}

/// A pod's veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// The pod's side.
    pub end: Option<PodEnd>,
    /// The bridge that it is a port of.
    pub bridge: Option<u32>,
}

impl Scene {
    /// The roles of these links.
    pub fn of(links: &[Link], choice: Choice<'_>) -> Self {
        let by_index: BTreeMap<u32, &Link> =
            links.iter().map(|link| (link.ifindex, link)).collect();
        let mut veths: Vec<Veth> =
            pods::pod_veths(links, choice).into_iter().map(Veth::of).collect();
        veths.sort_by_key(|veth| veth.ifindex);
        let bridges: BTreeSet<u32> = veths.iter().filter_map(|veth| veth.bridge).collect();
        let stacks: BTreeMap<u32, Vec<u32>> =
            bridges.into_iter().map(|bridge| (bridge, stack(&by_index, bridge))).collect();
        let overlay = choice.overlay.map(|overlay| stack(&by_index, overlay)).unwrap_or_default();
        let taken: BTreeSet<u32> = veths
            .iter()
            .map(|veth| veth.ifindex)
            .chain(stacks.values().flatten().copied())
            .chain(overlay.iter().copied())
            .collect();
        let mut inlets: Vec<Inlet> = links
            .iter()
            .filter(|link| {
                link.ifindex == choice.underlay
                    || (!taken.contains(&link.ifindex) && is_inlet(&by_index, link, choice))
            })
            .map(|link| Inlet { ifindex: link.ifindex, name: link.name.clone() })
            .collect();
        inlets.sort_by_key(|inlet| (inlet.ifindex != choice.underlay, inlet.ifindex));
        let netkits = links.iter().filter(|link| link.kind == "netkit" && link.up);
        Self {
            veths,
            overlay,
            inlets,
            stacks,
            names: links.iter().map(|link| (link.ifindex, link.name.clone())).collect(),
            not_served: netkits
                .map(|link| NotServed {
                    kind: link.kind.clone(),
                    device: link.name.clone(),
                    pods: 1,
                })
                .collect(),
        }
    }

    /// Pods' bridges, and what stands on them.
    pub fn bridges(&self) -> BTreeSet<u32> {
        self.stacks.values().flatten().copied().collect()
    }

    /// All devices that have a role.
    pub fn devices(&self) -> BTreeSet<u32> {
        let veths = self.veths.iter().map(|veth| veth.ifindex);
        let inlets = self.inlets.iter().map(|inlet| inlet.ifindex);
        veths.chain(inlets).chain(self.bridges()).chain(self.overlay.iter().copied()).collect()
    }

    /// What a packet passes between a veth and routing, beside the veth.
    pub fn above(&self, veth: &Veth) -> &[u32] {
        let stack = veth.bridge.and_then(|bridge| self.stacks.get(&bridge));
        stack.map(Vec::as_slice).unwrap_or_default()
    }

    /// A device's name.
    pub fn name(&self, ifindex: u32) -> String {
        self.names.get(&ifindex).cloned().unwrap_or_else(|| format!("interface {ifindex}"))
    }
}

impl Veth {
    fn of(link: &Link) -> Self {
        let end = link.lower_netns.zip(link.lower);
        Self {
            ifindex: link.ifindex,
            name: link.name.clone(),
            mtu: link.mtu,
            end: end.map(|(netns, ifindex)| PodEnd { netns, ifindex }),
            bridge: link.master,
        }
    }
}

/// A device, what it is a port of, and what stands on it if it is a bridge
/// (VLAN devices, say): any of them may be on a packet's way.
fn stack(links: &BTreeMap<u32, &Link>, from: u32) -> Vec<u32> {
    let (mut found, mut open) = (Vec::new(), vec![from]);
    while let Some(ifindex) = open.pop() {
        if found.contains(&ifindex) {
            continue;
        }
        found.push(ifindex);
        let Some(link) = links.get(&ifindex) else { continue };
        open.extend(link.master);
        if link.kind == "bridge" {
            let stands_on_it =
                |other: &&&Link| other.lower == Some(ifindex) && other.lower_netns.is_none();
            open.extend(links.values().filter(stands_on_it).map(|other| other.ifindex));
        }
    }
    found
}

/// Whether packets to an address of this node can come by a device: of those
/// that are part of another device, and those that nothing comes by, they cannot.
fn is_inlet(links: &BTreeMap<u32, &Link>, link: &Link, choice: Choice<'_>) -> bool {
    let mut global = link.addresses.iter().filter(|address| address.global);
    let numbered = global.clone().next().is_some();
    // A bridge that waits for its first pod.
    let pods = numbered && global.all(|address| pods::is_gateway(address, choice));
    let kind = link.kind.as_str();
    let possible = match kind {
        "ifb" | "dummy" | "netkit" => false,
        // A virtual machine's, as a rule; with an address, a VPN's.
        "tun" => numbered,
        _ => true,
    };
    let master = link.master.map(|master| links.get(&master).map(|link| link.kind.as_str()));
    let on_its_own = match master {
        // A VRF's ports keep their packets.
        None | Some(Some("vrf")) => true,
        Some(_) => numbered && matches!(kind, "bridge" | "bond" | "team" | "vlan"),
    };
    link.up && link.ethernet && !link.loopback && !pods && possible && on_its_own
}
