//! The hops of each direction.

use std::collections::BTreeSet;

use flannel_ebpf::abi::program;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::facts::{FarNode, Pod, Protocol, TraceFacts, TracedDevice, TracedRoute};
use crate::check::facts::Known;
use crate::firewall::packet_rules::fate::{Culprit, Fate};
use crate::status::{FlowStatus, NotFast};

/// Bytes that VXLAN puts around a packet.
const TUNNEL: u32 = 50;

/// What a hop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The host's side of a pod's veth.
    Veth,
    /// A program of ours.
    Hook,
    /// Whether the kernel forwards it.
    Forwarding,
    /// The node's rules.
    Rules,
    /// What keeps it off the fast path.
    FastPath,
    /// A route.
    Route,
    /// A neighbour entry.
    Neighbour,
    /// An FDB entry.
    Fdb,
    /// An entry of the programs' maps.
    Map,
    /// An entry of the flow table.
    Flow,
    /// Room for the packet.
    Mtu,
    /// The underlay.
    Underlay,
}

/// What a hop does with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HopState {
    /// It passes.
    Passes,
    /// It passes, but on the kernel path.
    Slow,
    /// It is lost.
    Lost,
    /// It cannot be told.
    Unknown,
}

/// A hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hop {
    /// What it is.
    pub step: Step,
    /// What it does.
    pub state: HopState,
    /// What was found.
    pub found: String,
}

fn hop(step: Step, state: HopState, found: impl Into<String>) -> Hop {
    Hop { step, state, found: found.into() }
}

fn passes(step: Step, found: impl Into<String>) -> Hop {
    hop(step, HopState::Passes, found)
}

/// From a pod of this node to a peer's, or out of the overlay.
pub(super) fn outward(facts: &TraceFacts, from: &Pod) -> Vec<Hop> {
    let mut hops = vec![veth(facts, from)];
    hops.push(hook(facts, from.veth.as_ref(), program::FROM_POD));
    hops.extend(forwarding(facts, from.device.as_deref()));
    hops.push(rules("the node's rules", &facts.fates[0]));
    let Some(peer) = &facts.peer else { return hops };
    if let Some(found) = goes_past(facts) {
        hops.push(hop(Step::Route, HopState::Unknown, found));
        return hops;
    }
    hops.push(fast_path(facts));
    hops.extend(to_peer(facts, peer));
    hops.push(flow(&facts.flows[0]));
    hops.push(mtu(facts, from));
    hops.extend(underlay(facts, peer));
    hops
}

/// From a peer's pod to one of this node.
pub(super) fn inward(facts: &TraceFacts, to: &Pod) -> Vec<Hop> {
    let mut hops = vec![hook(facts, facts.underlay.as_ref(), program::FROM_UNDERLAY)];
    if let Some(peer) = &facts.peer {
        if tunnelled(facts, peer) {
            hops.push(rules("the rules for the tunnel", &facts.tunnel[1]));
        }
        hops.push(map(facts, peer));
        hops.push(fast_path(facts));
        let tunnel = facts.overlay.as_ref().filter(|_| tunnelled(facts, peer));
        let input = tunnel.or(facts.underlay.as_ref()).map(|device| device.name.as_str());
        hops.extend(forwarding(facts, input));
    }
    hops.extend(to_pod(facts, to));
    hops.push(hook(facts, to.veth.as_ref(), program::TO_POD));
    hops.push(rules("the node's rules", &facts.fates[0]));
    hops.push(flow(&facts.flows[0]));
    hops
}

/// Between two pods of this node.
pub(super) fn local(facts: &TraceFacts, from: &Pod, to: &Pod) -> Vec<Hop> {
    let mut hops = vec![veth(facts, from)];
    if from.device != to.device {
        hops.extend(forwarding(facts, from.device.as_deref()));
        hops.push(rules("the node's rules", &facts.fates[0]));
    }
    hops.extend(to_pod(facts, to));
    hops
}

fn veth(facts: &TraceFacts, pod: &Pod) -> Hop {
    let underlay = facts.underlay.as_ref().map(|device| &device.name);
    match &pod.veth {
        Some(veth) if Some(&veth.name) == underlay => hop(
            Step::Veth,
            HopState::Lost,
            format!("no pod has {}: the route to it is by {}", pod.address, veth.name),
        ),
        Some(veth) if veth.up => passes(Step::Veth, format!("{} by {}", pod.address, veth.name)),
        Some(veth) => hop(Step::Veth, HopState::Lost, format!("{} is down", veth.name)),
        None => hop(
            Step::Veth,
            HopState::Unknown,
            format!("the veth of {} is not known: it has not been heard of lately", pod.address),
        ),
    }
}

