//! What the rules make of a connection's plain packet: what the kernel path has to
//! deliver, or the comparison says nothing about them. Pure.

use super::connection::Connection;
use super::draft::ETH;
use super::kind::{End, Kind};
use super::place::Tap;
use super::ruleset::{DSCP, TTL};
use super::signs;

/// A packet as it comes to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    source: End,
    destination: End,
    tos: u8,
    ttl: u8,
    /// Mark and priority on the underlay, if a node sends it.
    sign: Option<[u8; 2]>,
}

impl Expected {
    /// For what the connection says; `by_pod`: it leaves the sender's node through
    /// the rules.
    pub fn new(connection: &Connection, request: bool, by_pod: bool) -> Self {
        let Connection { slot, ends, ttl, .. } = connection;
        let kind = slot.kind;
        let (source, destination) =
            if request { (ends.source, ends.server) } else { (ends.target, ends.client) };
        let dscp = if request { DSCP[0] } else { DSCP[1] };
        let ttl = match (kind, request) {
            (Kind::Ttl, true) => TTL - 1,
            // Written after the last hop.
            (Kind::Ttl, false) => TTL,
            _ => ttl - 2,
        };
        Self {
            source,
            destination,
            tos: if kind.marks_dscp() { dscp << 2 } else { 0 },
            ttl,
            sign: by_pod.then(|| signs::of(kind)),
        }
    }

    /// Whether that came of the packet.
    pub fn is_met(&self, made: &[(Tap, Vec<u8>)]) -> bool {
        let mut pods = made.iter().filter(|(tap, _)| !tap.is_cable());
        let (Some((_, frame)), None) = (pods.next(), pods.next()) else { return false };
        let cables = made.iter().filter(|(tap, _)| tap.is_cable());
        let signed = cables.map(|(_, frame)| signs::read(frame)).any(|sign| sign == self.sign);
        self.is(frame.get(ETH..).unwrap_or(&[])) && (signed || self.sign.is_none())
    }

    fn is(&self, packet: &[u8]) -> bool {
        let end = |(address, port): End| (address.octets(), port.to_be_bytes());
        let found = |address: usize, port: usize| {
            let address: [u8; 4] = packet.get(address..address + 4)?.try_into().ok()?;
            let port: [u8; 2] = packet.get(port..port + 2)?.try_into().ok()?;
            Some((address, port))
        };
        packet.get(1) == Some(&self.tos)
            && packet.get(8) == Some(&self.ttl)
            && found(12, 20) == Some(end(self.source))
            && found(16, 22) == Some(end(self.destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Generator, Step};
    use crate::mode::Mode;
    use crate::place::Sender;
    use crate::world::LEFT;

    /// A plain request of a pod, and what has to come of it.
    fn step(kind: Kind) -> (Step, Expected) {
        let wanted = |step: &Step| {
            let request = step.part.is_some_and(|part| part.kind == kind && part.request);
            request && step.oddities.none() && matches!(step.sender, Sender::Pod(_))
        };
        let step = Generator::new(Mode::Services, 21).find(wanted).expect("an endless sequence");
        let expected = step.expected.expect("it is a connection's");
        (step, expected)
    }

    /// It and the frame on the underlay.
    fn made(frame: &[u8], sign: [u8; 2]) -> Vec<(Tap, Vec<u8>)> {
        let mut outer = vec![0; 60];
        (outer[10], outer[7]) = (sign[0], sign[1]);
        vec![(Tap::LeftPod, frame.to_vec()), (Tap::CableFrom(LEFT), outer)]
    }

    #[test]
    fn plain_connections_lose_two_hops_and_nothing_else() {
        let (step, expected) = step(Kind::Plain);
        let mut frame = step.frames[0].clone();
        assert!(!expected.is_met(&made(&frame, [0, 0])));
        frame[ETH + 8] -= 2;
        assert!(expected.is_met(&made(&frame, [0, 0])));
        assert!(!expected.is_met(&made(&frame, [1, 0])), "it has a mark");
        assert!(!expected.is_met(&made(&frame, [0, 0])[1..]), "it did not arrive");
        for at in [1, 12, 19, 20, 23] {
            let mut changed = frame.clone();
            changed[ETH + at] ^= 1;
            assert!(!expected.is_met(&made(&changed, [0, 0])), "byte {at}");
        }
    }

    #[test]
    fn rules_show_in_what_comes_of_a_packet() {
        for (kind, sign) in [
            (Kind::Service, [0, 0]),
            (Kind::SourceNat, [0, 0]),
            (Kind::Dscp, [0, 0]),
            (Kind::Ttl, [0, 0]),
            (Kind::Mark, [1, 0]),
            (Kind::Priority, [0, 0x20]),
            (Kind::Everything, [2, 0x30]),
        ] {
            let (step, expected) = step(kind);
            let mut frame = step.frames[0].clone();
            frame[ETH + 8] -= 2;
            assert!(!expected.is_met(&made(&frame, [0, 0])), "{kind:?}");
            frame[ETH + 1] = expected.tos;
            frame[ETH + 8] = expected.ttl;
            let ends = [expected.source.0.octets(), expected.destination.0.octets()].concat();
            frame[ETH + 12..ETH + 20].copy_from_slice(&ends);
            let ports = [expected.source.1.to_be_bytes(), expected.destination.1.to_be_bytes()];
            frame[ETH + 20..ETH + 24].copy_from_slice(&ports.concat());
            assert!(expected.is_met(&made(&frame, sign)), "{kind:?}");
        }
    }
}
