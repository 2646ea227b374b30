//! Probe packets as they stand on the wire. Pure.

use std::net::Ipv4Addr;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Ipv4HeaderSlice, TcpHeader,
    TcpHeaderSlice,
};

/// Length of an IPv4 header without options, and of an ICMP header.
const HEADERS: u16 = 28;

/// What an ICMP packet says about an echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It was answered.
    Reply {
        /// By this address.
        from: Ipv4Addr,
    },
    /// It was larger than this MTU.
    TooBig {
        /// `None`: a router of the old days does not tell.
        mtu: Option<u16>,
    },
}

/// An echo request whose IP packet has this length (28 at least), without the IP
/// header.
pub(super) fn echo(id: u16, number: u16, length: u16) -> Vec<u8> {
    let payload = vec![0x5a; usize::from(length.saturating_sub(HEADERS))];
    let kind = Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: number });
    let mut bytes = Icmpv4Header::with_checksum(kind, &payload).to_bytes().to_vec();
    bytes.extend(payload);
    bytes
}

/// Id and number of the echo that an IP packet with ICMP is about, and what it says.
pub(super) fn read(packet: &[u8]) -> Option<(u16, u16, Heard)> {
    let (ip, rest) = split(packet)?;
    let icmp = Icmpv4Slice::from_slice(rest).ok()?;
    match icmp.icmp_type() {
        Icmpv4Type::EchoReply(echo) => {
            Some((echo.id, echo.seq, Heard::Reply { from: ip.source_addr() }))
        }
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu,
        }) => {
            // The packet's IP header, and 8 bytes of it at least.
            let (_, rest) = split(icmp.payload())?;
            let Icmpv4Type::EchoRequest(echo) = Icmpv4Slice::from_slice(rest).ok()?.icmp_type()
            else {
                return None;
            };
            let mtu = Some(next_hop_mtu).filter(|mtu| *mtu != 0);
            Some((echo.id, echo.seq, Heard::TooBig { mtu }))
        }
        _ => None,
    }
}

fn split(packet: &[u8]) -> Option<(Ipv4HeaderSlice<'_>, &[u8])> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let rest = packet.get(ip.slice().len()..)?;
    Some((ip, rest))
}

/// One end of a connection and the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) sport: u16,
    pub(super) dport: u16,
}

/// The first packet of a connection, with its checksum, without the IP header.
pub(super) fn syn(ends: Ends, sequence: u32) -> Vec<u8> {
    let mut tcp = TcpHeader::new(ends.sport, ends.dport, sequence, 64);
    tcp.syn = true;
    // No payload: nothing can be too long.
    let sum = tcp.calc_checksum_ipv4_raw(ends.source.octets(), ends.destination.octets(), &[]);
    tcp.checksum = sum.unwrap_or_default();
    tcp.to_bytes().to_vec()
}

/// Whether an IP packet with TCP answers that first packet, be it by a refusal.
pub(super) fn answers(packet: &[u8], ends: Ends, sequence: u32) -> bool {
    let answer = split(packet).and_then(|(ip, rest)| {
        let tcp = TcpHeaderSlice::from_slice(rest).ok()?;
        let back = ip.source_addr() == ends.destination
            && tcp.source_port() == ends.dport
            && tcp.destination_port() == ends.sport;
        Some(back && tcp.ack() && tcp.acknowledgment_number() == sequence.wrapping_add(1))
    });
    answer == Some(true)
}

#[cfg(test)]
mod tests {
    use etherparse::{IpNumber, Ipv4Header};

    use super::*;

    const PEER: [u8; 4] = [192, 0, 2, 7];

    fn packet(from: [u8; 4], protocol: IpNumber, rest: &[u8]) -> Vec<u8> {
        let header = Ipv4Header::new(rest.len() as u16, 64, protocol, from, [192, 0, 2, 1]);
        let mut bytes = header.unwrap().to_bytes().to_vec();
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn an_echo_has_the_wanted_length_and_its_reply_is_known() {
        let mut bytes = echo(7, 3, 1450);
        assert_eq!(bytes.len() + 20, 1450);
        assert_eq!(read(&packet(PEER, IpNumber::ICMP, &bytes)), None, "a request");
        bytes[0] = 0;
        let reply = read(&packet(PEER, IpNumber::ICMP, &bytes));
        assert_eq!(reply, Some((7, 3, Heard::Reply { from: PEER.into() })));
        assert_eq!(read(&[0x45]), None);
    }

    #[test]
    fn too_big_is_told_by_a_router() {
        let ours = packet([192, 0, 2, 1], IpNumber::ICMP, &echo(7, 3, 28));
        for (told, mtu) in [(1400, Some(1400)), (0, None)] {
            let kind =
                Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu: told,
                });
            let mut error = Icmpv4Header::with_checksum(kind, &ours).to_bytes().to_vec();
            error.extend(&ours);
            let heard = read(&packet([192, 0, 2, 254], IpNumber::ICMP, &error));
            assert_eq!(heard, Some((7, 3, Heard::TooBig { mtu })));
        }
    }

    #[test]
    fn a_refusal_answers_a_connection() {
        let ends = Ends {
            source: [192, 0, 2, 1].into(),
            destination: PEER.into(),
            sport: 40_000,
            dport: 9,
        };
        let first = syn(ends, u32::MAX);
        assert!(!answers(&packet(PEER, IpNumber::TCP, &first), ends, u32::MAX));
        let mut refusal = TcpHeader::new(9, 40_000, 0, 0);
        (refusal.rst, refusal.ack, refusal.acknowledgment_number) = (true, true, 0);
        let bytes = refusal.to_bytes();
        assert!(answers(&packet(PEER, IpNumber::TCP, &bytes), ends, u32::MAX));
        assert!(!answers(&packet(PEER, IpNumber::TCP, &bytes), ends, 7), "another's");
        assert!(!answers(&packet([192, 0, 2, 8], IpNumber::TCP, &bytes), ends, u32::MAX));
    }
}
