//! Others' routing rules and routes that lead what pods send to peers elsewhere. They are
//! told, and left alone.
//!
//! What counts is a packet without a firewall mark. Rules of routing that choose by TOS,
//! protocol or ports are told with these. What rules do to marked packets is the choice of
//! who marks them: a proxy, or a VPN for its own packets.

mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::Ipv4Network;

pub use self::tables::{
    Action, Fate, Headers, LOCAL, MAIN, RoutingRule, TableRoute, Tables, asked,
};
use self::tables::{Fit, Step, Table, What};
use crate::health::{Found, Part};
use crate::peer::Peer;
use crate::subnet::within;
use crate::text::counted;

/// Most detours that are told one by one.
const TOLD: usize = 8;

/// What of the node decides which ways are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// The overlay network.
    pub network: Ipv4Network,
    /// Our subnet.
    pub subnet: Ipv4Network,
    /// Interface index of the overlay's device, if the backend has one.
    pub overlay: Option<u32>,
    /// Names of the devices with addresses of our subnet: pods' packets come by them.
    pub inputs: BTreeSet<String>,
}

/// The peers that are programmed.
#[derive(Clone, Copy, Debug)]
pub struct Peers<'a> {
    /// All, by subnet.
    pub all: &'a BTreeMap<Ipv4Network, Peer>,
    /// Those that are reached without a tunnel.
    pub direct: &'a BTreeSet<Ipv4Network>,
}

/// The ways of the node's tables to peers' subnets, in the order in which the kernel asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    steps: Vec<Step>,
    /// The last of them finds the routes to all peers.
    arrive: bool,
}

/// What leads elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// The rule of this step.
    Rule(usize),
    /// The route to there, of the table that this step asks.
    Route(usize, Ipv4Network),
    /// No rule finds the peer's route.
    NoRule,
}

/// Which peers a cause is about.
struct Effect {
    first: Ipv4Network,
    peers: usize,
    /// Of the first only a part of its subnet.
    part: bool,
}

impl Ways {
    /// The ways by these tables.
    pub fn of(tables: &Tables, here: &Here) -> Self {
        let arrive = tables::are_found(&tables.rules, here);
        Self { steps: tables::steps(tables, here), arrive }
    }

    /// Whether nothing of them can lead elsewhere, whoever the peers are.
    pub fn are_straight(&self) -> bool {
        let straight = |step: &Step| match &step.what {
            What::Lost(_) => false,
            What::Table(table) => table.routes.is_empty(),
        };
        self.arrive && self.steps.iter().all(straight)
    }

    /// What leads peers' packets elsewhere. Devices are named by `name`.
    pub fn detours(&self, peers: Peers<'_>, here: &Here, name: impl Fn(u32) -> String) -> Found {
        let mut effects: BTreeMap<Cause, Effect> = BTreeMap::new();
        for peer in peers.all.values() {
            for (cause, part) in self.of_peer(peer, peers, here) {
                let one = Effect { first: peer.subnet, peers: 0, part };
                effects.entry(cause).or_insert(one).peers += 1;
            }
        }
        let more = effects.len().saturating_sub(TOLD);
        let told = effects.into_iter().take(TOLD);
        let told = told.map(|(cause, effect)| self.told(cause, &effect, &name));
        let rest = (more > 0).then(|| {
            let reason = format!("{} not listed", counted(more as u64, "more of them"));
            (Part::Whole, reason)
        });
        told.chain(rest).collect()
    }

    /// What leads this peer's packets elsewhere, and whether only a part of them.
    fn of_peer(&self, peer: &Peer, peers: Peers<'_>, here: &Here) -> Vec<(Cause, bool)> {
        let mut found = Vec::new();
        // Headers of packets that an earlier step has decided about.
        let mut decided: Vec<Headers> = Vec::new();
        for (number, step) in self.steps.iter().enumerate() {
            if decided.iter().any(|earlier| earlier.cover(&step.headers)) {
                continue;
            }
            let takes = step.takes(peer.subnet);
            let decides = match &step.what {
                _ if takes == Fit::Nothing => false,
                What::Lost(_) => {
                    found.push((Cause::Rule(number), takes == Fit::Some));
                    true
                }
                What::Table(table) => {
                    let wrong = |route: &&TableRoute| {
                        route.fate != Fate::Next
                            && step.takes(route.destination) > Fit::Nothing
                            && !is_right(route, peer, peers, here)
                    };
                    let cause = |route: &TableRoute| Cause::Route(number, route.destination);
                    let inner = table.inside(peer.subnet).filter(wrong);
                    let own = inner.filter(|route| owner(peers, route.destination) == peer.subnet);
                    found.extend(own.map(|route| (cause(route), true)));
                    let cover = table.cover(peer.subnet);
                    let wrong = cover.filter(wrong);
                    found.extend(wrong.map(|cover| (cause(cover), takes == Fit::Some)));
                    // The peer's own route is in main, or the agent is about to put it.
                    cover.is_some_and(|cover| cover.fate != Fate::Next)
                        || (table.is_main && !table.passes_over(peer.subnet))
                }
            };
            match decides && takes == Fit::All {
                true if step.headers.are_any() => return found,
                true => decided.push(step.headers),
                false => {}
            }
        }
        found.push((Cause::NoRule, false));
        found
    }

