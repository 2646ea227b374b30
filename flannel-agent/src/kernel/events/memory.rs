//! What the kernel has told so far, as far as a later message can contradict it.
//! Pure: bytes in, events out.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use flannel_core::link::Link;
use flannel_core::mac::MacAddr;
use ipnetwork::Ipv4Network;
use rtnetlink::packet_core::Parseable as _;
use rtnetlink::packet_route::route::RouteMessage;

use super::scope::Scope;
use crate::kernel::KernelEvent;
use crate::kernel::answer;
use crate::kernel::limits;
use crate::kernel::links::{self, IFINFO_LEN};
use crate::kernel::netconf::{self, RTM_NEWNETCONF};
use crate::kernel::raw::{self, HEADER_LEN};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWRULE: u16 = 32;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const RTM_DELRULE: u16 = 33;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_NEWCHAIN: u16 = 100;
const RTM_DELCHAIN: u16 = 101;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

/// Where a message names the socket that asked for the change.
const PORT_AT: usize = 12;
/// Length of `struct ifaddrmsg`.
const IFADDR_LEN: usize = 8;
/// Length of `struct rtmsg`.
const RTMSG_LEN: usize = 12;
/// Length of `struct ndmsg`.
const NDMSG_LEN: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
/// RT_TABLE_LOCAL: follows from addresses, which have their own events. But somebody may
/// delete or replace what has followed.
const RT_TABLE_LOCAL: u8 = 255;
const RT_TABLE_MAIN: u8 = 254;
/// RTN_LOCAL.
const RTN_LOCAL: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_VLAN: u16 = 5;
const NDA_MASTER: u16 = 9;
/// NUD states in which an entry's MAC is used.
const NUD_USED: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_BRPORT_STATE: u16 = 1;
/// BR_STATE_FORWARDING.
const FORWARDING: u8 = 3;
/// Attributes of a bridge port by which frames go another way: hairpin,
/// isolated, learning, locked and the like; neither timers nor counters.
const PORT: [u16; 14] = [4, 5, 8, 9, 10, 11, 27, 29, 30, 31, 32, 33, 34, 37];
/// A filter of a block that devices share (TCM_IFINDEX_MAGIC_BLOCK).
const SHARED_BLOCK: u32 = u32::MAX;

/// Entries that each kind of place may have.
const PLACES: usize = 65_536;

/// Links, bridge ports, neighbours and stations as last told.
#[derive(Default)]
pub(super) struct Memory {
    links: HashMap<u32, Link>,
    ports: HashMap<u32, Port>,
    neighbours: Places<(u32, Ipv4Addr), MacAddr>,
    /// Ports by bridge, VLAN and MAC.
    stations: Places<(u32, u16, MacAddr), u32>,
}

#[derive(Debug, PartialEq, Eq)]
struct Port {
    forwarding: bool,
    settings: Vec<u8>,
}

