//! Flows that the kernel carries packet by packet, because a rule of the node
//! judges each of them ([`Exemption`]).

use super::Lookups;
use crate::abi::{Config, Exemption, FlowKey, MAX_EXEMPTIONS, Tuple4};

/// Whether a rule may match packets of this flow, on their way from the tuple of
/// `key` to `leaves`.
#[inline(always)]
pub(super) fn matches<T: Lookups>(
    tables: &T,
    config: &Config,
    key: &FlowKey,
    leaves: &Tuple4,
) -> bool {
    let mut index = 0;
    while index < MAX_EXEMPTIONS {
        if index >= config.exemptions {
            break;
        }
        if let Some(exemption) = tables.exemption(index)
            && covers(exemption, key, leaves)
        {
            return true;
        }
        index += 1;
    }
    false
}

#[inline(always)]
fn covers(exemption: &Exemption, key: &FlowKey, leaves: &Tuple4) -> bool {
    let enters = &key.tuple;
    // Destinations are translated before FORWARD, sources behind it.
    let between = Tuple4 {
        saddr: enters.saddr,
        sport: enters.sport,
        daddr: leaves.daddr,
        dport: leaves.dport,
    };
    let proto = exemption.proto == 0 || exemption.proto == key.proto;
    let there = exemption.direction == 0 || exemption.direction == key.direction;
    let hits = |tuple: &Tuple4| {
        (there && hit(exemption, tuple))
            || (exemption.both_ways != 0 && hit(exemption, &tuple.reversed()))
    };
    proto && (hits(enters) || hits(leaves) || hits(&between))
}

#[inline(always)]
fn hit(exemption: &Exemption, tuple: &Tuple4) -> bool {
    let within = |addr: [u8; 4], network: [u8; 4], mask: [u8; 4]| {
        (u32::from_ne_bytes(addr) ^ u32::from_ne_bytes(network)) & u32::from_ne_bytes(mask) == 0
    };
    let sport = u16::from_be_bytes(tuple.sport);
    let dport = u16::from_be_bytes(tuple.dport);
    within(tuple.saddr, exemption.source, exemption.source_mask)
        && within(tuple.daddr, exemption.destination, exemption.destination_mask)
        && sport >= exemption.sport_min
        && sport <= exemption.sport_max
        && dport >= exemption.dport_min
        && dport <= exemption.dport_max
}
