//! Which host-side veths lead to pods. Pure.

use crate::envelope::Choice;
use crate::kernel::Link;

/// The pods' host-side veths among all links.
///
/// A veth is one if its other end is in another network namespace
/// (`bpf_redirect_peer` works only then), and if it is not part of the
/// underlay: neither the underlay device or a port of it, nor a device with an
/// address outside the overlay network, which is a network card of this node
/// that happens to be a veth (a node in a container).
pub fn pod_veths<'a>(links: &'a [Link], choice: Choice<'_>) -> Vec<&'a Link> {
    links.iter().filter(|link| leads_to_pod(link, choice)).collect()
}

fn leads_to_pod(link: &Link, choice: Choice<'_>) -> bool {
    link.kind == "veth"
        && link.lower_netns.is_some()
        && link.up
        && link.ifindex != choice.underlay
        && link.master != Some(choice.underlay)
        && link
            .addresses
            .iter()
            .all(|address| !address.global || choice.network.contains(address.network.ip()))
        && choice.names.is_none_or(|names| names.is_match(&link.name))
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;
    use crate::kernel::LinkAddress;

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

    /// Names of the pods' veths if this is the only link.
    fn chosen(link: &Link, names: Option<&str>) -> Vec<String> {
        let names = names.map(|names| Regex::new(names).unwrap());
        let network = "10.5.0.0/16".parse().unwrap();
        let choice = Choice { underlay: 2, overlay: None, network, names: names.as_ref() };
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
        let bridged = Link { master: Some(5), ..veth("veth0") };
        assert_eq!(chosen(&bridged, None).len(), 1);
    }

    #[test]
    fn the_underlay_is_never_a_pods() {
        for link in [
            Link { ifindex: 2, ..veth("eth0") },
            Link { master: Some(2), ..veth("port") },
            Link { addresses: vec![address("192.0.2.1/24")], ..veth("eth1") },
            Link { lower_netns: None, ..veth("local") },
            Link { up: false, ..veth("down") },
            Link { kind: "bridge".to_owned(), ..veth("cni0") },
        ] {
            assert_eq!(chosen(&link, None), [""; 0], "{}", link.name);
        }
    }

    #[test]
    fn names_can_be_chosen() {
        assert_eq!(chosen(&veth("cali1"), Some("^veth")), [""; 0]);
        assert_eq!(chosen(&veth("veth1"), Some("^veth")).len(), 1);
    }
}