impl Memory {
    /// What a message says that matters; each at most once.
    pub(super) fn take(
        &mut self,
        message: &[u8],
        scope: &Scope,
        now: Instant,
    ) -> [Option<KernelEvent>; 2] {
        let none = [None, None];
        let (Some(kind), Some(body)) = (raw::kind(message), message.get(HEADER_LEN..)) else {
            return none;
        };
        let decision = |matters: bool| matters.then_some(KernelEvent::Decision);
        // ifinfomsg, ifaddrmsg, ndmsg and tcmsg all have the index at this place.
        let index = raw::number(body, 4).unwrap_or(0);
        let asked = |port: Option<u32>| port.is_some_and(|port| scope.own().asked(port));
        match kind {
            // What follows for the programs, who asked for it tells them.
            RTM_NEWROUTE | RTM_DELROUTE | RTM_NEWNEIGH | RTM_DELNEIGH
                if asked(raw::number(message, PORT_AT)) =>
            {
                none
            }
            RTM_NEWLINK | RTM_DELLINK if body.first() == Some(&(libc::AF_BRIDGE as u8)) => {
                let ended = self.port(kind == RTM_DELLINK, index, body);
                [None, decision(ended && passes(scope, index, body))]
            }
            RTM_NEWLINK | RTM_DELLINK => {
                let ended = self.link(kind == RTM_DELLINK, index, body, scope);
                [Some(KernelEvent::Link { ifindex: index }), decision(ended)]
            }
            RTM_NEWADDR | RTM_DELADDR => {
                let matters =
                    scope.passes(index) || address(body).is_none_or(|ip| scope.reaches(ip));
                [Some(KernelEvent::Address { ifindex: index }), decision(matters)]
            }
            RTM_NEWROUTE | RTM_DELROUTE if is_local(body) => {
                let supersedes = kind == RTM_NEWROUTE && supersedes(message);
                // This table goes before all others, for the packets of pods and peers, too.
                let ended = way(body)
                    .map_or(Some(KernelEvent::OverlayRoute), |(to, _)| decided_by(to, scope));
                let event = self.local_route(kind == RTM_DELROUTE, supersedes, body, scope);
                [event, ended]
            }
            RTM_DELROUTE => {
                let [event, decision] = route(body, false, scope).unwrap_or(none);
                [self.lost(event, body).or(event), decision]
            }
            RTM_NEWROUTE => {
                let [event, decision] = route(body, replaces(message), scope).unwrap_or(none);
                [before_others(message, body, scope).or(event), decision]
            }
            RTM_NEWNEIGH | RTM_DELNEIGH if self.is_vxlan(index) => {
                let own = is_own_entry(scope, kind == RTM_DELNEIGH, index, body);
                [(!own).then_some(KernelEvent::Neighbour { ifindex: index }), None]
            }
            RTM_NEWNEIGH | RTM_DELNEIGH => {
                let moved = self.neighbour(kind == RTM_DELNEIGH, body, scope, now);
                [None, decision(moved.unwrap_or(false))]
            }
            RTM_NEWRULE | RTM_DELRULE => [Some(KernelEvent::Rule), decision(true)],
            RTM_NEWNEXTHOP | RTM_DELNEXTHOP => [None, decision(true)],
            RTM_NEWNETCONF if netconf::forwards_otherwise(body) => {
                [Some(KernelEvent::Switch), decision(true)]
            }
            RTM_NEWQDISC | RTM_DELQDISC | RTM_NEWTFILTER | RTM_DELTFILTER | RTM_NEWCHAIN
            | RTM_DELCHAIN => {
                let ifindex = if index == SHARED_BLOCK { 0 } else { index };
                [Some(KernelEvent::Tc { ifindex }), None]
            }
            _ => none,
        }
    }

    /// What is known of a route that was taken away, if it led through a VXLAN device.
    fn lost(&self, event: Option<KernelEvent>, body: &[u8]) -> Option<KernelEvent> {
        let Some(KernelEvent::Route { ifindex }) = event else { return None };
        let message = self.is_vxlan(ifindex).then(|| RouteMessage::parse(body).ok())??;
        let route = answer::route_through(ifindex, &message)?;
        Some(KernelEvent::RouteLost { ifindex, route })
    }

    /// What a change of the local table is: of our own address, or of any other of the
    /// node.
    fn local_route(
        &self,
        gone: bool,
        supersedes: bool,
        body: &[u8],
        scope: &Scope,
    ) -> Option<KernelEvent> {
        let (destination, output) = way(body)?;
        if gone && output.is_some_and(|ifindex| self.is_vxlan(ifindex)) {
            return output.map(|ifindex| KernelEvent::Route { ifindex });
        }
        // The kernel itself replaces none, and puts none before another.
        if supersedes && scope.holds(destination) {
            return Some(KernelEvent::Route { ifindex: 0 });
        }
        let matters = supersedes || body.get(7) == Some(&RTN_LOCAL);
        matters.then_some(KernelEvent::Address { ifindex: output.unwrap_or(0) })
    }

    fn is_vxlan(&self, ifindex: u32) -> bool {
        self.links.get(&ifindex).is_some_and(|link| link.kind == "vxlan")
    }

    /// Whether the link's change ends decisions.
    fn link(&mut self, gone: bool, ifindex: u32, body: &[u8], scope: &Scope) -> bool {
        let part = if scope.passes(ifindex) { Part::OnTheWay } else { Part::Elsewhere };
        if gone {
            self.ports.remove(&ifindex);
            return self.links.remove(&ifindex).is_some_and(|old| ends_decisions(&old, None, part));
        }
        let Some(new) = links::link(body) else {
            return true;
        };
        let ended =
            self.links.get(&ifindex).is_some_and(|old| ends_decisions(old, Some(&new), part));
        self.links.insert(ifindex, new);
        ended
    }

