//! What routes say of packets besides where they go: an MTU or a hop limit of their
//! own. No program is told of these, but for a locked MTU.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

/// What one route says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Largest IP packet in bytes.
    pub mtu: Option<u32>,
    /// It has a TTL for packets of the node's own.
    pub hop_limit: bool,
}

impl Limits {
    /// Whether it says anything.
    pub const fn any(self) -> bool {
        self.mtu.is_some() || self.hop_limit
    }

    /// The narrower of both.
    fn and(self, other: Self) -> Self {
        let mtu = match (self.mtu, other.mtu) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self { mtu, hop_limit: self.hop_limit || other.hop_limit }
    }
}

/// A route that says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitedRoute {
    /// Where it leads.
    pub destination: Ipv4Network,
    /// It is in the main table, which is asked whatever the source of a packet is.
    pub main: bool,
    /// What it says.
    pub limits: Limits,
}

/// A peer, as far as its packets' way depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its subnet.
    pub subnet: Ipv4Network,
    /// Its underlay address.
    pub public_ip: Ipv4Addr,
    /// It is reached without a tunnel.
    pub direct: bool,
}

/// A packet of the node whose route is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Where to.
    pub destination: Ipv4Addr,
    /// It is a tunnel packet.
    pub tunnel: Option<TunnelEnd>,
}

/// What else decides about the way of a tunnel packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelEnd {
    /// Its source; unspecified if that is not known yet.
    pub source: Ipv4Addr,
    /// UDP destination port; 0 if that is not known yet.
    pub port: u16,
    /// Interface index of the VRF that the underlay is in; 0: none.
    pub vrf: u32,
}

/// All routes of a node that say something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitedRoutes {
    routes: BTreeMap<Ipv4Network, Of>,
    lengths: BTreeSet<u8>,
}

/// What the routes to one destination say, in all tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Of {
    limits: Limits,
    /// All are in the main table.
    main: bool,
}

