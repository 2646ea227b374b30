//! Choosing the external interface and the address that peers send to.

mod follow;
mod overlap;
pub mod successor;

use std::fmt;
use std::net::{AddrParseError, IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use regex::Regex;

pub use self::follow::{Away, follow};
pub use self::overlap::overlap;
use crate::link::{Link, LinkAddress, RouteTo};
use crate::mac::MacAddr;

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
    /// MAC, by which a card is known that was made anew.
    pub mac: Option<MacAddr>,
    /// MTU in bytes, not 0.
    pub mtu: u32,
    /// Whether its frames have an Ethernet header.
    pub ethernet: bool,
}

impl Underlay {
    /// Why the eBPF path cannot use this interface; the kernel path can.
    pub fn ebpf_refusal(&self) -> Option<String> {
        if self.name == LOOPBACK {
            return Some(format!(
                "the address {} is on {LOOPBACK}: packets come and go by other devices, and the \
                 kernel's VXLAN device finds them",
                self.address
            ));
        }
        (!self.ethernet).then(|| {
            format!(
                "{} is not an Ethernet interface; the eBPF path reads and writes Ethernet headers",
                self.name
            )
        })
    }
}

/// The loopback interface, in every network namespace.
const LOOPBACK: &str = "lo";
/// MTU of an underlay on it, where no card tells a better one.
const ETHERNET_MTU: u32 = 1500;

/// What the user asked for.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
pub struct Wish {
    /// Interface of the underlay, by name or address; repeatable, the first
    /// that exists is taken [default: the default route's]
    #[cfg_attr(feature = "clap", arg(long, value_name = "NAME|IP"))]
    pub iface: Vec<String>,
    /// Interface of the underlay by a regular expression, tried on all
    /// addresses, then on all names; repeatable, after every --iface
    #[cfg_attr(feature = "clap", arg(long, value_name = "REGEX", value_parser = Regex::new))]
    pub iface_regex: Vec<Regex>,
    /// Interface and source address of the route to this address are the
    /// underlay's, if no --iface and no --iface-regex fits
    #[cfg_attr(
        feature = "clap",
        arg(long = "iface-can-reach", value_name = "IP", value_parser = address)
    )]
    pub can_reach: Option<Ipv4Addr>,
    /// Address that the other nodes reach this one at; need not be a local one
    /// [default: the interface's]
    #[cfg_attr(feature = "clap", arg(long, value_name = "IP", value_parser = address))]
    pub public_ip: Option<Ipv4Addr>,
    /// No flag: what this node published last by the same flags: of the addresses of an
    /// interface it is taken first. A virtual address that is there at the moment must not become ours.
    #[cfg_attr(feature = "clap", arg(skip))]
    pub familiar: Option<Ipv4Addr>,
    /// No flag: the addresses of pods ([`NetworkConfig::pods`](crate::config::NetworkConfig::pods)).
    /// What has one of them, such as the pods' bridge, fits no pattern: the
    /// underlay must not become the overlay when its own interface is away for a
    /// moment. Nodes may have other addresses of a wide overlay network.
    #[cfg_attr(feature = "clap", arg(skip))]
    pub pods: Option<RangeInclusive<Ipv4Addr>>,
}

impl Wish {
    /// Whether a flag names an interface, so that the default route does not matter.
    pub fn names_an_interface(&self) -> bool {
        !self.iface.is_empty() || !self.iface_regex.is_empty() || self.can_reach.is_some()
    }

    /// The flags, for comparison with another run's.
    pub fn text(&self) -> String {
        let mut words: Vec<String> =
            self.iface.iter().map(|name| format!("iface={name}")).collect();
        words.extend(self.iface_regex.iter().map(|regex| format!("iface-regex={regex}")));
        words.extend(self.can_reach.map(|address| format!("iface-can-reach={address}")));
        words.extend(self.public_ip.map(|address| format!("public-ip={address}")));
        words.join(" ")
    }

    fn is_on_pods(&self, link: &Link) -> bool {
        link.addresses.iter().any(|address| self.is_pods(address.network.ip()))
    }

    fn is_pods(&self, ip: Ipv4Addr) -> bool {
        self.pods.as_ref().is_some_and(|pods| pods.contains(&ip))
    }
}

/// What the routing tables say about a [`Wish`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnderlayRoutes {
    /// The default routes, the best first, if the choice may depend on them.
    pub defaults: Vec<RouteTo>,
    /// The route to `--iface-can-reach`.
    pub reach: Option<RouteTo>,
}

