//! Choosing the external interface and the address that peers send to.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use regex::Regex;

use crate::link::{Link, LinkAddress, RouteTo};

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
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// `--iface`, each a name or an IPv4 address; the first that fits is taken.
    pub iface: Vec<String>,
    /// `--iface-regex`, tried after all of `iface`: each on the addresses of
    /// all interfaces, then on their names.
    pub iface_regex: Vec<Regex>,
    /// `--iface-can-reach`, tried last: the interface and the source address
    /// of the route there.
    pub can_reach: Option<Ipv4Addr>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// The addresses of pods ([`NetworkConfig::pods`](crate::config::NetworkConfig::pods)).
    /// What has one of them, such as the pods' bridge, fits no pattern: the
    /// underlay must not become the overlay when its own interface is away for a
    /// moment. Nodes may have other addresses of a wide overlay network.
    pub pods: Option<RangeInclusive<Ipv4Addr>>,
}

impl Wish {
    /// Whether a flag names an interface, so that the default route does not matter.
    pub fn names_an_interface(&self) -> bool {
        !self.iface.is_empty() || !self.iface_regex.is_empty() || self.can_reach.is_some()
    }

    fn is_pods(&self, ip: Ipv4Addr) -> bool {
        self.pods.as_ref().is_some_and(|pods| pods.contains(&ip))
    }
}

/// What the routing tables say about a [`Wish`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// The default route, if the choice may depend on it.
    pub default: Option<RouteTo>,
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
pub fn choose(links: &[Link], wish: &Wish, routes: Routes) -> Result<Underlay, UnderlayError> {
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
        return usable(link, Some(public_ip), wish.public_ip).map_err(|reason| {
            UnderlayError::PublicIp { public_ip, reason, candidates: candidates() }
        });
    }
    let Some(route) = routes.default else {
        return Err(UnderlayError::NoDefaultRoute { candidates: candidates() });
    };
    by_route(links, route, None, wish.public_ip)
        .map_err(|reason| UnderlayError::DefaultRoute { reason, candidates: candidates() })
}

/// Chooses again while running, from `current`.
///
/// What `--iface-regex` or `--iface-can-reach` has chosen stays as long as the
/// interface has the address: another one that fits while it is down, or
/// before its routes are back, must not take the lease away.
///
/// # Errors
/// As [`choose`], and when the interface that stays is down.
pub fn follow(
    current: &Underlay,
    links: &[Link],
    wish: &Wish,
    routes: Routes,
) -> Result<Underlay, UnderlayError> {
    let sought = !wish.iface_regex.is_empty() || wish.can_reach.is_some();
    let stays = |link: &&Link| link.ifindex == current.ifindex && has(link, current.address);
    match links.iter().find(stays).filter(|_| sought) {
        Some(link) => usable(link, Some(current.address), wish.public_ip)
            .map_err(|reason| UnderlayError::Present { reason }),
        None => choose(links, wish, routes),
    }
}

/// The first of the flags that fits, else why each does not.
fn asked_for(links: &[Link], wish: &Wish, reach: Option<RouteTo>) -> Result<Underlay, Vec<String>> {
    let mut tried = Vec::new();
    for name in &wish.iface {
        match named(links, name, wish.public_ip) {
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
    public_ip: Option<Ipv4Addr>,
) -> Result<Underlay, String> {
    let link = links.iter().find(|link| link.ifindex == route.ifindex);
    link.ok_or_else(|| format!("interface {} is gone", route.ifindex))
        .and_then(|link| usable(link, address, public_ip))
}

/// The first usable interface with an address that the pattern matches, else
/// the first whose name it matches.
fn matched(links: &[Link], regex: &Regex, wish: &Wish) -> Result<Underlay, String> {
    let mut reason = None;
    let mut take = |link: &Link, address: Option<Ipv4Addr>| {
        usable(link, address, wish.public_ip).map_err(|unusable| reason = Some(unusable)).ok()
    };
    let outside =
        |link: &&Link| !link.addresses.iter().any(|address| wish.is_pods(address.network.ip()));
    let links = || links.iter().filter(|link| !link.loopback).filter(outside);
    let by_address = links().find_map(|link| {
        let best = ranked(&link.addresses);
        let address = best.into_iter().find(|ip| regex.is_match(&ip.to_string()))?;
        take(link, Some(address))
    });
    let chosen = by_address.or_else(|| {
        links()
            .filter(|link| regex.is_match(&link.name))
            .find_map(|link| take(link, wish.public_ip.filter(|ip| has(link, *ip))))
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
    by_route(links, route, route.source, wish.public_ip)
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
        .or_else(|| ranked(&link.addresses).first().copied())
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
mod tests;
