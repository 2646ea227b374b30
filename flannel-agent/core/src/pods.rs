//! Which host-side veths lead to pods.

use std::collections::BTreeSet;

use ipnetwork::Ipv4Network;
use regex::Regex;

use crate::link::{Link, LinkAddress};

/// What the roles of links hang on.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Interface index of the underlay device.
    pub underlay: u32,
    /// Interface index of `flannel.<VNI>`, if there is a tunnel.
    pub overlay: Option<u32>,
    /// The overlay network.
    pub network: Ipv4Network,
    /// Our own subnet.
    pub subnet: Ipv4Network,
    /// Interfaces by which routes lead to other places than pods.
    pub uplinks: &'a BTreeSet<u32>,
    /// `--attach-iface`: only veths whose name matches.
    pub names: Option<&'a Regex>,
}

/// The pods' host-side veths among all links.
///
/// A veth is one if its other end is in another network namespace
/// (`bpf_redirect_peer` works only then), and if it is not part of the
/// underlay: neither the underlay device, what that stands on (a VLAN's card), or a port
/// of these, nor a device with an address of its own or a route to other places, which
/// is a network card of this node that happens to be a veth (a node in a container).
pub fn pod_veths<'a>(links: &'a [Link], choice: Choice<'_>) -> Vec<&'a Link> {
    let stack = stack(links, choice.underlay);
    let under = |ifindex: u32| stack.contains(&ifindex);
    let apart = |link: &&Link| !under(link.ifindex) && !link.master.is_some_and(under);
    links.iter().filter(apart).filter(|link| leads_to_pod(link, choice)).collect()
}

/// A device and what it stands on in this network namespace.
fn stack(links: &[Link], device: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = Some(device);
    while let Some(ifindex) = next.filter(|ifindex| !found.contains(ifindex)) {
        found.push(ifindex);
        let link = links.iter().find(|link| link.ifindex == ifindex);
        let local = link.filter(|link| link.lower_netns.is_none());
        next = local.and_then(|link| link.lower);
    }
    found
}

fn leads_to_pod(link: &Link, choice: Choice<'_>) -> bool {
    link.kind == "veth"
        && link.lower_netns.is_some()
        && link.up
        && !choice.uplinks.contains(&link.ifindex)
        && link.addresses.iter().all(|address| !address.global || is_gateway(address, choice))
        && choice.names.is_none_or(|names| names.is_match(&link.name))
}

/// Whether an address is one that pods have as their gateway: of our subnet, or
/// (of a subnet that we had) alone on its device. Nodes may have addresses of the
/// overlay network, too, where that is large.
pub fn is_gateway(address: &LinkAddress, choice: Choice<'_>) -> bool {
    let ip = address.network.ip();
    choice.subnet.contains(ip) || (choice.network.contains(ip) && address.network.prefix() == 32)
}

/// Whether only the routes can tell if a link is a routed pod's or a network card
/// without an address.
pub fn is_doubtful(link: &Link) -> bool {
    link.kind == "veth"
        && link.lower_netns.is_some()
        && link.master.is_none()
        && !link.addresses.iter().any(|address| address.global)
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    fn veth(name: &str) -> Link {
        Link {
            ifindex: 7,
            name: name.to_owned(),
            mtu: 1450,
            up: true,
            ethernet: true,
            kind: "veth".to_owned(),
            lower: Some(2),
            lower_netns: Some(0),
            ..Link::default()
        }
    }

    fn address(text: &str) -> LinkAddress {
        LinkAddress {
            network: text.parse().unwrap(),
            permanent: true,
            deprecated: false,
            global: true,
        }
    }

    #[test]
    fn what_the_underlay_stands_on_is_no_pods() {
        let vlan = Link {
            ifindex: 2,
            name: "bond0.10".to_owned(),
            kind: "vlan".to_owned(),
            lower: Some(3),
            ..Link::default()
        };
        let bond = Link { ifindex: 3, kind: "bond".to_owned(), ..Link::default() };
        let port = Link { master: Some(3), ..veth("eth1") };
        let pod = Link { ifindex: 8, ..veth("veth0") };
        let choice = Choice {
            underlay: 2,
            overlay: None,
            network: "10.0.0.0/8".parse().unwrap(),
            subnet: "10.5.1.0/24".parse().unwrap(),
            uplinks: &BTreeSet::new(),
            names: None,
        };
        let names = |links: &[Link]| -> Vec<String> {
            pod_veths(links, choice).into_iter().map(|link| link.name.clone()).collect()
        };
        assert_eq!(names(&[vlan.clone(), bond, port, pod.clone()]), ["veth0"]);
        let card = Link { ifindex: 3, ..veth("eth1") };
        assert_eq!(names(&[vlan, card, pod]), ["veth0"]);
    }

    /// Names of the pods' veths if this is the only link.
    fn chosen(link: &Link, names: Option<&str>) -> Vec<String> {
        let names = names.map(|names| Regex::new(names).unwrap());
        let choice = Choice {
            underlay: 2,
            overlay: None,
            network: "10.0.0.0/8".parse().unwrap(),
            subnet: "10.5.1.0/24".parse().unwrap(),
            uplinks: &[9].into(),
            names: names.as_ref(),
        };
        pod_veths(std::slice::from_ref(link), choice)
            .into_iter()
            .map(|link| link.name.clone())
            .collect()
    }

    #[test]
    fn a_veth_into_another_namespace_is_a_pods() {
        assert_eq!(chosen(&veth("veth0"), None), ["veth0"]);
        let routed = Link { addresses: vec![address("10.5.1.1/32")], ..veth("veth0") };
        assert_eq!(chosen(&routed, None).len(), 1, "gateway address of a routed pod");
        let older = Link { addresses: vec![address("10.5.9.1/32")], ..veth("veth0") };
        assert_eq!(chosen(&older, None).len(), 1, "of the subnet that we had before");
        let bridged = Link { master: Some(5), ..veth("veth0") };
        assert_eq!(chosen(&bridged, None).len(), 1);
    }

    #[test]
    fn the_underlay_is_never_a_pods() {
        for link in [
            Link { ifindex: 2, ..veth("eth0") },
            Link { master: Some(2), ..veth("port") },
            Link { addresses: vec![address("192.0.2.1/24")], ..veth("eth1") },
            // Nodes within the overlay network.
            Link { addresses: vec![address("10.1.0.7/24")], ..veth("eth2") },
            Link { ifindex: 9, ..veth("uplink") },
            Link { lower_netns: None, ..veth("local") },
            Link { up: false, ..veth("down") },
            Link { kind: "bridge".to_owned(), ..veth("cni0") },
        ] {
            assert_eq!(chosen(&link, None), [""; 0], "{}", link.name);
        }
    }

    #[test]
    fn without_master_and_address_the_routes_tell() {
        assert!(is_doubtful(&veth("cali1")));
        for clear in [
            Link { master: Some(5), ..veth("veth0") },
            Link { addresses: vec![address("192.0.2.1/24")], ..veth("eth1") },
            Link { lower_netns: None, ..veth("local") },
            Link { kind: String::new(), ..veth("eth0") },
        ] {
            assert!(!is_doubtful(&clear), "{}", clear.name);
        }
    }

    #[test]
    fn names_can_be_chosen() {
        assert_eq!(chosen(&veth("cali1"), Some("^veth")), [""; 0]);
        assert_eq!(chosen(&veth("veth1"), Some("^veth")).len(), 1);
    }
}
