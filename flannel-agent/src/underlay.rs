//! Choosing the external interface and the address that peers send to. Pure.

use std::fmt;
use std::net::Ipv4Addr;

use crate::kernel::{Link, LinkAddress, RouteTo};

/// The chosen external interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Address on the interface: the local end of the tunnels.
    pub address: Ipv4Addr,
    /// Address for the lease; differs from `address` behind NAT.
    pub public_ip: Ipv4Addr,
    /// MTU in bytes, not 0.
    pub mtu: u32,
    /// Whether its frames have an Ethernet header.
    pub ethernet: bool,
}

impl Underlay {
    /// Why the eBPF path cannot use this interface; the kernel path can.
    pub fn ebpf_refusal(&self) -> Option<String> {
        (!self.ethernet).then(|| {
            format!(
                "{} is not an Ethernet interface; the eBPF path reads and writes Ethernet headers",
                self.name
            )
        })
    }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// `--iface`, each a name or an IPv4 address; the first that fits is taken.
    pub iface: &'a [String],
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
}

/// No interface could be chosen.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnderlayError {
    /// None of `--iface` fits.
    #[error("no interface fits --iface: {}; there are: {candidates}", tried.join("; "))]
    NoneFits {
        /// Each value with the reason.
        tried: Vec<String>,
        /// What could have been chosen.
        candidates: Candidates,
    },
    /// There is no default route and neither option names an interface.
    #[error(
        "no IPv4 default route, so the external interface must be named with --iface; \
         there are: {candidates}"
    )]
    NoDefaultRoute {
        /// What could have been chosen.
        candidates: Candidates,
    },
    /// The default route's interface cannot be used.
    #[error(
        "the default route's interface cannot be used: {reason}; name another with --iface; \
         there are: {candidates}"
    )]
    DefaultRoute {
        /// Why not.
        reason: String,
        /// What could have been chosen.
        candidates: Candidates,
    },
    /// `--public-ip` is an address that peers cannot send to.
    #[error("--public-ip {0} is no unicast address")]
    BadPublicIp(Ipv4Addr),
    /// `--public-ip` is on an interface that cannot be used.
    #[error("--public-ip {public_ip}: {reason}; there are: {candidates}")]
    PublicIp {
        /// The address.
        public_ip: Ipv4Addr,
        /// Why not.
        reason: String,
        /// What could have been chosen.
        candidates: Candidates,
    },
}

/// Interfaces with their addresses, for an error's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates(Vec<String>);

impl fmt::Display for Candidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("none with an IPv4 address"),
            all => f.write_str(&all.join(", ")),
        }
    }
}

