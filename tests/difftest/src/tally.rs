//! Which packets took the fast path, kind by kind. Pure.
//!
//! A packet that crosses a node's bridge was carried by the kernel there, if only
//! past its tunnel device. One that leaves the node or comes to its pod otherwise
//! took the fast path.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::demands::{changed_share, unchanged_share};
use super::generate::{Part, Step};
use super::kind::{ALL, By, Kind};
use super::lane::Spot;
use super::mode::Mode;
use super::place::{Sender, Tap};
use super::world::{LEFT, Side};

/// Keys of the packets that were seen on the eBPF path.
#[derive(Debug, Default)]
pub struct Sightings {
    /// On each node's bridge: left, right.
    pub bridge: [BTreeSet<u16>; 2],
    /// On the underlay.
    pub cable: BTreeSet<u16>,
    /// Come to each pod.
    pub pod: [BTreeSet<u16>; 2],
}

impl Sightings {
    /// Takes the key of a frame that was seen.
    pub fn add(&mut self, spot: Spot, key: Option<u16>) {
        let keys = match spot {
            Spot::At(Tap::CableFrom(_)) => &mut self.cable,
            Spot::At(Tap::LeftPod) => &mut self.pod[0],
            Spot::At(Tap::RightPod) => &mut self.pod[1],
            Spot::Bridge(side) => &mut self.bridge[index(side)],
        };
        keys.extend(key);
    }
}

/// Packets of one kind that crossed one node in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// All that were sent, odd ones included.
    pub all: usize,
    /// On the fast path.
    pub fast: usize,
}

impl Hop {
    fn add(&mut self, fast: bool) {
        self.all += 1;
        self.fast += usize::from(fast);
    }

    /// Share (0..=1) on the fast path.
    pub fn share(self) -> f64 {
        self.fast as f64 / self.all.max(1) as f64
    }
}

/// Where a packet of a connection crosses a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    kind: Kind,
    /// The node of the pod that opened the connection.
    client: bool,
    outwards: bool,
}

/// Counts of all kinds.
#[derive(Clone, Debug, Default)]
pub struct Tally(BTreeMap<Place, Hop>);

fn index(side: Side) -> usize {
    usize::from(side != LEFT)
}

impl Tally {
    /// Counts a packet, if it is a connection's.
    pub fn add(&mut self, step: &Step, seen: &Sightings) {
        let Some(Part { kind, request }) = step.part else { return };
        let (Sender::Pod(side) | Sender::Wire(side)) = step.sender;
        let mut hop = |client, outwards, fast| {
            self.0.entry(Place { kind, client, outwards }).or_default().add(fast);
        };
        let bridged = |side| seen.bridge[index(side)].contains(&step.key);
        if matches!(step.sender, Sender::Pod(_)) {
            hop(request, true, seen.cable.contains(&step.key) && !bridged(side));
        }
        let arrived = seen.pod[index(side.other())].contains(&step.key);
        hop(!request, false, arrived && !bridged(side.other()));
    }

    fn of(&self, kind: Kind, client: bool, outwards: bool) -> Hop {
        self.0.get(&Place { kind, client, outwards }).copied().unwrap_or_default()
    }

    /// What is below the share that it has to have.
    pub fn failures(&self, mode: Mode) -> Vec<String> {
        let mut failures = Vec::new();
        let present = ALL.into_iter().filter(|kind| self.0.keys().any(|place| place.kind == *kind));
        for kind in present {
            for (client, outwards) in [(true, true), (true, false), (false, true), (false, false)] {
                let changes = match kind.by() {
                    By::Nobody | By::Sender => true,
                    By::Client => client,
                    By::Server => !client,
                };
                let demand =
                    if changes { changed_share(mode, kind) } else { unchanged_share(mode, kind) };
                let hop = self.of(kind, client, outwards);
                if demand.is_some_and(|least| hop.share() < least) {
                    failures.push(format!("{kind:?}: {}", name(client, outwards, hop)));
                }
            }
        }
        failures
    }

