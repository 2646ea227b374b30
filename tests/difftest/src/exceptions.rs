//! Where the paths are known to differ. docs/design/tests.md has the same list.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etherparse::checksum::Sum16BitWords;

use super::compare::{TCP, UDP, addresses, flow, innermost, is_error, whole};
use super::draft::ETH;
use super::generate::Step;
use super::invalid::{Invalid, invalid};
use super::mode::Mode;
use super::oddity::Oddity;
use super::place::{Sender, Tap};
use super::world::{is_node, is_pod};
use flannel_tests::rules::Rules;

/// How long a wrong confirmation can hold: a window, and what this program takes to
/// look.
const HOLDS: Duration = Duration::from_secs(7);

/// A difference that is no fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exception {
    /// A tunnel packet put on the underlay, whose outer UDP checksum is there and
    /// wrong: nothing comes to a pod by the kernel path, something by the eBPF path.
    OuterUdpChecksum,
    /// A whole packet whose TCP or UDP checksum is wrong. With rules that drop what is
    /// invalid: nothing comes of it on the kernel path. Without: it belongs to a
    /// translated connection, and only the kernel path leaves its addresses.
    Checksum,
    /// Without rules that drop what is invalid: a packet of no connection, not from a
    /// pod's own address to another pod, within a window after one of its flow that
    /// conntrack called invalid. The kernel path masquerades it, the eBPF path does
    /// not.
    AfterInvalid,
    /// With `eager` and rules that drop what is invalid, TCP of a connection: the eBPF
    /// path lacks ICMP errors, or one of both paths drops a packet with odd flags
    /// earlier.
    Unknown,
    /// A packet of no connection that one path drops or translates, and the other does
    /// not; one in [`RARE`] packets. Two kernel paths differ so, too, but more rarely.
    Remembered,
}

/// How many packets there are for each [`Exception::Remembered`] one. They come in rows:
/// what two conntracks see differently of a flow may stay so for two minutes.
pub const RARE: usize = 1_000;

/// Bytes of a frame that a port of conntrack's choice decides about: the port, the
/// checksums of both headers, and TOS.
const PORT_DEPENDS: usize = 7;

/// What came of a packet on one path.
pub type Made = [(Tap, Vec<u8>)];

/// What the judgement of a packet rests on besides the packet.
#[derive(Debug)]
pub struct Memory {
    /// Whether the nodes' rules drop what conntrack calls invalid.
    drops_invalid: bool,
    /// Whether connections begin on the fast path.
    eager: bool,
    /// Flows that had such packets, and when.
    invalid: BTreeMap<Vec<u8>, Instant>,
}

impl Memory {
    /// Of nodes in this mode with these rules, before the first packet.
    pub fn new(mode: Mode, rules: Rules) -> Self {
        Self {
            drops_invalid: rules != Rules::None,
            eager: mode == Mode::Eager,
            invalid: BTreeMap::new(),
        }
    }

    /// Takes a packet that was sent.
    pub fn note(&mut self, step: &Step) {
        if wrong(step).is_some()
            && let Some(flow) = whole(&step.frames).as_deref().and_then(flow)
        {
            self.invalid.insert(flow, Instant::now());
        }
    }

    fn had_invalid(&self, step: &Step) -> bool {
        let flow = whole(&step.frames).as_deref().and_then(flow);
        let when = flow.and_then(|flow| self.invalid.get(&flow).copied());
        when.is_some_and(|when| when.elapsed() < HOLDS)
    }
}

impl Exception {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::OuterUdpChecksum,
        Self::Checksum,
        Self::AfterInvalid,
        Self::Unknown,
        Self::Remembered,
    ];

    /// What differs, and why it may.
    pub const fn text(self) -> &'static str {
        match self {
            Self::OuterUdpChecksum => {
                "a tunnel packet whose outer UDP checksum is wrong is dropped by the kernel path; \
                 the eBPF path does not add the packet up, and hands it to the pod, whose stack \
                 checks the inner checksums"
            }
            Self::Checksum => {
                "a packet whose TCP or UDP checksum is wrong is invalid for conntrack, which does \
                 not translate it, and for rules, which may drop it; the fast path does not add it \
                 up, and hands it to the pod, whose stack does"
            }
            Self::AfterInvalid => {
                "a pod's packet under an address that is not its own passes untranslated within a \
                 window after one of the same flow that conntrack called invalid, and so did not \
                 translate"
            }
            Self::Unknown => {
                "conntrack does not know a TCP connection that began on the fast path (eager), so \
                 rules against what is invalid may drop ICMP errors about it, and packets with SYN, \
                 FIN or RST out of place"
            }
            Self::Remembered => {
                "what conntrack remembers of packets that belong to no connection depends on which \
                 of them it saw, and when: it may drop or translate one on one path only"
            }
        }
    }

    /// Whether this is the reason why a packet's fate differs.
    pub fn covers(self, step: &Step, kernel: &Made, ebpf: &Made, memory: &Memory) -> bool {
        let dropped = memory.drops_invalid && kernel.is_empty() && !ebpf.is_empty();
        match self {
            Self::OuterUdpChecksum => {
                let wrong = matches!(step.sender, Sender::Wire(_))
                    && matches!(&step.frames[..], [frame] if has_wrong_udp_checksum(frame));
                let comes = |frames: &Made| frames.iter().any(|(at, _)| !at.is_cable());
                wrong && !comes(kernel) && comes(ebpf)
            }
            Self::Checksum => {
                let translated = step.part.is_some_and(|part| part.kind.translates());
                let left = !memory.drops_invalid && translated && as_sent(step, kernel);
                wrong(step) == Some(Invalid::Checksum)
                    && (dropped || left && !ebpf.is_empty() && !as_sent(step, ebpf))
            }
            Self::AfterInvalid => {
                let masqueraded = kernel
                    .iter()
                    .any(|(_, frame)| addresses(frame).is_some_and(|(source, _)| is_node(source)));
                step.part.is_none()
                    && step.frames.iter().any(|frame| !is_between_pods(step.sender, frame))
                    && memory.had_invalid(step)
                    && masqueraded
                    && !ebpf.is_empty()
                    && as_sent(step, ebpf)
            }
            Self::Unknown => {
                let opened = memory.eager && memory.drops_invalid && is_connected_tcp(step);
                let errors =
                    |frames: Vec<&(Tap, Vec<u8>)>| frames.iter().all(|(_, frame)| is_error(frame));
                let dropped = beyond(kernel, ebpf);
                opened
                    && (dropped.clone().is_some_and(errors)
                        || has_odd_flags(step) && dropped.or(beyond(ebpf, kernel)).is_some())
            }
            Self::Remembered => {
                let own = step.frames.iter().all(|frame| is_between_pods(step.sender, frame));
                let further = beyond(kernel, ebpf).or(beyond(ebpf, kernel)).is_some();
                let differ = match own {
                    // Nobody translates it.
                    true => memory.drops_invalid && further,
                    false => {
                        further
                            || as_sent(step, kernel) != as_sent(step, ebpf)
                            || differ_by_port(kernel, ebpf)
                    }
                };
                !is_of_connection(step) && differ
            }
        }
    }
}