/// Chooses the external interface as flannel does: the first `--iface` that
/// fits; else the interface that has `--public-ip`; else the default route's.
///
/// # Errors
/// When nothing fits; the text lists every interface and why a named one does not.
pub fn choose(
    links: &[Link],
    wish: Wish<'_>,
    default_route: Option<RouteTo>,
) -> Result<Underlay, UnderlayError> {
    if let Some(ip) = wish.public_ip
        && (ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
    {
        return Err(UnderlayError::BadPublicIp(ip));
    }
    let candidates = || candidates(links);
    if !wish.iface.is_empty() {
        let mut tried = Vec::new();
        for name in wish.iface {
            match named(links, name, wish.public_ip) {
                Ok(underlay) => return Ok(underlay),
                Err(reason) => tried.push(reason),
            }
        }
        return Err(UnderlayError::NoneFits { tried, candidates: candidates() });
    }
    if let Some(public_ip) = wish.public_ip
        && let Some(link) = holder(links, public_ip)
    {
        return usable(link, Some(public_ip), wish.public_ip).map_err(|reason| {
            UnderlayError::PublicIp { public_ip, reason, candidates: candidates() }
        });
    }
    let Some(route) = default_route else {
        return Err(UnderlayError::NoDefaultRoute { candidates: candidates() });
    };
    let link = links.iter().find(|link| link.ifindex == route.ifindex);
    link.ok_or_else(|| format!("interface {} is gone", route.ifindex))
        .and_then(|link| usable(link, None, wish.public_ip))
        .map_err(|reason| UnderlayError::DefaultRoute { reason, candidates: candidates() })
}

fn named(links: &[Link], name: &str, public_ip: Option<Ipv4Addr>) -> Result<Underlay, String> {
    if let Ok(address) = name.parse::<Ipv4Addr>() {
        let link = holder(links, address)
            .ok_or_else(|| format!("no interface has the address {address}"))?;
        return usable(link, Some(address), public_ip);
    }
    let link = links
        .iter()
        .find(|link| link.name == name)
        .ok_or_else(|| format!("there is no interface {name}"))?;
    // Of several addresses, take the one that is to be published.
    let wanted = public_ip.filter(|ip| has(link, *ip));
    usable(link, wanted, public_ip)
}

fn usable(
    link: &Link,
    address: Option<Ipv4Addr>,
    public_ip: Option<Ipv4Addr>,
) -> Result<Underlay, String> {
    let name = &link.name;
    if link.loopback {
        return Err(format!("{name} is a loopback interface"));
    }
    if !link.up {
        return Err(format!("{name} is down"));
    }
    if link.mtu == 0 {
        return Err(format!("failed to determine MTU for {name} interface"));
    }
    let address = address
        .or_else(|| best_address(&link.addresses))
        .ok_or_else(|| format!("{name} has no usable IPv4 address"))?;
    Ok(Underlay {
        ifindex: link.ifindex,
        name: name.clone(),
        address,
        public_ip: public_ip.unwrap_or(address),
        mtu: link.mtu,
        ethernet: link.ethernet,
    })
}

/// Global before link-local, permanent before dynamic, then the kernel's order
/// (which has secondary addresses last). Deprecated ones are no choice.
fn best_address(addresses: &[LinkAddress]) -> Option<Ipv4Addr> {
    let rank = |address: &&LinkAddress| {
        let local = address.network.ip().is_link_local() || !address.global;
        (local, !address.permanent)
    };
    addresses
        .iter()
        .filter(|address| !address.deprecated && !address.network.ip().is_loopback())
        .min_by_key(rank)
        .map(|address| address.network.ip())
}

fn has(link: &Link, ip: Ipv4Addr) -> bool {
    link.addresses.iter().any(|address| address.network.ip() == ip)
}

fn holder(links: &[Link], ip: Ipv4Addr) -> Option<&Link> {
    links.iter().find(|link| has(link, ip))
}

fn candidates(links: &[Link]) -> Candidates {
    let describe = |link: &Link| {
        let addresses: Vec<String> =
            link.addresses.iter().map(|address| address.network.ip().to_string()).collect();
        let state = if link.up { "" } else { ", down" };
        format!("{} ({}{state})", link.name, addresses.join(" "))
    };
    Candidates(
        links
            .iter()
            .filter(|link| !link.loopback && !link.addresses.is_empty())
            .map(describe)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> LinkAddress {
        LinkAddress {
            network: text.parse().unwrap(),
            permanent: true,
            deprecated: false,
            global: true,
        }
    }

    fn link(ifindex: u32, name: &str, addresses: &[LinkAddress]) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            mac: None,
            mtu: 1500,
            up: true,
            ethernet: true,
            loopback: name == "lo",
            kind: String::new(),
            master: None,
            peer_in_other_netns: false,
            qdisc: String::new(),
            addresses: addresses.to_vec(),
        }
    }

    fn links() -> Vec<Link> {
        vec![
            link(1, "lo", &[address("127.0.0.1/8"), address("10.9.9.9/32")]),
            link(2, "eth0", &[address("10.0.2.15/24")]),
            link(3, "eth1", &[address("192.168.7.4/24"), address("192.168.7.5/24")]),
        ]
    }

    fn route(ifindex: u32) -> Option<RouteTo> {
        Some(RouteTo { ifindex, source: None, gateway: None })
    }

    fn by_iface(links: &[Link], iface: &[&str]) -> Result<Underlay, UnderlayError> {
        let iface: Vec<String> = iface.iter().map(|name| (*name).to_owned()).collect();
        choose(links, Wish { iface: &iface, public_ip: None }, route(2))
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn the_default_route_decides_when_nothing_is_asked_for() {
        let chosen = choose(&links(), Wish::default(), route(2)).unwrap();
        assert_eq!((chosen.name.as_str(), chosen.address), ("eth0", ip("10.0.2.15")));
        assert_eq!(chosen.public_ip, chosen.address);
    }

    #[test]
    fn iface_takes_names_and_addresses_and_the_first_that_fits() {
        assert_eq!(by_iface(&links(), &["eth1"]).unwrap().address, ip("192.168.7.4"));
        assert_eq!(by_iface(&links(), &["192.168.7.5"]).unwrap().address, ip("192.168.7.5"));
        assert_eq!(by_iface(&links(), &["wlan0", "10.1.1.1", "eth1"]).unwrap().name, "eth1");
    }

    #[test]
    fn iface_that_fits_nothing_tells_why_and_what_there_is() {
        let error = by_iface(&links(), &["wlan0", "10.1.1.1", "lo"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no interface fits --iface: there is no interface wlan0; \
             no interface has the address 10.1.1.1; lo is a loopback interface; \
             there are: eth0 (10.0.2.15), eth1 (192.168.7.4 192.168.7.5)"
        );
    }

    #[test]
    fn loopback_is_never_chosen() {
        assert!(by_iface(&links(), &["127.0.0.1"]).is_err());
        assert!(by_iface(&links(), &["10.9.9.9"]).is_err());
        assert!(choose(&links(), Wish::default(), route(1)).is_err());
    }

    #[test]
    fn a_local_public_ip_picks_its_interface() {
        let wish = Wish { iface: &[], public_ip: Some(ip("192.168.7.5")) };
        let chosen = choose(&links(), wish, route(2)).unwrap();
        assert_eq!((chosen.name.as_str(), chosen.address), ("eth1", ip("192.168.7.5")));
    }

    #[test]
    fn a_foreign_public_ip_is_published_but_not_bound() {
        let wish = Wish { iface: &[], public_ip: Some(ip("203.0.113.9")) };
        let chosen = choose(&links(), wish, route(2)).unwrap();
        assert_eq!((chosen.address, chosen.public_ip), (ip("10.0.2.15"), ip("203.0.113.9")));
    }

    #[test]
    fn iface_goes_before_public_ip() {
        let iface = ["eth0".to_owned()];
        let wish = Wish { iface: &iface, public_ip: Some(ip("192.168.7.5")) };
        let chosen = choose(&links(), wish, route(3)).unwrap();
        assert_eq!((chosen.name.as_str(), chosen.address), ("eth0", ip("10.0.2.15")));
        assert_eq!(chosen.public_ip, ip("192.168.7.5"));
        let iface = ["eth1".to_owned()];
        let wish = Wish { iface: &iface, public_ip: Some(ip("192.168.7.5")) };
        assert_eq!(choose(&links(), wish, None).unwrap().address, ip("192.168.7.5"));
    }

    #[test]
    fn a_public_ip_that_nobody_can_send_to_is_refused() {
        for text in ["0.0.0.0", "127.0.0.1", "224.0.0.9", "255.255.255.255"] {
            let wish = Wish { iface: &[], public_ip: Some(ip(text)) };
            let error = choose(&links(), wish, route(2)).unwrap_err();
            assert_eq!(error, UnderlayError::BadPublicIp(ip(text)));
        }
    }

    #[test]
    fn no_default_route_lists_the_candidates() {
        let error = choose(&links(), Wish::default(), None).unwrap_err().to_string();
        assert!(error.contains("--iface") && error.contains("eth1 (192.168.7.4"), "{error}");
        let error = choose(&[], Wish::default(), None).unwrap_err().to_string();
        assert!(error.ends_with("none with an IPv4 address"), "{error}");
    }

    #[test]
    fn a_link_that_is_down_or_without_mtu_or_address_is_refused() {
        let change = |change: fn(&mut Link)| {
            let mut links = links();
            change(&mut links[1]);
            by_iface(&links, &["eth0"]).unwrap_err().to_string()
        };
        assert!(change(|link| link.up = false).contains("eth0 is down"));
        let text = change(|link| link.mtu = 0);
        assert!(text.contains("failed to determine MTU for eth0 interface"), "{text}");
        assert!(change(|link| link.addresses.clear()).contains("eth0 has no usable IPv4"));
    }

    #[test]
    fn addresses_are_taken_in_flannels_order() {
        let link_local = LinkAddress { global: false, ..address("169.254.3.4/16") };
        let dynamic = LinkAddress { permanent: false, ..address("10.0.0.7/24") };
        let deprecated = LinkAddress { deprecated: true, ..address("10.0.0.8/24") };
        let permanent = address("10.0.0.9/24");
        let best = |addresses: &[LinkAddress]| best_address(addresses).map(|ip| ip.to_string());
        let all = [deprecated, link_local, dynamic, permanent, address("10.0.0.10/24")];
        assert_eq!(best(&all).as_deref(), Some("10.0.0.9"));
        assert_eq!(best(&all[..3]).as_deref(), Some("10.0.0.7"));
        assert_eq!(best(&all[..2]).as_deref(), Some("169.254.3.4"));
        assert_eq!(best(&all[..1]), None);
    }

    #[test]
    fn an_interface_without_ethernet_is_taken_but_not_for_ebpf() {
        let mut links = links();
        links[1].ethernet = false;
        let chosen = by_iface(&links, &["eth0"]).unwrap();
        assert!(chosen.ebpf_refusal().unwrap().contains("eth0 is not an Ethernet interface"));
        links[1].ethernet = true;
        assert_eq!(by_iface(&links, &["eth0"]).unwrap().ebpf_refusal(), None);
    }
}
