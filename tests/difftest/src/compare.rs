//! By what a frame is known again, and what of it has to be equal. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;

use super::draft::{ETH, renew_checksum};
use super::kind::Kind;
use super::place::{Sender, Tap};
use super::world::{LEFT, PORT, RIGHT};

/// Frames by key and place, as far as they have to be equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen(BTreeMap<u16, Vec<(Tap, Vec<u8>)>>);

impl Seen {
    /// Takes a frame, if it belongs to a packet of ours.
    pub fn add(&mut self, tap: Tap, frame: &[u8]) {
        if let Some(key) = key(frame).filter(|_| !tells_of_lost_fragments(frame)) {
            let mut frame = normal(frame);
            if tap.is_cable() && !between_nodes(&frame) {
                blank_shared(&mut frame, 0);
            }
            let frames = self.0.entry(key).or_default();
            frames.push((tap, frame));
            frames.sort();
        }
    }

    /// What was seen of a packet that `sender` sent. Its own frames on the
    /// underlay are left out: the receiver strips them in the very buffers that
    /// the socket holds.
    pub fn made_of(&self, key: u16, sender: Sender) -> Vec<(Tap, Vec<u8>)> {
        let sent = match sender {
            Sender::Wire(side) => Some(Tap::CableFrom(side)),
            Sender::Pod(_) => None,
        };
        self.of(key).iter().filter(|(tap, _)| Some(*tap) != sent).cloned().collect()
    }

    /// Forgets what was seen under a key.
    pub fn forget(&mut self, key: u16) {
        self.0.remove(&key);
    }

    /// All that was seen under a key.
    pub fn of(&self, key: u16) -> &[(Tap, Vec<u8>)] {
        self.0.get(&key).map_or(&[], Vec::as_slice)
    }
}

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
const ICMP: u8 = 1;
const IGMP: u8 = 2;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;
const ECHO_REPLY: u8 = 0;
const TIME_EXCEEDED: u8 = 11;
const TIME_REPLY: u8 = 14;
/// Unreachable, quench, redirect, time exceeded, parameter problem.
const ICMP_ERRORS: [u8; 5] = [3, 4, 5, 11, 12];
/// UDP and VXLAN header.
const TUNNEL: usize = 16;
/// TTL of tunnel packets on the cable.
const MADE_TTL: u8 = 64;
/// What `net.ipv4.ip_local_port_range` says unless it is changed.
const SOURCE_PORTS: Range<u16> = 32_768..61_000;

/// An IPv4 packet within a frame, as far as it is there.
struct Packet<'a> {
    bytes: &'a [u8],
    l4: usize,
}

impl<'a> Packet<'a> {
    /// `None`: ARP, IPv6, or shorter than its fixed header.
    fn in_frame(frame: &'a [u8]) -> Option<(usize, Self)> {
        let mut l3 = ETH;
        while matches!(frame.get(l3 - 2..l3)?, [0x81, 0x00] | [0x88, 0xa8]) {
            l3 += 4;
        }
        let bytes = frame.get(l3..)?;
        let other = match frame[l3 - 2..l3] {
            [0x08, 0x06] => true,
            [0x86, 0xdd] => bytes.first()? >> 4 == 6,
            _ => false,
        };
        (!other).then(|| Self::new(bytes)).flatten().map(|packet| (l3, packet))
    }

    fn new(bytes: &'a [u8]) -> Option<Self> {
        let l4 = usize::from(bytes.first()? & 0x0f) * 4;
        Some(Self { bytes, l4 })
    }

