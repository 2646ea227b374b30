//! Consecutive TCP segments or UDP datagrams of one flow, joined to one
//! aggregate for the kernel: one write to the TUN device and one walk through
//! the stack instead of many. Pure.
//!
//! Only what the kernel would cut into the very same packets again is joined,
//! and only after the checksums of all parts were found right: the kernel
//! computes them anew.

use super::packet::{self, Header, TCP, UDP, fold, pseudo, sum, write_checksum};
use super::segment::{PSH, TCP_CHECKSUM, UDP_CHECKSUM, VNET, Vnet};

const ACK: u8 = 0x10;
const IP: usize = packet::IPV4;
/// Headers of an aggregate: IPv4 without options, TCP with any options or UDP.
const HEADERS: usize = IP + 60;
/// Most segments of one aggregate.
pub(super) const MOST: usize = 64;

/// What stands before the payloads of an aggregate on the TUN device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    bytes: [u8; VNET + HEADERS],
    len: usize,
    /// Where the payload begins in each of the joined packets.
    pub(super) payload_at: usize,
}

impl Head {
    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// A segment or datagram that may be joined.
#[derive(Clone, Copy)]
struct Segment<'a> {
    packet: &'a [u8],
    protocol: u8,
    payload_at: usize,
    seq: u32,
    flags: u8,
}

impl<'a> Segment<'a> {
    fn read(packet: &'a [u8]) -> Option<Self> {
        let header = Header::read(packet).ok()?;
        let packet = packet.get(..header.total_len)?;
        if header.fragment || header.header_len != IP {
            return None;
        }
        let (payload_at, seq, flags) = match header.protocol {
            TCP => {
                let tcp: &[u8; 20] = packet.get(IP..)?.first_chunk()?;
                let payload_at = IP + usize::from(tcp[12] >> 4) * 4;
                let flags = tcp[13];
                if payload_at < IP + 20 || flags & !PSH != ACK {
                    return None;
                }
                (payload_at, u32::from_be_bytes(*tcp[4..].first_chunk()?), flags)
            }
            UDP => {
                let udp: &[u8; 8] = packet.get(IP..)?.first_chunk()?;
                let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
                // Zero: the sender computed none, and none must be made up.
                let unchecked = udp[6..8] == [0, 0];
                if unchecked || len != packet.len() - IP {
                    return None;
                }
                (IP + 8, 0, 0)
            }
            _ => return None,
        };
        (payload_at < packet.len()).then_some(Self {
            packet,
            protocol: header.protocol,
            payload_at,
            seq,
            flags,
        })
    }

    fn payload_len(&self) -> usize {
        self.packet.len() - self.payload_at
    }

    fn checksums_are_right(&self) -> bool {
        let Ok(header) = Header::read(self.packet) else { return false };
        let (Some(ip), Some(rest)) = (self.packet.get(..IP), self.packet.get(IP..)) else {
            return false;
        };
        let pseudo = pseudo(header.source, header.destination, self.protocol, rest.len());
        fold(sum(ip, 0)) == 0xffff && fold(sum(rest, pseudo)) == 0xffff
    }

    /// Whether this is the segment after `last`, in a flow with `first`.
    fn continues(&self, first: &Self, last: &Self) -> bool {
        // Ports, acknowledgement, window, and the options with timestamps.
        const SAME_TCP: [(usize, usize); 4] = [(0, 4), (8, 13), (14, 16), (18, 20)];
        // Version to TOS, fragment bits and TTL, addresses. The identification
        // follows below, length and checksum differ.
        const SAME_IP: [(usize, usize); 3] = [(0, 2), (6, 10), (12, 20)];
        let same = |from: usize, to: usize| self.packet.get(from..to) == first.packet.get(from..to);
        let id = |packet: &[u8]| {
            packet.get(4..6).map(|id| id.iter().fold(0u16, |id, byte| (id << 8) | u16::from(*byte)))
        };
        // With DF set nobody needs the identification (RFC 6864).
        let unfragmented = first.packet.get(6).is_some_and(|flags| flags & 0x40 != 0);
        let in_order = id(self.packet) == id(last.packet).map(|id| id.wrapping_add(1));
        self.payload_at == first.payload_at
            && self.payload_len() <= first.payload_len()
            && last.payload_len() == first.payload_len()
            && last.flags & PSH == 0
            && SAME_IP.iter().all(|(from, to)| same(*from, *to))
            && (unfragmented || in_order)
            && if self.protocol == UDP {
                same(IP, IP + 4)
            } else {
                self.seq == last.seq.wrapping_add(last.payload_len() as u32)
                    && SAME_TCP.iter().all(|(from, to)| same(IP + from, IP + to))
                    && same(IP + 20, first.payload_at)
            }
    }
}