    /// A line for each kind.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for kind in ALL {
            let hops = [(true, true), (false, false), (false, true), (true, false)];
            let hops =
                hops.map(|(client, outwards)| (client, outwards, self.of(kind, client, outwards)));
            if hops.iter().all(|(.., hop)| hop.all == 0) {
                continue;
            }
            let hops = hops.map(|(client, outwards, hop)| name(client, outwards, hop));
            let _ = writeln!(text, "{:>20}: {}", format!("{kind:?}"), hops.join(", "));
        }
        text
    }
}

fn name(client: bool, outwards: bool, hop: Hop) -> String {
    let node = if client { "client" } else { "server" };
    let direction = if outwards { "out" } else { "in" };
    format!("{:5.1} % of {} {direction} at the {node}", 100.0 * hop.share(), hop.all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Generator;
    use crate::world::RIGHT;

    /// A plain packet of a pod, in a connection of this kind.
    fn step(kind: Kind, request: bool) -> Step {
        let wanted = |step: &Step| {
            step.part == Some(Part { kind, request }) && matches!(step.sender, Sender::Pod(_))
        };
        Generator::new(Mode::Services, 5).find(wanted).expect("the sequence is endless")
    }

    /// Sightings of a packet that arrived, and crossed these bridges.
    fn sightings(step: &Step, bridges: &[Side]) -> Sightings {
        let (Sender::Pod(side) | Sender::Wire(side)) = step.sender;
        let mut seen = Sightings::default();
        seen.add(Spot::At(Tap::CableFrom(LEFT)), Some(step.key));
        let pod = if side.other() == RIGHT { Tap::RightPod } else { Tap::LeftPod };
        seen.add(Spot::At(pod), Some(step.key));
        for bridge in bridges {
            seen.add(Spot::Bridge(*bridge), Some(step.key));
        }
        seen
    }

    fn side(step: &Step) -> Side {
        let (Sender::Pod(side) | Sender::Wire(side)) = step.sender;
        side
    }

    #[test]
    fn what_crosses_no_bridge_took_the_fast_path() {
        for request in [true, false] {
            let step = step(Kind::Service, request);
            let (here, there) = (side(&step), side(&step).other());
            for (bridges, out, inwards) in
                [(vec![], 1, 1), (vec![here], 0, 1), (vec![there], 1, 0), (vec![here, there], 0, 0)]
            {
                let mut tally = Tally::default();
                tally.add(&step, &sightings(&step, &bridges));
                let fast = |hop: Hop| (hop.all, hop.fast);
                assert_eq!(fast(tally.of(Kind::Service, request, true)), (1, out));
                assert_eq!(fast(tally.of(Kind::Service, !request, false)), (1, inwards));
            }
            let mut tally = Tally::default();
            tally.add(&step, &Sightings::default());
            assert_eq!(tally.of(Kind::Service, request, true), Hop { all: 1, fast: 0 });
            assert_eq!(tally.of(Kind::Service, !request, false), Hop { all: 1, fast: 0 });
        }
    }

    #[test]
    fn too_small_a_share_is_named_by_kind_and_place() {
        let mut tally = Tally::default();
        for (number, request) in [true, false].into_iter().enumerate() {
            let step = step(Kind::Plain, request);
            for at in 0..10 {
                // Requests always fast; answers at the client's node twice in ten.
                let slow = number == 1 && at >= 2;
                let bridges = if slow { vec![side(&step).other()] } else { vec![] };
                tally.add(&step, &sightings(&step, &bridges));
            }
        }
        let failures = tally.failures(Mode::Services);
        assert_eq!(failures, ["Plain:  20.0 % of 10 in at the client"]);
        assert!(
            tally.text().contains("Plain: 100.0 % of 10 out at the client"),
            "{}",
            tally.text()
        );
    }
}