    fn word(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes([*self.bytes.get(at)?, *self.bytes.get(at + 1)?]))
    }

    fn proto(&self) -> Option<u8> {
        self.bytes.get(9).copied()
    }

    fn source(&self) -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = self.bytes.get(12..16)?.try_into().ok()?;
        Some(bytes.into())
    }

    /// By a kernel on the way, not by a pod.
    fn by_node(&self) -> bool {
        self.source().is_some_and(|source| source != LEFT.pod() && source != RIGHT.pod())
    }

    fn is_tunnel(&self) -> bool {
        let later = self.word(6).is_none_or(|flags| flags & 0x1fff != 0);
        let node = self.source().is_some_and(|source| source.octets()[..3] == [198, 18, 0]);
        node && !later && self.proto() == Some(UDP) && self.word(self.l4 + 2) == Some(PORT)
    }

    /// An ICMP message that a kernel made because of a packet of ours.
    fn answer(&self) -> Option<u8> {
        let kind = *self.bytes.get(self.l4)?;
        let known = kind == ECHO_REPLY || ICMP_ERRORS.contains(&kind);
        (self.by_node() && self.proto() == Some(ICMP) && known).then_some(kind)
    }

    fn key(&self) -> Option<u16> {
        if self.is_tunnel()
            && let Some(inner) = key(self.bytes.get(self.l4 + TUNNEL..)?)
        {
            return Some(inner);
        }
        match (self.proto()?, self.answer()) {
            (_, Some(ECHO_REPLY)) => self.word(self.l4 + 4),
            (_, Some(_)) => Packet::new(self.bytes.get(self.l4 + 8..)?)?.word(4),
            (IGMP, None) => None,
            // The rest of a node's own message, under an identification of its choice.
            (ICMP, None) if self.by_node() && self.word(6)? & 0x1fff != 0 => None,
            // The time of day, likewise.
            (ICMP, None) if self.by_node() && self.bytes.get(self.l4) == Some(&TIME_REPLY) => None,
            _ => self.word(4),
        }
    }

    /// Whether the rules for connections say what it is translated to.
    fn is_fixed(&self) -> bool {
        let ported = matches!(self.proto(), Some(TCP | UDP));
        self.source().is_some_and(Kind::is_virtual)
            || ported && self.word(self.l4 + 2).is_some_and(Kind::has_port)
    }

    /// Where conntrack may have written a port or identifier of its choice, and
    /// where the checksum over it stands: in what is not sent under a pod's
    /// address, or not any more.
    fn translated(&self) -> Option<[Range<usize>; 2]> {
        if self.is_fixed() {
            return None;
        }
        let first = self.word(6).is_some_and(|flags| flags & 0x1fff == 0);
        let at = |chosen: usize, checksum: Range<usize>| {
            let from = self.l4 + chosen;
            [from..from + 2, self.l4 + checksum.start..self.l4 + checksum.end]
        };
        match self.proto().filter(|_| first && self.by_node())? {
            TCP => Some(at(0, 16..18)),
            UDP | UDP_LITE => Some(at(0, 6..8)),
            SCTP => Some(at(0, 8..12)),
            ICMP if matches!(self.bytes.get(self.l4)?, 0 | 8 | 13..=18) => Some(at(4, 2..4)),
            _ => None,
        }
    }

    fn has_right_checksum(&self) -> bool {
        let header = self.bytes.get(..self.l4).unwrap_or(&[]);
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(header);
        header.len() >= 20 && sum.ones_complement() == 0
    }
}

/// The identification that the sender gave, wherever it stands: in the packet,
/// within the tunnel, in what an ICMP error quotes.
pub fn key(frame: &[u8]) -> Option<u16> {
    Packet::in_frame(frame)?.1.key()
}

/// The frame without what may differ: what kernels choose at random.
pub fn normal(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    blank(&mut frame);
    frame
}

