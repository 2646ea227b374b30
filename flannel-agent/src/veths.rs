//! Which host-side veths lead to pods. Pure.

use ipnetwork::Ipv4Network;
use regex::Regex;

use crate::bpf::PodVeth;
use crate::kernel::Link;

/// What decides whether a veth is a pod's.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Interface index of the underlay device.
    pub underlay: u32,
    /// The overlay network.
    pub network: Ipv4Network,
    /// `--attach-iface`: only names that match.
    pub names: Option<&'a Regex>,
}

/// The pods' host-side veths among all links.
///
/// A veth is one if its other end is in another network namespace
/// (`bpf_redirect_peer` works only then), and if it is not part of the
/// underlay: neither the underlay device or a port of it, nor a device with an
/// address outside the overlay network, which is a network card of this node
/// that happens to be a veth (a node in a container).
pub fn pod_veths(links: &[Link], choice: Choice<'_>) -> Vec<PodVeth> {
    links.iter().filter(|link| leads_to_pod(link, choice)).map(served).collect()
}

fn leads_to_pod(link: &Link, choice: Choice<'_>) -> bool {
    link.kind == "veth"
        && link.peer_in_other_netns
        && link.up
        && link.ifindex != choice.underlay
        && link.master != Some(choice.underlay)
        && link
            .addresses
            .iter()
            .all(|address| !address.global || choice.network.contains(address.network.ip()))
        && choice.names.is_none_or(|names| names.is_match(&link.name))
}

fn served(link: &Link) -> PodVeth {
    PodVeth {
        ifindex: link.ifindex,
        name: link.name.clone(),
        mtu: link.mtu,
        // A bandwidth limit, say: redirect_peer would jump over it.
        through_egress: !matches!(link.qdisc.as_str(), "noqueue" | "noop" | ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::LinkAddress;

    fn veth(name: &str) -> Link {
        Link {
            ifindex: 7,
            name: name.to_owned(),
            mac: None,
            mtu: 1450,
            up: true,
            ethernet: true,
            loopback: false,
            kind: "veth".to_owned(),
            master: None,
            peer_in_other_netns: true,
            qdisc: "noqueue".to_owned(),
            addresses: Vec::new(),
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

    fn chosen(link: Link, names: Option<&str>) -> Vec<PodVeth> {
        let names = names.map(|names| Regex::new(names).unwrap());
        let network = "10.5.0.0/16".parse().unwrap();
        pod_veths(&[link], Choice { underlay: 2, network, names: names.as_ref() })
    }

    #[test]
    fn a_veth_into_another_namespace_is_a_pods() {
        assert_eq!(chosen(veth("veth0"), None)[0].name, "veth0");
        let routed = Link { addresses: vec![address("10.5.1.1/32")], ..veth("veth0") };
        assert_eq!(chosen(routed, None).len(), 1, "gateway address of a routed pod");
        let bridged = Link { master: Some(5), ..veth("veth0") };
        assert_eq!(chosen(bridged, None).len(), 1);
    }

    #[test]
    fn the_underlay_is_never_a_pods() {
        for link in [
            Link { ifindex: 2, ..veth("eth0") },
            Link { master: Some(2), ..veth("port") },
            Link { addresses: vec![address("192.0.2.1/24")], ..veth("eth1") },
            Link { peer_in_other_netns: false, ..veth("local") },
            Link { up: false, ..veth("down") },
            Link { kind: "bridge".to_owned(), ..veth("cni0") },
        ] {
            assert_eq!(chosen(link.clone(), None), [], "{}", link.name);
        }
    }

    #[test]
    fn names_can_be_chosen() {
        assert_eq!(chosen(veth("cali1"), Some("^veth")), []);
        assert_eq!(chosen(veth("veth1"), Some("^veth")).len(), 1);
    }

    #[test]
    fn a_real_qdisc_is_honoured() {
        let limited = Link { qdisc: "tbf".to_owned(), ..veth("veth0") };
        assert!(chosen(limited, None)[0].through_egress);
    }
}
