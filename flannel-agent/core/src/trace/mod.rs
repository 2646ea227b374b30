//! What would happen to a packet on this node, hop by hop, from facts that the agent
//! gathered. Pure.

pub mod facts;
mod hops;
mod kept;
mod report;

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::facts::TraceFacts;
pub use self::hops::{Hop, HopState, Step};
pub use self::kept::kept;
pub use self::report::{ByHook, Counts, TraceReport};

/// One direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Direction {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// The hops, in order.
    pub hops: Vec<Hop>,
    /// What carries it.
    pub outcome: Carrier,
    /// Why not the fast path, or why it is lost.
    pub why: Vec<String>,
}

/// What carries a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// The fast path, once the kernel has carried the first packets.
    Fast,
    /// The kernel path.
    Kernel,
    /// Nothing: it is lost.
    Lost,
    /// It does not pass the overlay here.
    Elsewhere,
}

/// What was traced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Trace {
    /// A daemon answered. Without one there is less to tell.
    pub daemon: bool,
    /// There and back, as far as they pass this node.
    pub directions: Vec<Direction>,
}

/// Follows the packet, and its answer, through this node.
pub fn trace(facts: &TraceFacts) -> Trace {
    let back = facts.reversed();
    let directions = [facts, &back].into_iter().filter_map(direction).collect();
    Trace { daemon: facts.datapath.is_some(), directions }
}

fn direction(facts: &TraceFacts) -> Option<Direction> {
    let question = facts.question;
    let hops = match (&facts.source, &facts.destination) {
        (Some(from), Some(to)) => hops::local(facts, from, to),
        (Some(from), None) => hops::outward(facts, from),
        (None, Some(to)) => hops::inward(facts, to),
        (None, None) => return None,
    };
    let (outcome, why) = judge(facts, &hops);
    let (source, destination) = (question.source, question.destination);
    Some(Direction { source, destination, hops, outcome, why })
}

fn judge(facts: &TraceFacts, hops: &[Hop]) -> (Carrier, Vec<String>) {
    let of = |state| {
        let fitting = hops.iter().filter(move |hop| hop.state == state);
        fitting.map(|hop| hop.found.clone()).collect::<Vec<_>>()
    };
    let lost = of(HopState::Lost);
    if !lost.is_empty() {
        return (Carrier::Lost, lost);
    }
    if facts.peer.is_none() {
        let both = facts.source.is_some() && facts.destination.is_some();
        let why = match both {
            true => "both pods are on this node",
            false => "no peer has that address",
        };
        return (Carrier::Elsewhere, vec![why.to_owned()]);
    }
    if let Some(past) = hops::goes_past(facts) {
        return (Carrier::Elsewhere, vec![past]);
    }
    let slow = of(HopState::Slow);
    match slow.is_empty() {
        true => (Carrier::Fast, Vec::new()),
        false => (Carrier::Kernel, slow),
    }
}

#[cfg(test)]
mod tests;
