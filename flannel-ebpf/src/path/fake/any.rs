//! Any packets between entry and exit, under true and wrong tickets.

use super::{Node, OVERLAY, Packet, VETH};
use crate::path::Verdict;
use crate::path::hook::{from_pod, from_underlay, to_overlay, to_pod};

/// Most packets of a sequence.
const MOST: usize = 20;

/// A byte of a packet, and what it becomes.
pub(crate) type Edit = (usize, u8);

/// One packet's way through a node.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// A tunnel packet to node 2, else a pod's to node 1.
    pub(crate) inwards: bool,
    /// TCP flags; `None`: UDP.
    pub(crate) flags: Option<u8>,
    /// What is odd about it.
    pub(crate) before: Vec<Edit>,
    /// What the kernel makes of it.
    pub(crate) after: Vec<Edit>,
    /// What the kernel leaves of it, in bytes.
    pub(crate) length: usize,
    /// Nanoseconds that it stays in the kernel.
    pub(crate) stays: u64,
    /// What is added to its ticket's number.
    pub(crate) wrong_by: u16,
}

/// Whatever the kernel makes of packets between their hooks, and whatever number they
/// then carry: exits let them through as they are, and count each.
///
/// # Panics
/// They do not.
pub(crate) fn walk(steps: impl IntoIterator<Item = Step>) {
    let (a, b) = (Node::new(1), Node::new(2));
    for step in steps {
        let node = if step.inwards { &b } else { &a };
        let packet = match step.flags {
            Some(flags) => Packet::tcp(1, 2, flags, b"payload"),
            None => Packet::udp(1, 2, b"payload"),
        };
        let packet = if step.inwards { packet.encapsulated(1, 2) } else { packet };
        let mut packet = edited(packet, &step.before);
        let verdict = if step.inwards {
            from_underlay::run(&mut packet, node)
        } else {
            from_pod::run(&mut packet, node)
        };
        if verdict != Verdict::Pass {
            continue;
        }
        node.pass_time(step.stays);
        let ticket = packet.ticket.wrapping_add(step.wrong_by);
        let mut packet = Packet { ticket, ..edited(packet, &step.after) };
        packet.bytes.truncate(step.length);
        let mut at_pod = packet.clone().at(VETH);
        let mut at_overlay = packet.clone().at(OVERLAY);
        assert_eq!(to_pod::run(&mut at_pod, node), Verdict::Pass);
        assert_eq!(to_overlay::run(&mut at_overlay, node), Verdict::Pass);
        assert_eq!(at_pod.bytes, packet.bytes);
        assert_eq!(at_overlay.bytes, packet.bytes);
        let (seen, ended) = node.balance();
        assert_eq!(seen, ended);
    }
}

fn edited(mut packet: Packet, edits: &[Edit]) -> Packet {
    for (at, byte) in edits {
        if let Some(there) = packet.bytes.get_mut(*at) {
            *there = *byte;
        }
    }
    packet
}

/// `walk` for the steps that bytes tell of: five for each, its edits, and its length.
pub fn any_packets(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    walk(core::iter::from_fn(|| step(&mut bytes)).take(MOST));
}

fn step(bytes: &mut impl Iterator<Item = u8>) -> Option<Step> {
    let [kind, flags, stays, low, high] = [(); 5].map(|()| bytes.next());
    let (kind, flags) = (kind?, flags?);
    let mut edits = |count: u8| -> Vec<Edit> {
        let edit = |_| Some((usize::from(bytes.next()?), bytes.next()?));
        (0..count).map_while(edit).collect()
    };
    let (before, after) = (edits(kind >> 2 & 3), edits(kind >> 4 & 3));
    let length = if kind & 0x40 == 0 { usize::MAX } else { usize::from(bytes.next()?) };
    Some(Step {
        inwards: kind & 1 != 0,
        flags: (kind & 2 == 0).then_some(flags),
        before,
        after,
        length,
        stays: u64::from(stays?) * 24_000_000,
        wrong_by: if kind & 0x80 == 0 { 0 } else { u16::from_le_bytes([low?, high?]) },
    })
}
