//! Source ports of tunnel packets: spread over flows, the same within one. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::compare::{inner_flow, source_port};

/// The source ports that each flow was seen with.
#[derive(Clone, Debug, Default)]
pub struct Ports(BTreeMap<Vec<u8>, BTreeSet<u16>>);

impl Ports {
    /// Takes a frame of the underlay, if it is a tunnel packet that a node made
    /// for an unfragmented TCP or UDP packet.
    pub fn add(&mut self, frame: &[u8]) {
        if let (Some(flow), Some(port)) = (inner_flow(frame), source_port(frame)) {
            self.0.entry(flow).or_default().insert(port);
        }
    }

    /// Flows.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Different ports.
    pub fn spread(&self) -> usize {
        self.0.values().flatten().collect::<BTreeSet<_>>().len()
    }

    /// Flows with more than one port.
    pub fn unsteady(&self) -> usize {
        self.0.values().filter(|ports| ports.len() > 1).count()
    }

    /// Flows that both have, and those of them whose ports differ.
    pub fn compare(&self, other: &Self) -> (usize, usize) {
        let both = self.0.iter().filter_map(|(flow, ports)| Some((ports, other.0.get(flow)?)));
        both.fold((0, 0), |(all, differ), (one, other)| {
            (all + 1, differ + usize::from(one != other))
        })
    }
}