fn blank(frame: &mut [u8]) {
    let Some((l3, packet)) = Packet::in_frame(frame) else { return };
    let l4 = l3 + packet.l4;
    let tunnel = packet.is_tunnel();
    let answer = packet.answer();
    let mut free = Vec::new();
    // Both mean the same; nftables writes 0xffff where others write 0.
    let checksum = l3 + 10..l3 + 12;
    if frame.get(checksum.clone()) == Some(&[0xff, 0xff]) && packet.has_right_checksum() {
        free.push(checksum);
    }
    if (tunnel || answer.is_some()) && packet.has_right_checksum() {
        free.extend([l3 + 4..l3 + 6, l3 + 10..l3 + 12]);
    }
    let moved = |by: usize| move |range: Range<usize>| range.start + by..range.end + by;
    if !tunnel {
        free.extend(packet.translated().into_iter().flatten().map(moved(l3)));
    }
    if answer.is_some_and(|kind| kind != ECHO_REPLY)
        && let Some(quote) = frame.get(l4 + 8..).and_then(Packet::new)
        && let Some(ranges) = quote.translated()
    {
        free.extend(ranges.into_iter().map(moved(l4 + 8)));
        free.push(l4 + 2..l4 + 4);
    }
    for range in free {
        zero(frame, range);
    }
    if tunnel {
        // One that a node forwards is none that it made.
        let made = frame.get(l3 + 8) == Some(&MADE_TTL);
        if !made || source_port(frame).is_some_and(|port| SOURCE_PORTS.contains(&port)) {
            zero(frame, l4..l4 + 2);
        }
        zero(frame, l4 + 6..l4 + 8);
        if let Some(inner) = frame.get_mut(l4 + TUNNEL..) {
            blank(inner);
        }
        blank_shared(frame, l4 + TUNNEL);
    }
}

/// What conntrack put together, the kernel forwards in the buffers of the
/// fragments, which it rewrites while a socket still holds them: MACs (written
/// with two bytes before them), TTL, checksums and what rules change are those of
/// some later time. What comes to the pod is compared as a whole.
fn blank_shared(frame: &mut [u8], eth: usize) {
    let Some((l3, packet)) = frame.get(eth..).and_then(Packet::in_frame) else { return };
    let Some(flags) = packet.word(6).filter(|flags| flags & 0x3fff != 0) else { return };
    let (l3, l4) = (eth + l3, eth + l3 + packet.l4);
    let checksum = match packet.proto() {
        _ if flags & 0x1fff != 0 => None,
        Some(TCP) => Some(16),
        Some(UDP) => Some(6),
        _ => None,
    };
    zero(frame, eth.saturating_sub(2)..eth + ETH - 2);
    for (at, length) in [(1, 1), (8, 1), (10, 10)] {
        zero(frame, l3 + at..l3 + at + length);
    }
    if let Some(checksum) = checksum {
        zero(frame, l4..l4 + 4);
        zero(frame, l4 + checksum..l4 + checksum + 2);
    }
}

/// Whether a packet goes from one node's own address to another's, as tunnel
/// packets do.
fn between_nodes(frame: &[u8]) -> bool {
    let ends = Packet::in_frame(frame).and_then(|(_, packet)| packet.bytes.get(12..20));
    ends.is_some_and(|ends| [&ends[..3], &ends[4..7]] == [&[198, 18, 0]; 2])
}

fn zero(frame: &mut [u8], range: Range<usize>) {
    if let Some(bytes) = frame.get_mut(range) {
        bytes.fill(0);
    }
}

/// Source port of a tunnel packet.
pub fn source_port(frame: &[u8]) -> Option<u16> {
    let (_, packet) = Packet::in_frame(frame)?;
    packet.is_tunnel().then(|| packet.word(packet.l4)).flatten()
}

/// Whether a tunnel packet has no UDP checksum: our programs made it, not the
/// kernel's device.
pub fn without_checksum(frame: &[u8]) -> bool {
    Packet::in_frame(frame)
        .is_some_and(|(_, packet)| packet.is_tunnel() && packet.word(packet.l4 + 6) == Some(0))
}