    /// Whether a bridge treats a port otherwise than before.
    fn port(&mut self, gone: bool, ifindex: u32, body: &[u8]) -> bool {
        if gone {
            // The link itself tells that it has no master any more.
            self.ports.remove(&ifindex);
            return false;
        }
        let attributes = body.get(IFINFO_LEN..).unwrap_or_default();
        let settings = raw::attribute(attributes, IFLA_PROTINFO).unwrap_or_default();
        let state = raw::attribute(settings, IFLA_BRPORT_STATE).and_then(|state| state.first());
        let mut port = Port {
            forwarding: state.is_none_or(|state| *state == FORWARDING),
            settings: Vec::new(),
        };
        for (kind, value) in raw::attributes(settings).filter(|(kind, _)| PORT.contains(kind)) {
            raw::put(&mut port.settings, kind, value);
        }
        port.settings.extend(raw::attribute(attributes, IFLA_AF_SPEC).unwrap_or_default());
        let ended =
            |old: &Port| (old.forwarding && !port.forwarding) || old.settings != port.settings;
        let ended = self.ports.get(&ifindex).is_some_and(ended);
        self.ports.insert(ifindex, port);
        ended
    }

    /// Whether a known neighbour has another MAC, or a known MAC another port.
    /// `None` if the message makes no sense.
    fn neighbour(&mut self, gone: bool, body: &[u8], scope: &Scope, now: Instant) -> Option<bool> {
        let (ifindex, state) = (raw::number(body, 4)?, raw::short(body, 8)?);
        let attributes = body.get(NDMSG_LEN..)?;
        let mac = raw::attribute(attributes, NDA_LLADDR).and_then(|mac| mac.try_into().ok());
        let mac = mac.map(MacAddr);
        let window = scope.window();
        match i32::from(*body.first()?) {
            libc::AF_INET => {
                let ip: [u8; 4] = raw::attribute(attributes, NDA_DST)?.try_into().ok()?;
                let key = (ifindex, Ipv4Addr::from(ip));
                if gone {
                    self.neighbours.gone(&key, now);
                    return Some(false);
                }
                let mac = mac.filter(|_| state & NUD_USED != 0)?;
                Some(self.neighbours.moved(key, mac, now, window) && scope.passes(ifindex))
            }
            libc::AF_BRIDGE => {
                let bridge = raw::number(raw::attribute(attributes, NDA_MASTER)?, 0)?;
                let vlan = raw::attribute(attributes, NDA_VLAN)
                    .and_then(|vlan| raw::short(vlan, 0))
                    .unwrap_or(0);
                let key = (bridge, vlan, mac?);
                if gone {
                    self.stations.gone(&key, now);
                    return Some(false);
                }
                Some(self.stations.moved(key, ifindex, now, window) && scope.passes(bridge))
            }
            _ => None,
        }
    }
}

/// Whether an entry of a VXLAN device came or went because we asked for it.
fn is_own_entry(scope: &Scope, gone: bool, ifindex: u32, body: &[u8]) -> bool {
    let attributes = body.get(NDMSG_LEN..).unwrap_or_default();
    let mac = raw::attribute(attributes, NDA_LLADDR).and_then(|mac| mac.try_into().ok());
    let to = raw::attribute(attributes, NDA_DST).and_then(|to| <[u8; 4]>::try_from(to).ok());
    let (mac, Some(to)) = (mac.map(MacAddr), to.map(Ipv4Addr::from)) else { return false };
    match body.first().map(|family| i32::from(*family)) {
        Some(libc::AF_BRIDGE) if mac.is_some() => scope.own().told(gone, ifindex, mac, to),
        Some(libc::AF_INET) if gone => scope.own().told(gone, ifindex, None, to),
        _ => false,
    }
}

/// What a link has to do with packets of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// They pass it.
    OnTheWay,
    /// It may be where a route leads that takes them away.
    Elsewhere,
}

/// Whether packets may go another way now. A link that was down carried nothing;
/// one that gets its carrier back takes nothing away.
fn ends_decisions(old: &Link, new: Option<&Link>, part: Part) -> bool {
    // A veth without a part is that of a pod that is being made.
    if !old.up || (part == Part::Elsewhere && old.kind == "veth") {
        return false;
    }
    // Routes go with it, and nobody says so.
    let Some(new) = new.filter(|new| new.up && (new.carrier || !old.carrier)) else { return true };
    let settings = |link: &Link| (link.mac, link.mtu, link.master, link.bridge);
    part == Part::OnTheWay
        && (settings(old) != settings(new) || (&old.name, &old.kind) != (&new.name, &new.kind))
}

/// Whether packets of the overlay pass a bridge's port, or its bridge.
fn passes(scope: &Scope, port: u32, body: &[u8]) -> bool {
    let attributes = body.get(IFINFO_LEN..).unwrap_or_default();
    let bridge = raw::attribute(attributes, IFLA_MASTER).and_then(|value| raw::number(value, 0));
    scope.passes(port) || bridge.is_some_and(|bridge| scope.passes(bridge))
}