/// Whether the eBPF path left a connection's packet untranslated because conntrack
/// did so with one of the same flow that it called invalid.
pub fn repeats_invalid(step: &Step, ebpf: &Made, memory: &Memory) -> bool {
    let translated = step.part.is_some_and(|part| part.kind.translates());
    translated && !memory.drops_invalid && memory.had_invalid(step) && as_sent(step, ebpf)
}

/// Why conntrack calls a packet invalid.
fn wrong(step: &Step) -> Option<Invalid> {
    whole(&step.frames).as_deref().and_then(innermost).and_then(invalid)
}

/// The protocol of the packet in a step.
fn protocol(step: &Step) -> Option<u8> {
    whole(&step.frames).as_deref().and_then(innermost)?.get(9).copied()
}

fn is_connected_tcp(step: &Step) -> bool {
    step.part.is_some() && protocol(step) == Some(TCP)
}

/// Whether a packet belongs to a connection: another protocol's does not.
fn is_of_connection(step: &Step) -> bool {
    step.part.is_some() && matches!(protocol(step), Some(TCP | UDP))
}

/// Whether both paths made the same but for what follows from a port that
/// masquerading has chosen: the port, checksums, and a DSCP that a rule gives by it.
fn differ_by_port(kernel: &Made, ebpf: &Made) -> bool {
    let near = |one: &[u8], other: &[u8]| {
        let differing = one.iter().zip(other).filter(|(a, b)| a != b).count();
        let same = one.len() == other.len() && addresses(one) == addresses(other);
        same && differing <= PORT_DEPENDS
    };
    let pairs = || kernel.iter().zip(ebpf);
    kernel.len() == ebpf.len()
        && pairs().all(|((at, one), (other_at, other))| at == other_at && near(one, other))
}

fn has_odd_flags(step: &Step) -> bool {
    step.oddities.inner.contains(&Oddity::TcpFlags)
}

/// What one path made beyond the other, which made nothing else.
fn beyond<'a>(more: &'a Made, less: &Made) -> Option<Vec<&'a (Tap, Vec<u8>)>> {
    let mut beyond: Vec<_> = more.iter().collect();
    for frame in less {
        let at = beyond.iter().position(|other| *other == frame)?;
        beyond.swap_remove(at);
    }
    Some(beyond)
}

/// Whether what came of a packet has its addresses, but for ICMP errors about it. Of
/// some frames on the underlay they are not known.
fn as_sent(step: &Step, made: &Made) -> bool {
    let sent = step.frames.first().and_then(|frame| addresses(frame));
    let known = |frame: &[u8]| addresses(frame).is_some_and(|(from, _)| !from.is_unspecified());
    let known = made.iter().filter(|(at, frame)| !at.is_cable() || known(frame));
    known.into_iter().all(|(_, frame)| addresses(frame) == sent || is_error(frame))
}

/// Whether a packet goes from a pod, under its own address, to another.
fn is_between_pods(sender: Sender, frame: &[u8]) -> bool {
    let Some((source, destination)) = addresses(frame) else { return false };
    let (Sender::Pod(side) | Sender::Wire(side)) = sender;
    source == side.pod() && is_pod(destination) && destination != source
}

/// Whether a frame is a UDP packet with a checksum, and that is wrong.
fn has_wrong_udp_checksum(frame: &[u8]) -> bool {
    let wrong = || {
        let ip = frame.get(ETH..)?;
        let l4 = usize::from(*ip.first()? & 0x0f) * 4;
        let length = ip.get(l4 + 4..l4 + 6)?;
        let whole = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let udp = ip.get(l4..l4 + whole)?;
        let sum = Sum16BitWords::new()
            .add_slice(ip.get(12..20)?)
            .add_2bytes([0, 17])
            .add_slice(length)
            .add_slice(udp)
            .ones_complement();
        Some(udp.get(6..8)? != [0, 0] && sum != 0)
    };
    wrong().unwrap_or(false)
}

#[cfg(test)]
mod tests;
