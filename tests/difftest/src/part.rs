//! Packets of connections. Pure.

use etherparse::{IpNumber, Ipv4Header};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::backend::Backend;
use super::connection::Connection;
use super::demands;
use super::draft::{Draft, Edit, Transport};
use super::expected::Expected;
use super::generate::{Generator, Oddities, Part, Step, ethernet};
use super::kind::{By, Kind};
use super::oddity::Oddity;
use super::place::Sender;
use super::pool::Next;
use super::ruleset::{DSCP, TTL};

/// Packets of 100 that are odd.
const ODD: u32 = 20;
/// Packets of 100 that are put on the underlay, of those that the sender's node
/// would not change.
const BY_WIRE: u32 = 15;
/// Datagrams of 100 without a checksum.
const BARE: u32 = 10;
/// Packets of 100 that carry already what the rule would write.
const ALREADY: u32 = 5;

impl Generator {
    /// What a connection says next, odd now and then.
    pub(super) fn of_connection(&mut self, next: Next) -> Step {
        let Next { connection, waits, loose, .. } = &next;
        let request = next.word.request;
        let side = if request { connection.client } else { connection.client.other() };
        let key = self.key();
        let mut draft = self.spoken(key, &next);
        let mut oddities = Oddities::default();
        if *loose && self.percent(ODD) {
            oddities.inner = self.oddities(&in_flow());
        }
        let changed = match connection.slot.kind.by() {
            By::Nobody | By::Sender => false,
            By::Client => request,
            By::Server => !request,
        };
        let wire = *loose && !changed && self.percent(BY_WIRE);
        if wire {
            self.forward(side, &mut draft);
        }
        self.make_odd(&mut draft, &oddities.inner);
        let already = self.mind_the_rules(connection.slot.kind, &mut draft);
        let mut step = if wire {
            if self.mode.backend() == Backend::Vxlan && self.percent(ODD) {
                oddities.outer = self.oddities(Oddity::ALL);
            }
            self.on_wire(side, key, &draft, oddities)
        } else {
            let frames = draft.frames();
            Step::new(key, Sender::Pod(side), oddities, frames)
        };
        step.waits = *waits;
        let plain = step.oddities.none() && !already;
        step.expected = plain.then(|| Expected::new(connection, request, !wire));
        step.part = Some(Part { kind: connection.slot.kind, request });
        // Any flags may have ended it.
        if connection.slot.tcp && step.oddities.inner.contains(&Oddity::TcpFlags) {
            self.pool.forget(connection, &mut self.rng);
        }
        step
    }

    /// The plain packet.
    fn spoken(&mut self, key: u16, next: &Next) -> Draft {
        let Next { connection: Connection { client, ends, ttl, .. }, word, .. } = next;
        let (side, from, to) = if word.request {
            (*client, ends.client, ends.target)
        } else {
            (client.other(), ends.server, ends.source)
        };
        let (protocol, udp) = match word.transport {
            Transport::Udp(..) => (IpNumber::UDP, true),
            _ => (IpNumber::TCP, false),
        };
        let mut ip = Ipv4Header::new(0, *ttl, protocol, from.0.octets(), to.0.octets())
            .expect("no payload yet");
        ip.identification = key;
        ip.dont_fragment = self.rng.random();
        let bare = udp && self.percent(BARE);
        let edits = bare.then(|| Edit::Transport { at: 6, bytes: vec![0, 0] });
        Draft {
            eth: ethernet(side.pod_mac(), side.gateway_mac()),
            tags: Vec::new(),
            ip,
            transport: word.transport.clone(),
            payload: word.payload.clone(),
            edits: edits.into_iter().collect(),
        }
    }

    /// What a rule writes, a packet carries already only where that is demanded.
    /// Whether it does.
    fn mind_the_rules(&mut self, kind: Kind, draft: &mut Draft) -> bool {
        let may =
            kind.marks_dscp() && demands::MIXED_DSCP || kind == Kind::Ttl && demands::MIXED_TTL;
        let already = may && self.percent(ALREADY);
        if already && kind == Kind::Ttl {
            draft.ip.time_to_live = TTL + 1;
        } else if already {
            let value = *DSCP.choose(&mut self.rng).expect("two values") << 2;
            draft.edits.push(Edit::Header { at: 1, value });
        }
        if demands::MIXED_DSCP || !kind.marks_dscp() {
            return already;
        }
        for edit in &mut draft.edits {
            if let Edit::Header { at: 1, value } = edit
                && DSCP.contains(&(*value >> 2))
            {
                *value ^= 0x80;
            }
        }
        already
    }

    fn percent(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }
}

/// Ways to be odd and still belong to the connection.
fn in_flow() -> Vec<Oddity> {
    let leads_away = |odd: &Oddity| matches!(odd, Oddity::Source | Oddity::Destination);
    Oddity::ALL.iter().copied().filter(|odd| !leads_away(odd)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::innermost;
    use crate::mode::Mode;

    #[test]
    fn what_a_rule_writes_is_there_before_only_where_that_is_demanded() {
        let (mut dscp, mut ttl) = (0, 0);
        for mode in [Mode::Services, Mode::HostGw] {
            for step in Generator::new(mode, 13).take(40_000) {
                let (Some(part), Some(packet)) = (step.part, innermost(&step.frames[0])) else {
                    continue;
                };
                let written = packet.get(1).is_some_and(|tos| DSCP.contains(&(tos >> 2)));
                dscp += usize::from(written && part.kind.marks_dscp());
                let written = packet.get(8) == Some(&(TTL + 1));
                ttl += usize::from(written && part.kind == Kind::Ttl);
            }
        }
        assert_eq!(dscp > 0, demands::MIXED_DSCP, "{dscp}");
        assert_eq!(ttl > 0, demands::MIXED_TTL, "{ttl}");
    }

    #[test]
    fn only_the_node_that_changes_nothing_is_left_out() {
        let mut wires = 0;
        for step in Generator::new(Mode::Services, 14).take(20_000) {
            let (Some(part), Sender::Wire(_)) = (step.part, step.sender) else { continue };
            match part.kind.by() {
                By::Client => assert!(!part.request, "{step:?}"),
                By::Server => assert!(part.request, "{step:?}"),
                By::Nobody | By::Sender => {}
            }
            wires += 1;
        }
        assert!(wires > 500, "{wires}");
    }
}
