//! Flows that the kernel carries packet by packet, because a rule of the node
//! judges each of them ([`Exemption`]).

use super::Lookups;
use crate::abi::{Config, Exemption, FlowKey, MAX_EXEMPTIONS, Tuple4};

/// Whether a rule may match packets of this flow, on their way from the tuple of
/// `key` to `leaves`.
#[inline(always)]
pub(super) fn covers<T: Lookups>(
    tables: &T,
    config: &Config,
    key: &FlowKey,
    leaves: &Tuple4,
) -> bool {
    let covered = |tuple: &Tuple4| tables.is_exempt(Asked::new(config.exemptions, key, tuple));
    let enters = &key.tuple;
    if covered(enters) {
        return true;
    }
    if enters == leaves {
        return false;
    }
    // Destinations are translated before FORWARD, sources behind it.
    let between = Tuple4 {
        saddr: enters.saddr,
        sport: enters.sport,
        daddr: leaves.daddr,
        dport: leaves.dport,
    };
    covered(leaves) || covered(&between)
}

/// A tuple of a flow that is compared with the exemptions, in two words: a
/// function of the programs is called with them. The verifier goes through such
/// a function once, not once per call.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Source address in the upper half, destination address in the lower one.
    pub addresses: u64,
    /// From above: source port, destination port, how many exemptions there are,
    /// protocol, direction.
    pub rest: u64,
}

impl Asked {
    #[inline(always)]
    fn new(count: u32, key: &FlowKey, tuple: &Tuple4) -> Self {
        let port = |port| u64::from(u16::from_be_bytes(port));
        Self {
            addresses: pair(tuple.saddr, tuple.daddr),
            rest: port(tuple.sport) << 48
                | port(tuple.dport) << 32
                | u64::from(count as u16) << 16
                | u64::from(key.proto) << 8
                | u64::from(key.direction),
        }
    }

    /// Whether one of the exemptions covers it.
    #[inline(always)]
    pub fn is_covered<T: Lookups>(self, tables: &T) -> bool {
        let count = u32::from((self.rest >> 16) as u16);
        let mut index = 0;
        while index < MAX_EXEMPTIONS {
            if index >= count {
                break;
            }
            if tables.is_exempt_by(self, index) {
                return true;
            }
            index += 1;
        }
        false
    }

    /// Whether this exemption covers it.
    #[inline(always)]
    pub fn is_covered_by(self, exemption: &Exemption) -> bool {
        let (proto, direction) = ((self.rest >> 8) as u8, self.rest as u8);
        let (sport, dport) = ((self.rest >> 48) as u16, (self.rest >> 32) as u16);
        let there = exemption.direction == 0 || exemption.direction == direction;
        (exemption.proto == 0 || exemption.proto == proto)
            && ((there && is_matched(exemption, self.addresses, sport, dport))
                || (exemption.both_ways != 0
                    && is_matched(exemption, self.addresses.rotate_left(32), dport, sport)))
    }
}

#[inline(always)]
fn is_matched(exemption: &Exemption, addresses: u64, sport: u16, dport: u16) -> bool {
    let networks = pair(exemption.source, exemption.destination);
    let masks = pair(exemption.source_mask, exemption.destination_mask);
    (addresses ^ networks) & masks == 0
        && sport >= exemption.sport_min
        && sport <= exemption.sport_max
        && dport >= exemption.dport_min
        && dport <= exemption.dport_max
}

/// Two addresses in one word: the second in its lower half.
#[inline(always)]
pub(super) fn pair(source: [u8; 4], destination: [u8; 4]) -> u64 {
    u64::from(u32::from_ne_bytes(source)) << 32 | u64::from(u32::from_ne_bytes(destination))
}

/// Both addresses of [`pair`].
#[inline(always)]
pub(super) fn unpaired(addresses: u64) -> ([u8; 4], [u8; 4]) {
    (((addresses >> 32) as u32).to_ne_bytes(), (addresses as u32).to_ne_bytes())
}
