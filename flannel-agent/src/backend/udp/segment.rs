//! Aggregates that the kernel hands over whole (TSO, USO) with the header that
//! says how to cut them, and the packets that they stand for. Pure.

use super::packet::{self, Header, TCP, UDP, fold, pseudo, sum, write_checksum};

/// Length of `struct virtio_net_hdr`, which stands before each packet on the
/// TUN device.
pub(super) const VNET: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_UDP: u8 = 5;
/// The aggregate has CWR set in its first segment alone.
const GSO_ECN: u8 = 0x80;

pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Where the TCP checksum is in its header.
pub(super) const TCP_CHECKSUM: usize = 16;
/// Where the UDP checksum is in its header.
pub(super) const UDP_CHECKSUM: usize = 6;

/// The kernel's header of a packet on the TUN device, in the machine's byte
/// order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vnet {
    flags: u8,
    gso: u8,
    header_len: u16,
    segment: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Vnet {
    /// From the device.
    pub(super) fn read(bytes: &[u8; VNET]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso: bytes[1],
            header_len: word(2),
            segment: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    /// For the device.
    pub(super) fn bytes(&self) -> [u8; VNET] {
        let mut bytes = [0; VNET];
        bytes[0] = self.flags;
        bytes[1] = self.gso;
        let words = [self.header_len, self.segment, self.checksum_start, self.checksum_offset];
        for (place, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Of TCP segments with `segment` bytes of payload each (the last may have
    /// fewer), behind `header_len` bytes of headers without IP options.
    pub(super) fn tcp(header_len: u16, segment: u16) -> Self {
        Self {
            flags: NEEDS_CHECKSUM,
            gso: GSO_TCP4,
            header_len,
            segment,
            checksum_start: packet::IPV4 as u16,
            checksum_offset: TCP_CHECKSUM as u16,
        }
    }

    /// The same of UDP datagrams.
    pub(super) fn udp(header_len: u16, segment: u16) -> Self {
        let checksum_offset = UDP_CHECKSUM as u16;
        Self { gso: GSO_UDP, checksum_offset, ..Self::tcp(header_len, segment) }
    }
}

/// The kernel's header does not fit its packet, or asks for what was never
/// offered to it.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the header of an aggregate does not fit its packet")]
pub(super) struct BadAggregate;

/// The packets that one read from the TUN device stands for.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    packet: &'a [u8],
    header_len: usize,
    payload_at: usize,
    segment: usize,
    protocol: u8,
    /// Bytes of payload that are done.
    done: usize,
    count: u16,
    over: bool,
}

impl<'a> Segments<'a> {
    /// `header` is the packet's, already read. A checksum that the kernel left
    /// to us is completed in place.
    ///
    /// # Errors
    /// Header and packet contradict each other.
    pub(super) fn new(
        vnet: Vnet,
        header: &Header,
        packet: &'a mut [u8],
    ) -> Result<Segments<'a>, BadAggregate> {
        let packet = packet.get_mut(..header.total_len).ok_or(BadAggregate)?;
        let whole = Self {
            packet: &[],
            header_len: header.header_len,
            payload_at: header.total_len,
            segment: 0,
            protocol: header.protocol,
            done: 0,
            count: 0,
            over: false,
        };
        let protocol = match vnet.gso & !GSO_ECN {
            GSO_NONE => {
                if vnet.flags & NEEDS_CHECKSUM != 0 {
                    complete(vnet, packet).ok_or(BadAggregate)?;
                }
                return Ok(Self { packet, ..whole });
            }
            GSO_TCP4 => TCP,
            GSO_UDP => UDP,
            _ => return Err(BadAggregate),
        };
        let transport = packet.get(header.header_len..).ok_or(BadAggregate)?;
        let transport_len = match protocol {
            TCP => usize::from(*transport.get(12).ok_or(BadAggregate)? >> 4) * 4,
            _ => 8,
        };
        let shortest = if protocol == TCP { 20 } else { 8 };
        let payload_at = header.header_len + transport_len;
        if header.protocol != protocol
            || header.fragment
            || transport_len < shortest
            || payload_at > packet.len()
            || vnet.segment == 0
        {
            return Err(BadAggregate);
        }
        Ok(Self { packet, payload_at, segment: usize::from(vnet.segment), ..whole })
    }

    /// Length of the longest packet that [`next_into`](Self::next_into) writes.
    pub(super) fn longest(&self) -> usize {
        if self.segment == 0 {
            self.packet.len()
        } else {
            self.packet.len().min(self.payload_at + self.segment)
        }
    }

    /// Writes the next packet; its length. `None` after the last, or if `out`
    /// is shorter than [`longest`](Self::longest).
    pub(super) fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.over || out.len() < self.longest() {
            return None;
        }
        if self.segment == 0 {
            self.over = true;
            out.get_mut(..self.packet.len())?.copy_from_slice(self.packet);
            return Some(self.packet.len());
        }
        let rest = self.packet.get(self.payload_at + self.done..)?;
        let part = rest.get(..self.segment).unwrap_or(rest);
        let len = self.payload_at + part.len();
        let out = out.get_mut(..len)?;
        let (headers, payload) = out.split_at_mut_checked(self.payload_at)?;
        headers.copy_from_slice(self.packet.get(..self.payload_at)?);
        payload.copy_from_slice(part);
        let last = part.len() == rest.len();
        self.finish(out, last)?;
        self.done += part.len();
        self.count = self.count.wrapping_add(1);
        self.over = last;
        Some(len)
    }

    /// Puts the copied headers right.
    fn finish(&self, out: &mut [u8], last: bool) -> Option<()> {
        let len = out.len();
        let (ip, transport) = out.split_at_mut_checked(self.header_len)?;
        ip.get_mut(2..4)?.copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
        let id = u16::from_be_bytes(*ip.get(4..)?.first_chunk()?).wrapping_add(self.count);
        ip.get_mut(4..6)?.copy_from_slice(&id.to_be_bytes());
        write_checksum(ip);
        let at = if self.protocol == TCP {
            let seq = transport.get_mut(4..8)?;
            let first = u32::from_be_bytes(*seq.first_chunk()?);
            seq.copy_from_slice(&first.wrapping_add(self.done as u32).to_be_bytes());
            let flags = transport.get_mut(13)?;
            if !last {
                *flags &= !(FIN | PSH);
            }
            if self.count > 0 {
                *flags &= !CWR;
            }
            TCP_CHECKSUM
        } else {
            let len = u16::try_from(transport.len()).ok()?;
            transport.get_mut(4..6)?.copy_from_slice(&len.to_be_bytes());
            UDP_CHECKSUM
        };
        transport.get_mut(at..at + 2)?.fill(0);
        let source: [u8; 4] = *ip.get(12..)?.first_chunk()?;
        let destination: [u8; 4] = *ip.get(16..)?.first_chunk()?;
        let pseudo = pseudo(source.into(), destination.into(), self.protocol, transport.len());
        let mut checksum = !fold(sum(transport, pseudo));
        if self.protocol == UDP && checksum == 0 {
            checksum = 0xffff;
        }
        transport.get_mut(at..at + 2)?.copy_from_slice(&checksum.to_be_bytes());
        Some(())
    }
}

/// The sum from `checksum_start` on, which holds that of the pseudo header
/// already, becomes the checksum.
fn complete(vnet: Vnet, packet: &mut [u8]) -> Option<()> {
    let covered = packet.get_mut(usize::from(vnet.checksum_start)..)?;
    let at = usize::from(vnet.checksum_offset);
    let mut checksum = !fold(sum(covered, 0));
    // Zero would say "none" in UDP, and the two zeros are the same to TCP.
    if checksum == 0 {
        checksum = 0xffff;
    }
    covered.get_mut(at..at + 2)?.copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::super::packet::tests::packet;
    use super::*;

    const A: [u8; 4] = [10, 2, 1, 5];
    const B: [u8; 4] = [10, 2, 2, 6];

    /// A TCP packet with 12 bytes of options and right checksums.
    pub(crate) fn tcp(seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut tcp = vec![0; 32];
        tcp[0..2].copy_from_slice(&4000u16.to_be_bytes());
        tcp[2..4].copy_from_slice(&80u16.to_be_bytes());
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&7u32.to_be_bytes());
        tcp[12] = 8 << 4;
        tcp[13] = flags;
        tcp[14..16].copy_from_slice(&500u16.to_be_bytes());
        tcp[20..32].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]);
        tcp.extend_from_slice(payload);
        let sum = sum(&tcp, pseudo(A.into(), B.into(), TCP, tcp.len()));
        tcp[16..18].copy_from_slice(&(!fold(sum)).to_be_bytes());
        packet(TCP, A, B, &tcp)
    }

    pub(crate) fn right(packet: &[u8]) -> bool {
        let header = Header::read(packet).unwrap();
        let transport = &packet[header.header_len..header.total_len];
        let pseudo = pseudo(header.source, header.destination, header.protocol, transport.len());
        fold(sum(&packet[..header.header_len], 0)) == 0xffff
            && fold(sum(transport, pseudo)) == 0xffff
    }

    pub(crate) fn cut(vnet: Vnet, packet: &mut [u8]) -> Result<Vec<Vec<u8>>, BadAggregate> {
        let header = Header::read(packet).unwrap();
        let mut segments = Segments::new(vnet, &header, packet)?;
        let mut out = vec![0; segments.longest()];
        let mut all = Vec::new();
        while let Some(len) = segments.next_into(&mut out) {
            all.push(out[..len].to_vec());
        }
        Ok(all)
    }

    #[test]
    fn the_kernels_header_goes_through_bytes_and_back() {
        let vnet = Vnet::tcp(52, 1420);
        assert_eq!(Vnet::read(&vnet.bytes()), vnet);
        assert_eq!(vnet.bytes()[..2], [1, 1]);
        assert_eq!(vnet.bytes()[2..4], 52u16.to_ne_bytes());
        assert_eq!(vnet.bytes()[8..], 16u16.to_ne_bytes());
    }

    #[test]
    fn a_tcp_aggregate_becomes_its_segments() {
        let payload: Vec<u8> = (0..=250).collect();
        let mut whole = tcp(0xffff_ffc0, 0x10 | PSH | FIN | CWR, &payload);
        let vnet = Vnet { gso: GSO_TCP4 | GSO_ECN, ..Vnet::tcp(52, 100) };
        let all = cut(vnet, &mut whole).unwrap();
        let lengths: Vec<usize> = all.iter().map(Vec::len).collect();
        assert_eq!(lengths, [152, 152, 103]);
        assert!(all.iter().all(|packet| right(packet)));
        let flags: Vec<u8> = all.iter().map(|packet| packet[33]).collect();
        assert_eq!(flags, [0x10 | CWR, 0x10, 0x10 | PSH | FIN]);
        let seqs: Vec<u32> =
            all.iter().map(|p| u32::from_be_bytes(*p[24..].first_chunk().unwrap())).collect();
        assert_eq!(seqs, [0xffff_ffc0, 0x24, 0x88]);
        let ids: Vec<u16> = all.iter().map(|p| u16::from_be_bytes([p[4], p[5]])).collect();
        assert_eq!(ids, [0x1234, 0x1235, 0x1236]);
        let joined: Vec<u8> = all.iter().flat_map(|packet| packet[52..].to_vec()).collect();
        assert_eq!(joined, payload);
    }

    #[test]
    fn a_udp_aggregate_becomes_datagrams() {
        let mut udp = vec![0x0f, 0xa0, 0, 53, 0, 0, 0, 0];
        udp.extend_from_slice(&[9; 70]);
        let mut whole = packet(UDP, A, B, &udp);
        let vnet = Vnet { flags: 1, gso: GSO_UDP, segment: 32, ..Vnet::default() };
        let all = cut(vnet, &mut whole).unwrap();
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [60, 60, 34]);
        assert!(all.iter().all(|packet| right(packet)));
        assert_eq!(all[2][24..26], 14u16.to_be_bytes());
    }

    #[test]
    fn a_checksum_that_was_left_to_us_is_completed() {
        let expected = tcp(1, 0x10, b"payload");
        let mut partial = expected.clone();
        let len = partial.len() - 20;
        let start = fold(pseudo(A.into(), B.into(), TCP, len));
        partial[36..38].copy_from_slice(&start.to_be_bytes());
        let vnet = Vnet { gso: GSO_NONE, ..Vnet::tcp(0, 0) };
        assert_eq!(cut(vnet, &mut partial).unwrap(), [expected]);
    }

    #[test]
    fn other_packets_pass_as_they_are() {
        let bytes = packet(UDP, A, B, &[1, 2, 3]);
        assert_eq!(cut(Vnet::default(), &mut bytes.clone()).unwrap(), [bytes]);
    }

    #[test]
    fn contradictions_are_refused() {
        let good = tcp(1, 0x10, &[0; 100]);
        let refused = |vnet: Vnet, bytes: &[u8]| cut(vnet, &mut bytes.to_vec()).is_err();
        assert!(!refused(Vnet::tcp(52, 50), &good));
        assert!(refused(Vnet::tcp(52, 0), &good));
        assert!(refused(Vnet { gso: GSO_UDP, ..Vnet::tcp(52, 50) }, &good));
        assert!(refused(Vnet { gso: 4, ..Vnet::tcp(52, 50) }, &good));
        let far = Vnet { gso: GSO_NONE, checksum_start: 149, ..Vnet::tcp(0, 0) };
        assert!(refused(far, &good));
        assert!(refused(Vnet { checksum_start: 500, ..far }, &good));
        let mut fragment = good.clone();
        fragment[6] = 0x20;
        assert!(refused(Vnet::tcp(52, 50), &fragment));
        let mut short = good.clone();
        short[32] = 4 << 4;
        assert!(refused(Vnet::tcp(52, 50), &short));
        assert!(refused(Vnet::tcp(52, 50), &packet(TCP, A, B, &[0; 12])));
    }

    proptest! {
        #[test]
        fn nothing_panics_on_any_bytes(
            vnet: [u8; VNET], gso in 0u8..6, protocol in prop_oneof![Just(TCP), Just(UDP)],
            payload in proptest::collection::vec(any::<u8>(), 0..120),
            bytes in proptest::collection::vec(any::<u8>(), 0..120),
        ) {
            let vnet = Vnet { gso, ..Vnet::read(&vnet) };
            let _ = cut(vnet, &mut packet(protocol, A, B, &payload));
            let mut bytes = bytes;
            if let Ok(header) = Header::read(&bytes) {
                let _ = Segments::new(vnet, &header, &mut bytes);
            }
        }

        #[test]
        fn segments_join_to_the_whole(
            payload in proptest::collection::vec(any::<u8>(), 1..600), segment in 1u16..200,
        ) {
            let all = cut(Vnet::tcp(52, segment), &mut tcp(5, 0x10, &payload)).unwrap();
            prop_assert!(all.iter().all(|packet| right(packet)));
            let joined: Vec<u8> = all.iter().flat_map(|packet| packet[52..].to_vec()).collect();
            prop_assert_eq!(joined, payload);
        }
    }
}