/// Addresses, protocol and ports of the unfragmented TCP or UDP packet in a
/// tunnel packet that a node made.
pub fn inner_flow(frame: &[u8]) -> Option<Vec<u8>> {
    let (l3, outer) = Packet::in_frame(frame)?;
    let eth = frame.get(l3 + outer.l4 + TUNNEL..).filter(|_| outer.is_tunnel())?;
    let (_, inner) = Packet::in_frame(eth)?;
    // Ours, put on the underlay, have the same identification twice.
    let ours = outer.word(4) == inner.word(4);
    let whole = inner.word(6)? & 0x3fff == 0 && inner.l4 == 20;
    let ports = inner.bytes.get(inner.l4..inner.l4 + 4)?;
    (!ours && whole && !inner.by_node() && matches!(inner.proto()?, TCP | UDP))
        .then(|| [&inner.bytes[9..10], &inner.bytes[12..20], ports].concat())
}

/// The innermost IPv4 packet.
pub fn innermost(frame: &[u8]) -> Option<&[u8]> {
    let (l3, packet) = Packet::in_frame(frame)?;
    let inner = frame.get(l3 + packet.l4 + TUNNEL..).filter(|_| packet.is_tunnel());
    inner.and_then(innermost).or(Some(packet.bytes))
}

/// The frame that conntrack puts together of a packet's fragments; a packet that is
/// none as it is. `None`: they do not make a whole.
pub fn whole(frames: &[Vec<u8>]) -> Option<Vec<u8>> {
    let [first, rest @ ..] = frames else { return None };
    let mut frame = first.clone();
    if rest.is_empty() {
        return Some(frame);
    }
    let (l3, header) = Packet::in_frame(first)?;
    let l4 = l3 + header.l4;
    for fragment in rest {
        let (l3, packet) = Packet::in_frame(fragment)?;
        let offset = usize::from(packet.word(6)? & 0x1fff) * 8;
        if frame.len() != l4 + offset {
            return None;
        }
        frame.extend(fragment.get(l3 + packet.l4..)?);
    }
    let total = u16::try_from(frame.len() - l3).ok()?;
    frame.get_mut(l3 + 2..l3 + 4)?.copy_from_slice(&total.to_be_bytes());
    // No fragment any more.
    *frame.get_mut(l3 + 6)? &= 0x40;
    frame[l3 + 7] = 0;
    renew_checksum(&mut frame, l3);
    Some(frame)
}

/// Source and destination of the innermost IPv4 packet.
pub fn addresses(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let packet = Packet::new(innermost(frame)?)?;
    let destination: [u8; 4] = packet.bytes.get(16..20)?.try_into().ok()?;
    Some((packet.source()?, destination.into()))
}

/// Whether a node tells of fragments of which the rest did not come in time: that
/// is a question of time.
fn tells_of_lost_fragments(frame: &[u8]) -> bool {
    let kind = |packet: Packet<'_>| {
        let at = packet.l4;
        Some((packet.proto()?, *packet.bytes.get(at)?, *packet.bytes.get(at + 1)?))
    };
    innermost(frame).and_then(Packet::new).and_then(kind) == Some((ICMP, TIME_EXCEEDED, 1))
}

/// Whether the innermost packet is an ICMP error that a node sends.
pub fn is_error(frame: &[u8]) -> bool {
    let answer = innermost(frame).and_then(Packet::new).and_then(|packet| packet.answer());
    answer.is_some_and(|kind| kind != ECHO_REPLY)
}

/// Protocol, addresses and ports of the innermost IPv4 packet, as far as conntrack
/// finds them: TCP or UDP, no fragment.
pub fn flow(frame: &[u8]) -> Option<Vec<u8>> {
    let packet = Packet::new(innermost(frame)?)?;
    let whole = packet.word(6)? & 0x3fff == 0 && packet.l4 >= 20;
    let ports = packet.bytes.get(packet.l4..packet.l4 + 4)?;
    (whole && matches!(packet.proto()?, TCP | UDP))
        .then(|| [&packet.bytes[9..10], &packet.bytes[12..20], ports].concat())
}