fn to_pod(facts: &TraceFacts, pod: &Pod) -> Vec<Hop> {
    let Some(device) = &pod.device else {
        return vec![hop(Step::Route, HopState::Lost, format!("no route to {}", pod.address))];
    };
    let route = passes(Step::Route, format!("{} by {device}", pod.address));
    let neighbour = match &pod.mac {
        Some(mac) => passes(Step::Neighbour, format!("{} is {mac}", pod.address)),
        None => hop(
            Step::Neighbour,
            HopState::Unknown,
            format!("{} is not resolved: ARP asks for it", pod.address),
        ),
    };
    vec![route, neighbour, veth(facts, pod)]
}

fn hook(facts: &TraceFacts, device: Option<&TracedDevice>, program: &str) -> Hop {
    let Some(device) = device else {
        return hop(Step::Hook, HopState::Unknown, format!("{program}: its device is not known"));
    };
    let name = &device.name;
    if device.programs.iter().any(|running| running == program) {
        return passes(Step::Hook, format!("{program} on {name}"));
    }
    let why = match facts.datapath.as_deref() {
        Some(mode) if mode != "ebpf" => format!(" (the data path is {mode})"),
        _ => String::new(),
    };
    hop(Step::Hook, HopState::Slow, format!("{program} is not on {name}{why}"))
}

/// Says whether the kernel forwards what comes in by this device, if it does not.
fn forwarding(facts: &TraceFacts, input: Option<&str>) -> Option<Hop> {
    match &facts.unforwarded {
        Err(reason) => Some(hop(Step::Forwarding, HopState::Unknown, reason.to_string())),
        Ok(off) => {
            let off = off.iter().find(|off| off.holds_up(input))?;
            Some(hop(Step::Forwarding, HopState::Lost, off.to_string()))
        }
    }
}

fn rules(whose: &str, fate: &Known<Fate>) -> Hop {
    match fate {
        Err(reason) => hop(Step::Rules, HopState::Unknown, format!("{whose}: {reason}")),
        Ok(Fate::Passes) => passes(Step::Rules, format!("{whose} let it pass")),
        Ok(Fate::Perhaps(culprit)) => {
            hop(Step::Rules, HopState::Unknown, format!("{whose} may drop it: {}", named(culprit)))
        }
        Ok(Fate::Dropped(culprit)) => {
            hop(Step::Rules, HopState::Lost, format!("{whose} drop it: {}", named(culprit)))
        }
    }
}

fn named(culprit: &Culprit) -> String {
    let Culprit { family, table, chain, text, .. } = culprit;
    format!("{} {table} {chain} ({text})", family.name())
}

fn fast_path(facts: &TraceFacts) -> Hop {
    if facts.question.protocol == Protocol::Icmp {
        return hop(Step::FastPath, HopState::Slow, "ICMP is the kernel's");
    }
    match &facts.kept[0] {
        Err(reason) => hop(Step::FastPath, HopState::Unknown, reason.to_string()),
        Ok(kept) if kept.is_empty() => passes(Step::FastPath, "nothing keeps it off"),
        Ok(kept) => hop(Step::FastPath, HopState::Slow, kept.join("; ")),
    }
}

fn tunnelled(facts: &TraceFacts, peer: &FarNode) -> bool {
    let overlay = facts.overlay.as_ref().map(|overlay| overlay.name.as_str());
    peer.route.as_ref().is_some_and(|route| Some(route.device.as_str()) == overlay)
}

/// Where what a pod sends to a peer's goes, if neither the tunnel nor the peer's own
/// address is on the way: a route of somebody else decides.
pub(super) fn goes_past(facts: &TraceFacts) -> Option<String> {
    let peer = facts.peer.as_ref().filter(|_| facts.source.is_some())?;
    let route = peer.route.as_ref()?;
    let same_link = peer.next_hop.as_ref().is_some_and(|next| next.device == route.device);
    if tunnelled(facts, peer) || same_link || route.gateway == Some(peer.public_ip) {
        return None;
    }
    let TracedRoute { device, .. } = route;
    let (destination, public_ip) = (facts.question.destination, peer.public_ip);
    Some(format!("{destination} by {device}: neither the tunnel nor the way to {public_ip}"))
}