/// No interface could be chosen.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnderlayError {
    /// None of `--iface`, `--iface-regex` and `--iface-can-reach` fits.
    #[error("no interface fits {}; there are: {candidates}", tried.join("; "))]
    NoneFits {
        /// Each flag with its value and the reason.
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
    /// The interface that we use cannot be used at the moment.
    #[error("the underlay's interface cannot be used: {reason}")]
    Present {
        /// Why not.
        reason: String,
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
/// fits, the first `--iface-regex`, `--iface-can-reach`; if none of them is
/// given, the interface that has `--public-ip`; else the default route's.
///
/// # Errors
/// When nothing fits; the text lists every interface and why a named one does not.
pub fn choose(
    links: &[Link],
    wish: &Wish,
    routes: UnderlayRoutes,
) -> Result<Underlay, UnderlayError> {
    if let Some(ip) = wish.public_ip
        && (ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
    {
        return Err(UnderlayError::BadPublicIp(ip));
    }
    let candidates = || candidates(links);
    if wish.names_an_interface() {
        return asked_for(links, wish, routes.reach)
            .map_err(|tried| UnderlayError::NoneFits { tried, candidates: candidates() });
    }
    if let Some(public_ip) = wish.public_ip
        && let Some(link) = holder(links, public_ip)
    {
        return usable(links, link, Some(public_ip), wish).map_err(|reason| {
            UnderlayError::PublicIp { public_ip, reason, candidates: candidates() }
        });
    }
    let is_ours =
        |route: &RouteTo| links.iter().any(|link| link.ifindex == route.ifindex && carries(link));
    let Some(route) = routes.defaults.into_iter().find(|route| !is_ours(route)) else {
        return Err(UnderlayError::NoDefaultRoute { candidates: candidates() });
    };
    by_route(links, route, None, wish)
        .map_err(|reason| UnderlayError::DefaultRoute { reason, candidates: candidates() })
}

/// The link that has the address in use: the same one, else one with its MAC, as a
/// card that was made anew or the bond that it is in now, else any.
fn kept<'a>(current: &Underlay, links: &'a [Link]) -> Option<&'a Link> {
    let strangeness = |link: &&Link| {
        (link.ifindex != current.ifindex, current.mac.is_none() || link.mac != current.mac)
    };
    links
        .iter()
        .filter(|link| link.has(current.address) && (!link.loopback || current.name == link.name))
        .min_by_key(strangeness)
}

/// Whether a link carries an overlay: what leads through it cannot carry ours.
fn carries(link: &Link) -> bool {
    let device = (link.kind.as_str(), link.name.as_str());
    matches!(device, ("vxlan", name) if name.starts_with("flannel."))
        || matches!(device, ("tun", "flannel0"))
}

/// The first of the flags that fits, else why each does not.
fn asked_for(links: &[Link], wish: &Wish, reach: Option<RouteTo>) -> Result<Underlay, Vec<String>> {
    let mut tried = Vec::new();
    for name in &wish.iface {
        match named(links, name, wish) {
            Ok(underlay) => return Ok(underlay),
            Err(reason) => tried.push(format!("--iface={name}: {reason}")),
        }
    }
    for regex in &wish.iface_regex {
        match matched(links, regex, wish) {
            Ok(underlay) => return Ok(underlay),
            Err(reason) => tried.push(format!("--iface-regex={regex}: {reason}")),
        }
    }
    if let Some(destination) = wish.can_reach {
        match reaching(links, destination, reach, wish) {
            Ok(underlay) => return Ok(underlay),
            Err(reason) => tried.push(format!("--iface-can-reach={destination}: {reason}")),
        }
    }
    Err(tried)
}

fn by_route(
    links: &[Link],
    route: RouteTo,
    address: Option<Ipv4Addr>,
    wish: &Wish,
) -> Result<Underlay, String> {
    let link = links.iter().find(|link| link.ifindex == route.ifindex);
    let link = link.ok_or_else(|| format!("interface {} is gone", route.ifindex))?;
    if link.loopback {
        return Err(format!("{} is a loopback interface", link.name));
    }
    if carries(link) {
        return Err(format!("{} is a device of an overlay", link.name));
    }
    usable(links, link, address, wish)
}

/// The first usable interface with an address that the pattern matches, else
/// the first whose name it matches.
fn matched(links: &[Link], regex: &Regex, wish: &Wish) -> Result<Underlay, String> {
    let mut reason = None;
    let mut take = |link: &Link, address: Option<Ipv4Addr>| {
        usable(links, link, address, wish).map_err(|unusable| reason = Some(unusable)).ok()
    };
    let eligible = || links.iter().filter(|link| !link.loopback && !wish.is_on_pods(link));
    let by_address = eligible().find_map(|link| {
        let best = ranked(&link.addresses);
        let address = best.into_iter().find(|ip| regex.is_match(&ip.to_string()))?;
        take(link, Some(address))
    });
    let chosen = by_address.or_else(|| {
        eligible()
            .filter(|link| regex.is_match(&link.name))
            .find_map(|link| take(link, wish.public_ip.filter(|ip| link.has(*ip))))
    });
    chosen.ok_or_else(|| {
        reason.unwrap_or_else(|| "matches no interface's address or name".to_owned())
    })
}

fn reaching(
    links: &[Link],
    destination: Ipv4Addr,
    route: Option<RouteTo>,
    wish: &Wish,
) -> Result<Underlay, String> {
    if wish.is_pods(destination) {
        return Err(format!("{destination} is in the overlay network, among the pods"));
    }
    let route = route.ok_or_else(|| format!("there is no route to {destination}"))?;
    by_route(links, route, route.source, wish)
}

/// An IPv4 address as Go's `net.ParseIP` reads it: mapped to IPv6, too.
///
/// # Errors
/// It is none.
pub fn address(text: &str) -> Result<Ipv4Addr, AddrParseError> {
    match text.parse().map(|address: IpAddr| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => Ok(address),
        _ => text.parse(),
    }
}

fn named(links: &[Link], name: &str, wish: &Wish) -> Result<Underlay, String> {
    if let Ok(address) = address(name) {
        let link = holder(links, address)
            .ok_or_else(|| format!("no interface has the address {address}"))?;
        return usable(links, link, Some(address), wish);
    }
    let link =
        links.iter().find(|link| link.name == name).ok_or_else(|| match name.contains(',') {
            true => format!("there is no interface {name}; give --iface once for each name"),
            false => format!("there is no interface {name}"),
        })?;
    // Of several addresses, take the one that is to be published.
    let wanted = wish.public_ip.filter(|ip| link.has(*ip));
    usable(links, link, wanted, wish)
}

fn usable(
    links: &[Link],
    link: &Link,
    address: Option<Ipv4Addr>,
    wish: &Wish,
) -> Result<Underlay, String> {
    let name = &link.name;
    if !link.up {
        return Err(format!("{name} is down"));
    }
    if link.mtu == 0 {
        return Err(format!("failed to determine MTU for {name} interface"));
    }
    let best = || {
        let ranked = ranked(&link.addresses);
        let familiar = wish.familiar.filter(|familiar| ranked.contains(familiar));
        familiar.or_else(|| ranked.first().copied())
    };
    let address = address
        .or_else(best)
        .filter(|address| !address.is_loopback())
        .ok_or_else(|| format!("{name} has no usable IPv4 address"))?;
    Ok(Underlay {
        ifindex: link.ifindex,
        name: name.clone(),
        address,
        public_ip: wish.public_ip.unwrap_or(address),
        mac: link.mac,
        mtu: if link.loopback { mtu_of_cards(links, wish) } else { link.mtu },
        ethernet: link.ethernet,
    })
}

/// Global before link-local, permanent before dynamic, then the kernel's order
/// (which has secondary addresses last). Deprecated ones are no choice.
fn ranked(addresses: &[LinkAddress]) -> Vec<Ipv4Addr> {
    let rank = |address: &&LinkAddress| {
        let local = address.network.ip().is_link_local() || !address.global;
        (local, !address.permanent)
    };
    let mut usable: Vec<&LinkAddress> = addresses
        .iter()
        .filter(|address| !address.deprecated && !address.network.ip().is_loopback())
        .collect();
    usable.sort_by_key(rank);
    usable.into_iter().map(|address| address.network.ip()).collect()
}

/// What packets of an address on loopback leave by: the card with the smallest MTU
/// counts, since routes may change.
fn mtu_of_cards(links: &[Link], wish: &Wish) -> u32 {
    let is_way = |link: &&Link| {
        let card = link.kind.is_empty() || (!link.addresses.is_empty() && !wish.is_on_pods(link));
        card && link.up && link.ethernet && !carries(link) && link.mtu != 0
    };
    links.iter().filter(is_way).map(|link| link.mtu).min().unwrap_or(ETHERNET_MTU)
}

fn holder(links: &[Link], ip: Ipv4Addr) -> Option<&Link> {
    links.iter().find(|link| link.has(ip))
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
mod tests;
