//! Which packets conntrack calls invalid by what stands in them alone
//! (`udp_error` and `tcp_error` in the kernel). Pure.

use etherparse::checksum::Sum16BitWords;

/// Why a packet is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invalid {
    /// Length, data offset or flags cannot be.
    Malformed,
    /// The TCP or UDP checksum is wrong.
    Checksum,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;

/// What conntrack has against a whole IPv4 packet that comes to it; `None`:
/// nothing, or it never comes there.
pub fn invalid(packet: &[u8]) -> Option<Invalid> {
    let header = packet.get(..20)?;
    let start = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if header[0] >> 4 != 4 || start < 20 || fragment {
        return None;
    }
    let segment = packet.get(start..total)?;
    match header[9] {
        TCP => tcp(segment, &header[12..20]),
        UDP => udp(segment, &header[12..20]),
        _ => None,
    }
}

fn udp(segment: &[u8], addresses: &[u8]) -> Option<Invalid> {
    let Some(header) = segment.get(..8) else { return Some(Invalid::Malformed) };
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if length > segment.len() || length < 8 {
        return Some(Invalid::Malformed);
    }
    // Summed up with the length that the IP header gives.
    let there = header[6..8] != [0, 0];
    (there && wrong(segment, addresses, UDP)).then_some(Invalid::Checksum)
}

fn tcp(segment: &[u8], addresses: &[u8]) -> Option<Invalid> {
    let Some(header) = segment.get(..20) else { return Some(Invalid::Malformed) };
    let offset = usize::from(header[12] >> 4) * 4;
    if offset < 20 || offset > segment.len() {
        return Some(Invalid::Malformed);
    }
    if wrong(segment, addresses, TCP) {
        return Some(Invalid::Checksum);
    }
    let flags = header[13] & (FIN | SYN | RST | ACK | URG);
    let known =
        [SYN, SYN | URG, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG];
    (!known.contains(&flags)).then_some(Invalid::Malformed)
}

fn wrong(segment: &[u8], addresses: &[u8], protocol: u8) -> bool {
    let length = u16::try_from(segment.len()).unwrap_or(u16::MAX);
    Sum16BitWords::new()
        .add_slice(addresses)
        .add_2bytes([0, protocol])
        .add_2bytes(length.to_be_bytes())
        .add_slice(segment)
        .ones_complement()
        != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draft::{Draft, Edit, Transport};
    use crate::generate::Generator;
    use crate::mode::Mode;
    use crate::place::Sender;
    use crate::world::{LEFT, RIGHT};
    use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, TcpHeader};

    fn draft(tcp: bool, edits: Vec<Edit>) -> Vec<u8> {
        let protocol = if tcp { IpNumber::TCP } else { IpNumber::UDP };
        let (source, destination) = (LEFT.pod().octets(), RIGHT.pod().octets());
        let mut segment = TcpHeader::new(1, 2, 3, 4);
        segment.ack = true;
        let draft = Draft {
            eth: Ethernet2Header {
                source: LEFT.pod_mac(),
                destination: LEFT.gateway_mac(),
                ether_type: EtherType::IPV4,
            },
            tags: Vec::new(),
            ip: Ipv4Header::new(0, 64, protocol, source, destination).unwrap(),
            transport: if tcp { Transport::Tcp(segment) } else { Transport::Udp(1, 2) },
            payload: vec![1, 2, 3],
            edits,
        };
        draft.frames().swap_remove(0)[14..].to_vec()
    }

    #[test]
    fn plain_packets_are_valid() {
        for mode in Mode::ALL {
            let plain = Generator::new(mode, 11).take(3_000).filter(|step| step.oddities.none());
            for step in plain.filter(|step| matches!(step.sender, Sender::Pod(_))) {
                assert_eq!(invalid(&step.frames[0][14..]), None, "{step:?}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let transport = |at, bytes: &[u8]| vec![Edit::Transport { at, bytes: bytes.to_vec() }];
        for tcp in [true, false] {
            assert_eq!(invalid(&draft(tcp, Vec::new())), None);
            let wrong = draft(tcp, vec![Edit::TransportChecksum(4)]);
            assert_eq!(invalid(&wrong), Some(Invalid::Checksum));
            let short = draft(tcp, vec![Edit::TotalLen(25)]);
            assert_eq!(invalid(&short), Some(Invalid::Malformed));
            // Longer than the frame: the IP layer drops it.
            assert_eq!(invalid(&draft(tcp, vec![Edit::TotalLen(100)])), None);
        }
        assert_eq!(invalid(&draft(false, transport(6, &[0, 0]))), None);
        for length in [0_u16, 7, 12] {
            let bytes = length.to_be_bytes();
            assert_eq!(invalid(&draft(false, transport(4, &bytes))), Some(Invalid::Malformed));
        }
        let shorter = invalid(&draft(false, transport(4, &[0, 10])));
        assert_eq!(shorter, Some(Invalid::Checksum));
        for offset in [0x40, 0x70] {
            let packet = draft(true, transport(12, &[offset]));
            assert_eq!(invalid(&packet), Some(Invalid::Malformed));
        }
    }
}