    fn told(&self, cause: Cause, effect: &Effect, name: &impl Fn(u32) -> String) -> (Part, String) {
        let first = effect.first;
        let whom = match effect.peers {
            1 => format!("peer {first}"),
            count => format!("{count} peers, {first} among them,"),
        };
        let of = if effect.part { "a part of " } else { "" };
        let with = match cause {
            Cause::Rule(number) | Cause::Route(number, _) => self.steps[number].headers,
            Cause::NoRule => Headers::default(),
        };
        let with = if with.are_any() { String::new() } else { format!(" with {with}") };
        let (what, why) = match cause {
            Cause::Rule(number) => {
                (self.steps[number].rule.clone(), "lost by this rule".to_owned())
            }
            Cause::Route(number, to) => self.told_of_route(&self.steps[number], to, name),
            Cause::NoRule => {
                ("ip rule".to_owned(), "lost: no rule asks the main table for it".to_owned())
            }
        };
        let reason = format!(
            "what pods send{with} to {of}{whom} is {why}; that is not the agent's to change"
        );
        (Part::Name(what), reason)
    }

    fn told_of_route(
        &self,
        step: &Step,
        to: Ipv4Network,
        name: &impl Fn(u32) -> String,
    ) -> (String, String) {
        let What::Table(table) = &step.what else { return Default::default() };
        let Some(route) = table.routes.get(&to) else { return Default::default() };
        let rule = match step.usual {
            true => String::new(),
            false => format!(", whose table the rule `{}` asks", step.rule),
        };
        let text = format!("{} table {}", route.text(name), table.name());
        (text, format!("{} by this route{rule}", route.fate.does()))
    }
}

/// Whether a route leads to the peer, whoever made it.
fn is_right(route: &TableRoute, peer: &Peer, peers: Peers<'_>, here: &Here) -> bool {
    let Fate::Leaves { outputs, gateway } = &route.fate else { return false };
    if peers.direct.contains(&peer.subnet) {
        return *gateway == Some(peer.public_ip);
    }
    let Some(overlay) = here.overlay else { return false };
    !outputs.is_empty() && outputs.iter().all(|output| *output == overlay)
}

/// The subnet of the peer that addresses there belong to: the smallest that holds them.
fn owner(peers: Peers<'_>, destination: Ipv4Network) -> Ipv4Network {
    let mut wider = wider(destination);
    wider.find(|wider| peers.all.contains_key(wider)).unwrap_or(destination)
}

/// A network and all that hold it, the smallest first.
fn wider(network: Ipv4Network) -> impl Iterator<Item = Ipv4Network> {
    let cut = move |prefix| Ipv4Network::new(network.network(), prefix).ok();
    let wider = (0..=network.prefix()).rev().filter_map(cut);
    wider.filter_map(|wider| Ipv4Network::new(wider.network(), wider.prefix()).ok())
}

impl Table {
    /// The routes to parts of this subnet that count.
    fn inside(&self, subnet: Ipv4Network) -> impl Iterator<Item = &TableRoute> {
        let last = Ipv4Network::from(subnet.broadcast());
        let some = self.routes.range(subnet..=last).map(|(_, route)| route);
        some.filter(move |route| {
            let destination = route.destination;
            destination != subnet && within(subnet, destination) && !self.passes_over(destination)
        })
    }

    /// The route that decides about this subnet as a whole. In main that is the peer's own.
    fn cover(&self, subnet: Ipv4Network) -> Option<&TableRoute> {
        let found = wider(subnet).find_map(|wider| self.routes.get(&wider))?;
        (!self.is_main && !self.passes_over(found.destination)).then_some(found)
    }
}