impl LimitedRoutes {
    /// Of what was read.
    pub fn of(found: impl IntoIterator<Item = LimitedRoute>) -> Self {
        let mut all = Self::default();
        for LimitedRoute { destination, main, limits } in found {
            all.lengths.insert(destination.prefix());
            let of = all.routes.entry(destination).or_insert(Of { limits, main });
            *of = Of { limits: of.limits.and(limits), main: of.main && main };
        }
        all
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Routes that lead to this address, whether the kernel takes them or not.
    fn to(&self, address: Ipv4Addr) -> impl Iterator<Item = (Ipv4Network, Of)> {
        self.lengths.iter().filter_map(move |length| {
            let network = Ipv4Network::new(address, *length).ok()?;
            let network = Ipv4Network::new(network.network(), *length).ok()?;
            Some((network, *self.routes.get(&network)?))
        })
    }

    /// Routes to a part of this subnet, or to all of it.
    fn within(&self, subnet: Ipv4Network) -> impl Iterator<Item = Of> {
        let bound = |address, prefix| Ipv4Network::new(address, prefix).ok();
        let range = bound(subnet.network(), 0).zip(bound(subnet.broadcast(), 32));
        let found = range.map(|(first, last)| self.routes.range(first..=last));
        let inner = move |(network, of): (&Ipv4Network, &Of)| {
            (network.prefix() >= subnet.prefix()).then_some(*of)
        };
        found.into_iter().flatten().filter_map(inner)
    }

    /// How large packets on the way to a peer may be, if a route of their way says so;
    /// `Some(0)` if all of them are the kernel's to send. `ask` tells what the kernel's
    /// route for a packet of the node to this address says; it is asked only where a
    /// route that says something may be it.
    ///
    /// What is not known for sure counts: smaller is never wrong, as the kernel sends
    /// what is larger.
    pub fn largest<E>(
        &self,
        to: Destination,
        mut ask: impl FnMut(Ipv4Addr) -> Result<Limits, E>,
    ) -> Option<u32> {
        if !to.direct {
            self.to(to.public_ip).next()?;
            return match ask(to.public_ip) {
                Ok(limits) if !limits.hop_limit => limits.mtu,
                Ok(_) | Err(_) => Some(0),
            };
        }
        // Pods' packets are forwarded: a TTL of the route is not theirs.
        let parts = self.within(to.subnet).map(|of| of.limits);
        let mut limits = parts.fold(Limits::default(), Limits::and);
        let wide = || self.to(to.subnet.network()).filter(|(found, _)| *found != to.subnet);
        if wide().any(|(_, of)| of.main) {
            let first = to.subnet.nth(1).unwrap_or(to.subnet.network());
            match ask(first) {
                Ok(found) => limits = limits.and(found),
                Err(_) => return Some(0),
            }
        }
        // Which source leads into another table nobody here knows.
        let others = wide().filter(|(_, of)| !of.main).map(|(_, of)| of.limits);
        others.fold(limits, Limits::and).mtu
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn route(destination: &str, main: bool, mtu: Option<u32>, hop_limit: bool) -> LimitedRoute {
        let limits = Limits { mtu, hop_limit };
        LimitedRoute { destination: destination.parse().unwrap(), main, limits }
    }

    fn peer(direct: bool) -> Destination {
        Destination {
            subnet: "10.5.7.0/24".parse().unwrap(),
            public_ip: "192.0.2.12".parse().unwrap(),
            direct,
        }
    }

    /// The bound, and who was asked for.
    fn largest(
        routes: &[LimitedRoute],
        direct: bool,
        answer: Result<Limits, ()>,
    ) -> (Option<u32>, Vec<String>) {
        let asked = RefCell::new(Vec::new());
        let ask = |address: Ipv4Addr| {
            asked.borrow_mut().push(address.to_string());
            answer
        };
        let bound = LimitedRoutes::of(routes.iter().copied()).largest(peer(direct), ask);
        (bound, asked.into_inner())
    }

    const NOTHING: Result<Limits, ()> = Ok(Limits { mtu: None, hop_limit: false });
    const NARROW: Result<Limits, ()> = Ok(Limits { mtu: Some(1300), hop_limit: false });

    #[test]
    fn only_peers_of_limited_routes_are_asked_for() {
        let others = ["0.0.0.0/32", "192.0.2.13/32", "192.0.2.128/25", "10.5.7.0/24"]
            .map(|to| route(to, true, Some(1300), true));
        assert_eq!(largest(&others, false, NARROW), (None, Vec::new()));
        for to in ["0.0.0.0/0", "192.0.2.0/24", "192.0.2.12/32"] {
            for main in [true, false] {
                let routes = [others.as_slice(), &[route(to, main, Some(1300), false)]].concat();
                let asked = vec!["192.0.2.12".to_owned()];
                assert_eq!(largest(&routes, false, NARROW), (Some(1300), asked.clone()));
                assert_eq!(largest(&routes, false, NOTHING), (None, asked), "a better route");
            }
        }
    }

    #[test]
    fn what_has_a_ttl_of_its_own_or_is_not_known_is_the_kernels() {
        let default = [route("0.0.0.0/0", true, None, true)];
        let limits = Limits { mtu: Some(1300), hop_limit: true };
        assert_eq!(largest(&default, false, Ok(limits)).0, Some(0));
        assert_eq!(largest(&default, false, Err(())).0, Some(0));
        assert_eq!(largest(&default, true, Err(())).0, Some(0));
        assert_eq!(largest(&default, true, Ok(limits)).0, Some(1300), "forwarded");
    }

    #[test]
    fn direct_peers_go_by_the_routes_to_their_pods() {
        let none = |routes: &[LimitedRoute], answer| largest(routes, true, answer);
        assert_eq!(none(&[route("192.0.2.12/32", true, Some(9), true)], NARROW), (None, vec![]));
        let part = route("10.5.7.9/32", true, Some(1200), false);
        assert_eq!(none(&[part], NARROW), (Some(1200), vec![]));
        let whole = route("10.5.7.0/24", false, Some(1250), false);
        assert_eq!(none(&[part, whole], NARROW), (Some(1200), vec![]));
        assert_eq!(none(&[whole], NARROW), (Some(1250), vec![]));
        let asked = vec!["10.5.7.1".to_owned()];
        let default = route("0.0.0.0/0", true, Some(1300), false);
        assert_eq!(none(&[default], NARROW), (Some(1300), asked.clone()));
        assert_eq!(none(&[default], NOTHING), (None, asked.clone()), "the subnet has its own");
        assert_eq!(none(&[default, whole], NARROW), (Some(1250), asked));
        let elsewhere = route("10.0.0.0/8", false, Some(1100), false);
        assert_eq!(none(&[elsewhere], NOTHING), (Some(1100), vec![]), "a rule may lead there");
        let next = route("10.5.8.0/24", true, Some(900), false);
        assert_eq!(none(&[next], NARROW), (None, vec![]));
    }

    #[test]
    fn several_routes_to_one_destination_count_together() {
        let routes = [
            route("0.0.0.0/0", true, Some(1400), false),
            route("0.0.0.0/0", false, Some(1300), false),
        ];
        assert_eq!(largest(&routes, true, NOTHING).0, Some(1300));
        assert!(LimitedRoutes::of([]).is_empty());
        assert!(!LimitedRoutes::of(routes).is_empty());
    }
}