/// Route, and what the overlay's device needs to know of the peer.
fn to_peer(facts: &TraceFacts, peer: &FarNode) -> Vec<Hop> {
    let destination = facts.question.destination;
    let Some(route) = &peer.route else {
        return vec![hop(Step::Route, HopState::Lost, format!("no route to {destination}"))];
    };
    let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    let mut hops = vec![passes(Step::Route, format!("{destination} by {}{via}", route.device))];
    if !tunnelled(facts, peer) {
        hops.push(map(facts, peer));
        return hops;
    }
    hops.push(match (peer.neighbour, peer.vtep_mac) {
        (None, _) => hop(Step::Neighbour, HopState::Lost, "no MAC for the gateway"),
        (Some(mac), Some(theirs)) if mac != theirs => hop(
            Step::Neighbour,
            HopState::Lost,
            format!("the gateway is {mac}, the peer's VTEP {theirs}"),
        ),
        (Some(mac), _) => passes(Step::Neighbour, format!("the gateway is {mac}")),
    });
    hops.push(match peer.fdb {
        None => hop(Step::Fdb, HopState::Lost, "no entry for that MAC"),
        Some(to) if to != peer.public_ip => hop(
            Step::Fdb,
            HopState::Lost,
            format!("that MAC is at {to}, the peer at {}", peer.public_ip),
        ),
        Some(to) => passes(Step::Fdb, format!("that MAC is at {to}")),
    });
    hops.push(map(facts, peer));
    hops.push(rules("the rules for the tunnel", &facts.tunnel[0]));
    hops
}

fn map(facts: &TraceFacts, peer: &FarNode) -> Hop {
    match &peer.map {
        Err(reason) => {
            let state = match facts.datapath.as_deref() {
                Some("ebpf") => HopState::Unknown,
                _ => HopState::Slow,
            };
            hop(Step::Map, state, format!("the programs' maps: {reason}"))
        }
        Ok(None) => hop(Step::Map, HopState::Slow, "the programs do not know the peer"),
        Ok(Some((public_ip, _))) if *public_ip != peer.public_ip => hop(
            Step::Map,
            HopState::Lost,
            format!("the programs have {public_ip}, the lease {}", peer.public_ip),
        ),
        Ok(Some((public_ip, mac))) => {
            passes(Step::Map, format!("the programs know the peer: {public_ip}, {mac}"))
        }
    }
}

fn flow(flows: &Known<Vec<FlowStatus>>) -> Hop {
    let flows = match flows {
        Err(reason) => return hop(Step::Flow, HopState::Unknown, reason.to_string()),
        Ok(flows) if flows.is_empty() => {
            return passes(Step::Flow, "none yet: the kernel carries the first packet");
        }
        Ok(flows) => flows,
    };
    let slow: Vec<NotFast> = flows.iter().filter_map(|flow| flow.why).collect();
    let mut found = format!("{} in the table, {} fast now", flows.len(), flows.len() - slow.len());
    for why in slow.iter().collect::<BTreeSet<_>>() {
        let count = slow.iter().filter(|other| *other == why).count();
        found.push_str(&format!("; {count}: {why}"));
    }
    let state = match flows.len() == slow.len() && slow.iter().all(|why| why.lasts()) {
        true => HopState::Slow,
        false => HopState::Passes,
    };
    hop(Step::Flow, state, found)
}

fn mtu(facts: &TraceFacts, from: &Pod) -> Hop {
    let inner = from.veth.as_ref().map(|veth| veth.mtu);
    let tunnel = facts.peer.as_ref().is_some_and(|peer| tunnelled(facts, peer));
    let room = match (&facts.overlay, &facts.underlay) {
        (Some(overlay), Some(underlay)) if tunnel => {
            overlay.mtu.min(underlay.mtu.saturating_sub(TUNNEL))
        }
        (_, Some(underlay)) => underlay.mtu,
        _ => return hop(Step::Mtu, HopState::Unknown, "the devices are not known"),
    };
    match inner {
        Some(mtu) if mtu > room => hop(
            Step::Mtu,
            HopState::Passes,
            format!("{room} bytes; the pod's device has {mtu}: what is larger gets an ICMP error"),
        ),
        _ => passes(Step::Mtu, format!("{room} bytes")),
    }
}

fn underlay(facts: &TraceFacts, peer: &FarNode) -> Vec<Hop> {
    let Some(next) = &peer.next_hop else {
        let found = format!("no route to {}", peer.public_ip);
        return vec![hop(Step::Underlay, HopState::Lost, found)];
    };
    let to = next.gateway.unwrap_or(peer.public_ip);
    let found = format!("{} by {}, next hop {to}", peer.public_ip, next.device);
    if facts.underlay.as_ref().is_some_and(|underlay| !underlay.up) {
        let found = format!("{} is down", next.device);
        return vec![hop(Step::Underlay, HopState::Lost, found)];
    }
    vec![match peer.next_mac {
        Some(mac) => passes(Step::Underlay, format!("{found} ({mac})")),
        None => hop(
            Step::Underlay,
            HopState::Unknown,
            format!("{found}, not resolved: ARP asks for it"),
        ),
    }]
}