fn address(body: &[u8]) -> Option<Ipv4Network> {
    let attributes = body.get(IFADDR_LEN..)?;
    let own = raw::attribute(attributes, IFA_LOCAL);
    let value = own.or_else(|| raw::attribute(attributes, IFA_ADDRESS))?;
    let octets: [u8; 4] = value.try_into().ok()?;
    Some(Ipv4Network::from(Ipv4Addr::from(octets)))
}

fn is_local(route: &[u8]) -> bool {
    route.get(4) == Some(&RT_TABLE_LOCAL)
}

fn is_main(route: &[u8]) -> bool {
    route.get(4) == Some(&RT_TABLE_MAIN)
}

fn replaces(message: &[u8]) -> bool {
    raw::short(message, 6).unwrap_or(0) & NLM_F_REPLACE != 0
}

/// Whether it goes before another one: then the kernel tells neither that it is the only one
/// nor that it comes last (`fib_table_insert`).
fn prepends(message: &[u8]) -> bool {
    let flags = raw::short(message, 6).unwrap_or(0);
    flags & NLM_F_CREATE != 0 && flags & (NLM_F_EXCL | NLM_F_APPEND | NLM_F_REPLACE) == 0
}

/// Whether it takes another one's place, or goes before it.
fn supersedes(message: &[u8]) -> bool {
    prepends(message) || replaces(message)
}

/// A route of the main table that goes before others within the overlay network, perhaps
/// before a peer's.
fn before_others(message: &[u8], body: &[u8], scope: &Scope) -> Option<KernelEvent> {
    let (destination, _) = way(body)?;
    let found = prepends(message) && is_main(body) && scope.holds(destination);
    found.then_some(KernelEvent::RouteBefore)
}

/// Destination and output interface of a route. Byte 1 of `struct rtmsg` is the length of
/// the destination's prefix, byte 4 the table (252 when it does not fit).
fn way(body: &[u8]) -> Option<(Ipv4Network, Option<u32>)> {
    let attributes = body.get(RTMSG_LEN..)?;
    let destination: Option<[u8; 4]> =
        raw::attribute(attributes, RTA_DST).and_then(|octets| octets.try_into().ok());
    let address = destination.map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from);
    let destination = Ipv4Network::new(address, *body.get(1)?).ok()?;
    let output = raw::attribute(attributes, RTA_OIF).and_then(|value| raw::number(value, 0));
    Some((destination, output))
}

/// One that replaces another does not tell where that led: within the overlay network it
/// may have been a peer's.
fn route(body: &[u8], replaces: bool, scope: &Scope) -> Option<[Option<KernelEvent>; 2]> {
    let (destination, output) = way(body)?;
    let output = output.filter(|_| !(replaces && scope.holds(destination)));
    let event = KernelEvent::Route { ifindex: output.unwrap_or(0) };
    let decision = decided_by(destination, scope);
    Some([
        Some(event),
        match limits::limited(body) {
            Some(_) => decision.map(|_| KernelEvent::LimitedRoute),
            None => decision,
        },
    ])
}

/// What a route to there may decide otherwise.
fn decided_by(destination: Ipv4Network, scope: &Scope) -> Option<KernelEvent> {
    let decision = match scope.overlaps(destination) {
        true => KernelEvent::OverlayRoute,
        false => KernelEvent::Decision,
    };
    scope.reaches(destination).then_some(decision)
}

/// Where something was last seen.
struct Places<K, V>(HashMap<K, Place<V>>);

struct Place<V> {
    value: V,
    /// When the kernel forgot it. What it did by it may be repeated for a window.
    gone: Option<Instant>,
}

impl<K, V> Default for Places<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V: PartialEq> Places<K, V> {
    /// Notes a place; whether it was another one, by which decisions may be
    /// repeated still.
    fn moved(&mut self, key: K, value: V, now: Instant, window: Duration) -> bool {
        let full = self.0.len() >= PLACES && !self.0.contains_key(&key);
        if full {
            // What is forgotten here cannot be seen to move.
            self.0.clear();
        }
        let stands = |place: &Place<V>| {
            place.gone.is_none_or(|gone| now.saturating_duration_since(gone) <= window)
        };
        let before = self.0.get(&key).filter(|place| stands(place));
        let moved = before.is_some_and(|before| before.value != value);
        self.0.insert(key, Place { value, gone: None });
        full || moved
    }

    fn gone(&mut self, key: &K, now: Instant) {
        if let Some(place) = self.0.get_mut(key) {
            place.gone.get_or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests;