/// How many packets from the first on can be one aggregate: 1 if it stands
/// alone, 0 if there is none. `uso`: the kernel takes aggregates of UDP.
pub(super) fn joined<'a>(packets: impl IntoIterator<Item = &'a [u8]>, uso: bool) -> usize {
    let mut packets = packets.into_iter();
    let Some(first) = packets.next() else { return 0 };
    let first = Segment::read(first).filter(|first| uso || first.protocol == TCP);
    let Some(first) = first else { return 1 };
    let (mut last, mut count, mut len) = (first, 1, first.packet.len());
    for next in packets.take(MOST - 1) {
        let Some(next) = Segment::read(next).filter(|next| next.continues(&first, &last)) else {
            break;
        };
        len += next.payload_len();
        let trusted = next.checksums_are_right() && (count > 1 || first.checksums_are_right());
        if !trusted || len > usize::from(u16::MAX) {
            break;
        }
        last = next;
        count += 1;
    }
    count
}

/// What stands before the payloads of `count` packets, `all` bytes together,
/// of which [`joined`] said that they can be one aggregate.
pub(super) fn head(first: &[u8], last: &[u8], count: usize, all: usize) -> Option<Head> {
    let (first, last) = (Segment::read(first)?, Segment::read(last)?);
    let payload_at = first.payload_at;
    let payloads_len = all.checked_sub(payload_at * count)?;
    let mut head = Head { bytes: [0; VNET + HEADERS], len: VNET + payload_at, payload_at };
    let segment = u16::try_from(first.payload_len()).ok()?;
    let header_len = u16::try_from(payload_at).ok()?;
    let vnet = match first.protocol {
        UDP => Vnet::udp(header_len, segment),
        _ => Vnet::tcp(header_len, segment),
    };
    let (before, headers) = head.bytes.split_first_chunk_mut::<VNET>()?;
    *before = vnet.bytes();
    let headers = headers.get_mut(..payload_at)?;
    headers.copy_from_slice(first.packet.get(..payload_at)?);
    let total = payload_at + payloads_len;
    headers.get_mut(2..4)?.copy_from_slice(&u16::try_from(total).ok()?.to_be_bytes());
    let header = Header::read(first.packet).ok()?;
    let (ip, transport) = headers.split_at_mut_checked(IP)?;
    write_checksum(ip);
    // The kernel adds the rest.
    let partial = fold(pseudo(header.source, header.destination, first.protocol, total - IP));
    let at = if first.protocol == UDP {
        let len = u16::try_from(total - IP).ok()?;
        transport.get_mut(4..6)?.copy_from_slice(&len.to_be_bytes());
        UDP_CHECKSUM
    } else {
        *transport.get_mut(13)? |= last.flags & PSH;
        TCP_CHECKSUM
    };
    transport.get_mut(at..at + 2)?.copy_from_slice(&partial.to_be_bytes());
    Some(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::segment::tests::{cut, right, tcp};
    use super::*;

    fn numbered(mut packet: Vec<u8>, id: u16) -> Vec<u8> {
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        write_checksum(&mut packet[..IP]);
        packet
    }

    fn train(sizes: &[usize]) -> Vec<Vec<u8>> {
        let mut seq = 0xffff_fff0u32;
        let mut packets = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let payload: Vec<u8> = (0..*size).map(|byte| (byte + index) as u8).collect();
            packets.push(numbered(tcp(seq, ACK, &payload), 0x1234 + index as u16));
            seq = seq.wrapping_add(*size as u32);
        }
        packets
    }

    fn count(packets: &[Vec<u8>]) -> usize {
        joined(packets.iter().map(Vec::as_slice), true)
    }

    #[test]
    fn a_train_is_joined_up_to_its_short_end() {
        assert_eq!(count(&train(&[100, 100, 100])), 3);
        assert_eq!(count(&train(&[100, 100, 40, 100])), 3);
        assert_eq!(count(&train(&[100, 101])), 1);
        assert_eq!(count(&train(&[100])), 1);
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&train(&[10; 100])), MOST);
        assert_eq!(count(&train(&[1400; 60])), 46, "64 kB with the headers");
    }

    #[test]
    fn the_kernel_cuts_an_aggregate_into_the_same_packets() {
        for sizes in [&[100, 100, 100][..], &[1400, 900], &[7, 7, 1]] {
            let mut packets = train(sizes);
            packets.last_mut().unwrap()[33] |= PSH;
            let last = packets.last_mut().unwrap();
            // The flag is under the checksum.
            let sum = fold(u64::from(u16::from_be_bytes([last[36], last[37]])) + 0xffff - 8);
            last[36..38].copy_from_slice(&sum.to_be_bytes());
            assert!(right(last));
            assert_eq!(count(&packets), packets.len());
            let payloads: Vec<u8> = packets.iter().flat_map(|p| p[52..].to_vec()).collect();
            let all = packets.iter().map(Vec::len).sum();
            let head = head(&packets[0], packets.last().unwrap(), packets.len(), all).unwrap();
            let vnet = Vnet::read(head.bytes().first_chunk().unwrap());
            let mut whole = [&head.bytes()[VNET..], &payloads].concat();
            assert_eq!(cut(vnet, &mut whole).unwrap(), packets);
        }
    }

    #[test]
    fn what_differs_is_not_joined() {
        let good = train(&[50, 50]);
        let damaged = |at: usize, value: u8| {
            let mut packets = good.clone();
            packets[1][at] = value;
            let transport = packets[1][20..].to_vec();
            // With right checksums: the difference alone counts.
            packets[1][36..38].fill(0);
            let header = Header::read(&packets[1]).unwrap();
            let pseudo = pseudo(header.source, header.destination, TCP, transport.len());
            let checksum = !fold(sum(&packets[1][20..], pseudo));
            packets[1][36..38].copy_from_slice(&checksum.to_be_bytes());
            write_checksum(&mut packets[1][..20]);
            count(&packets)
        };
        assert_eq!(damaged(52, 7), 2, "the payload may be anything");
        for (at, value, what) in [
            (1, 2, "TOS"),
            (5, 9, "identification"),
            (8, 63, "TTL"),
            (15, 9, "source"),
            (21, 9, "port"),
            (27, 9, "sequence number"),
            (31, 9, "acknowledgement"),
            (33, ACK | 1, "FIN"),
            (33, ACK | 0x40, "ECE"),
            (35, 9, "window"),
            (51, 9, "timestamp"),
        ] {
            assert_eq!(damaged(at, value), 1, "{what}");
        }
    }

    #[test]
    fn a_wrong_checksum_stands_alone_and_stays_wrong() {
        for (which, at) in [(0, 60), (1, 60), (0, 11), (1, 11), (1, 37)] {
            let mut packets = train(&[50, 50]);
            packets[which][at] ^= 1;
            assert_eq!(count(&packets), 1, "packet {which}, byte {at}");
        }
    }

    fn udp(payload: &[u8], id: u16) -> Vec<u8> {
        let mut udp = vec![0x0f, 0xa0, 0, 53];
        udp.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
        udp.extend_from_slice(&[0, 0]);
        udp.extend_from_slice(payload);
        let (from, to) = ([10, 2, 1, 5], [10, 2, 2, 6]);
        let checksum = !fold(sum(&udp, pseudo(from.into(), to.into(), UDP, udp.len())));
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        numbered(super::super::packet::tests::packet(UDP, from, to, &udp), id)
    }

    #[test]
    fn datagrams_are_joined_where_the_kernel_takes_them() {
        let packets = [udp(&[1; 40], 7), udp(&[2; 40], 8), udp(&[3; 9], 9)];
        assert_eq!(count(&packets), 3);
        assert_eq!(joined(packets.iter().map(Vec::as_slice), false), 1);
        let all = packets.iter().map(Vec::len).sum();
        let payloads: Vec<u8> = packets.iter().flat_map(|p| p[28..].to_vec()).collect();
        let head = head(&packets[0], &packets[2], 3, all).unwrap();
        let vnet = Vnet::read(head.bytes().first_chunk().unwrap());
        let mut whole = [&head.bytes()[VNET..], &payloads].concat();
        assert_eq!(cut(vnet, &mut whole).unwrap(), packets);

        let mut other = udp(&[2; 40], 8);
        other[21] ^= 1;
        assert_eq!(count(&[udp(&[1; 40], 7), other]), 1, "another port");
        let mut unchecked = udp(&[2; 40], 8);
        unchecked[26..28].fill(0);
        assert_eq!(count(&[udp(&[1; 40], 7), unchecked]), 1, "without a checksum");
        let mut padded = udp(&[2; 40], 8);
        padded[25] -= 1;
        assert_eq!(count(&[udp(&[1; 40], 7), padded]), 1, "a length of its own");
        assert_eq!(count(&[udp(&[1; 40], 7), train(&[40])[0].clone()]), 1, "another protocol");
    }

    #[test]
    fn a_pushed_segment_ends_the_aggregate() {
        let first = tcp(1, ACK | PSH, &[1; 10]);
        let second = numbered(tcp(11, ACK, &[1; 10]), 0x1235);
        assert_eq!(count(&[first, second]), 1);
    }

    proptest! {
        #[test]
        fn nothing_panics_on_any_bytes(
            bytes in proptest::collection::vec(any::<u8>(), 0..120),
            at in 0usize..100, value: u8, len in 0usize..160,
        ) {
            let mut packets = train(&[50, 50]);
            packets[1][at] = value;
            packets[1].truncate(len);
            count(&packets);
            let _ = head(&packets[0], &packets[1], 2, 204);
            let _ = head(&packets[1], &bytes, 2, 70_000);
            count(&[bytes.clone(), bytes]);
        }
    }
}
