//! IPv4 packets as the proxy handles them: validation, hop count, checksums
//! and the ICMP errors about them. Pure; nothing panics on any bytes.

use std::net::Ipv4Addr;

/// Length of an IPv4 header without options.
pub(super) const IPV4: usize = 20;
/// IPv4 protocol numbers.
pub(super) const ICMP: u8 = 1;
/// TCP.
pub(super) const TCP: u8 = 6;
/// UDP.
pub(super) const UDP: u8 = 17;

/// Bytes of the offending packet's payload that an ICMP error quotes (RFC 792).
const QUOTED: usize = 8;
/// Longest ICMP error that we write: headers, and the longest quoted header.
pub(super) const ICMP_ERROR_MAX: usize = IPV4 + 8 + 60 + QUOTED;

/// The fields of an IPv4 header that the proxy needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Length of the header in bytes: 20 to 60.
    pub(super) header_len: usize,
    /// Length of the packet in bytes, as its header says.
    pub(super) total_len: usize,
    /// Source.
    pub(super) source: Ipv4Addr,
    /// Destination.
    pub(super) destination: Ipv4Addr,
    /// Protocol number.
    pub(super) protocol: u8,
    /// Not the first fragment.
    pub(super) later_fragment: bool,
    /// First fragment of several, or a later one.
    pub(super) fragment: bool,
}

/// Why bytes are no packet that can be forwarded.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub(super) enum Malformed {
    /// Shorter than a header, or than the length in its header.
    #[error("the packet is shorter than its headers say")]
    Short,
    /// The version is not 4.
    #[error("the packet is not IPv4")]
    NotIpv4,
    /// The header's length field is less than 20.
    #[error("the packet's header is shorter than 20 bytes")]
    BadHeaderLength,
}

impl Header {
    /// Reads the header of `packet`. Bytes after the packet's own length are
    /// allowed: a short packet may have been padded on its way.
    ///
    /// # Errors
    /// It is no whole IPv4 packet.
    pub(super) fn read(packet: &[u8]) -> Result<Self, Malformed> {
        let header: &[u8; IPV4] = packet.first_chunk().ok_or(Malformed::Short)?;
        if header[0] >> 4 != 4 {
            return Err(Malformed::NotIpv4);
        }
        let header_len = usize::from(header[0] & 0x0f) * 4;
        if header_len < IPV4 {
            return Err(Malformed::BadHeaderLength);
        }
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if total_len < header_len || packet.len() < total_len {
            return Err(Malformed::Short);
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        Ok(Self {
            header_len,
            total_len,
            source: address(header, 12),
            destination: address(header, 16),
            protocol: header[9],
            later_fragment: fragment & 0x1fff != 0,
            fragment: fragment & 0x3fff != 0,
        })
    }
}

fn address(header: &[u8; IPV4], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3])
}

/// One's complement sum of 16-bit words in network order, added to `sum`; an
/// odd last byte counts as if a zero followed.
pub(super) fn sum(bytes: &[u8], sum: u64) -> u64 {
    // The sum does not depend on the width of the words (RFC 1071).
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total = sum;
    for word in words {
        total += u64::from(u32::from_be_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_be_bytes(last))
}

/// A [`sum`] as 16 bits.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The loop leaves at most 16 bits.
    sum as u16
}

/// Sum of the pseudo header of TCP and UDP, for [`sum`].
pub(super) fn pseudo(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: usize) -> u64 {
    let addresses = sum(&source.octets(), sum(&destination.octets(), 0));
    addresses + u64::from(protocol) + len as u64
}

/// Counts the packet's hops down by one and puts its checksum right by the
/// difference alone (RFC 1624), so that a wrong checksum stays wrong. `false`:
/// the packet has reached its last hop and is as it was.
pub(super) fn decrement_ttl(packet: &mut [u8]) -> bool {
    let Some(header) = packet.first_chunk_mut::<IPV4>() else { return false };
    if header[8] <= 1 {
        return false;
    }
    header[8] -= 1;
    let old = u16::from_be_bytes([header[10], header[11]]);
    let (new, carry) = old.overflowing_add(0x0100);
    let new = new.wrapping_add(u16::from(carry));
    header[10..12].copy_from_slice(&new.to_be_bytes());
    true
}

/// Writes the header's checksum anew.
pub(super) fn write_checksum(header: &mut [u8]) {
    if let Some(field) = header.get_mut(10..12) {
        field.fill(0);
    }
    let checksum = !fold(sum(header, 0));
    if let Some(field) = header.get_mut(10..12) {
        field.copy_from_slice(&checksum.to_be_bytes());
    }
}

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IcmpError {
    /// Nobody has the destination's subnet: type 3, code 0.
    NetUnreachable,
    /// The last hop is reached: type 11, code 0.
    TimeExceeded,
}

/// The ICMP error from `own` about `packet`, written to `out`; its length.
///
/// None about what RFC 1122 (3.2.2) forbids to answer: ICMP errors, later
/// fragments, packets from or to more than one host.
pub(super) fn icmp_error(
    error: IcmpError,
    own: Ipv4Addr,
    packet: &[u8],
    out: &mut [u8; ICMP_ERROR_MAX],
) -> Option<usize> {
    let header = Header::read(packet).ok()?;
    let several = |address: Ipv4Addr| address.is_multicast() || address.is_broadcast();
    let (source, destination) = (header.source, header.destination);
    if header.later_fragment
        || several(destination)
        || several(source)
        || source.is_unspecified()
        || source.is_loopback()
    {
        return None;
    }
    let payload = packet.get(header.header_len..header.total_len)?;
    if header.protocol == ICMP && !is_query(payload.first().copied()?) {
        return None;
    }
    let quoted = header.header_len + payload.len().min(QUOTED);
    let len = IPV4 + 8 + quoted;
    let answer = out.get_mut(..len)?;
    answer.fill(0);
    let (ip, icmp) = answer.split_at_mut_checked(IPV4)?;
    ip[0] = 0x45;
    // At most ICMP_ERROR_MAX.
    ip[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = ICMP;
    ip[12..16].copy_from_slice(&own.octets());
    ip[16..20].copy_from_slice(&source.octets());
    write_checksum(ip);
    icmp[0] = match error {
        IcmpError::NetUnreachable => 3,
        IcmpError::TimeExceeded => 11,
    };
    icmp.get_mut(8..)?.copy_from_slice(packet.get(..quoted)?);
    let checksum = !fold(sum(icmp, 0));
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    Some(len)
}

/// Echo, timestamp, information and address mask, router discovery: what may
/// be answered with an error.
fn is_query(icmp_type: u8) -> bool {
    matches!(icmp_type, 0 | 8 | 9 | 10 | 13..=18)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A whole packet with a right header checksum.
    pub(crate) fn packet(protocol: u8, source: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV4];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&((IPV4 + payload.len()) as u16).to_be_bytes());
        packet[4..6].copy_from_slice(&0x1234u16.to_be_bytes());
        packet[8] = 64;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&to);
        write_checksum(&mut packet);
        packet.extend_from_slice(payload);
        packet
    }

    fn right(header: &[u8]) -> bool {
        fold(sum(header, 0)) == 0xffff
    }

    const A: [u8; 4] = [10, 2, 1, 5];
    const B: [u8; 4] = [10, 2, 77, 3];
    const OWN: Ipv4Addr = Ipv4Addr::new(10, 2, 1, 0);

    #[test]
    fn reads_what_the_header_says() {
        let mut bytes = packet(UDP, A, B, &[0; 30]);
        bytes.extend_from_slice(&[0xff; 7]);
        let header = Header::read(&bytes).unwrap();
        assert_eq!((header.header_len, header.total_len), (20, 50));
        assert_eq!((header.source, header.destination), (A.into(), B.into()));
        assert_eq!((header.protocol, header.fragment), (UDP, false));
    }

    #[test]
    fn refuses_what_is_no_whole_packet() {
        let good = packet(UDP, A, B, &[0; 30]);
        assert_eq!(Header::read(&good[..49]), Err(Malformed::Short));
        assert_eq!(Header::read(&good[..19]), Err(Malformed::Short));
        assert_eq!(Header::read(&[]), Err(Malformed::Short));
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            Header::read(&bad)
        };
        assert_eq!(with(0, 0x65), Err(Malformed::NotIpv4));
        assert_eq!(with(0, 0x44), Err(Malformed::BadHeaderLength));
        assert_eq!(with(0, 0x4f), Err(Malformed::Short));
        assert_eq!(with(3, 19), Err(Malformed::Short));
    }

    #[test]
    fn the_last_hop_is_not_forwarded() {
        for ttl in [0, 1] {
            let mut bytes = packet(UDP, A, B, &[1, 2]);
            bytes[8] = ttl;
            write_checksum(&mut bytes[..IPV4]);
            let before = bytes.clone();
            assert!(!decrement_ttl(&mut bytes));
            assert_eq!(bytes, before);
        }
        assert!(!decrement_ttl(&mut [0x45; 19]));
    }

    #[test]
    fn errors_quote_the_header_and_eight_bytes() {
        let about = packet(UDP, A, B, &[7; 30]);
        let mut out = [0; ICMP_ERROR_MAX];
        let len = icmp_error(IcmpError::NetUnreachable, OWN, &about, &mut out).unwrap();
        let answer = &out[..len];
        let header = Header::read(answer).unwrap();
        assert_eq!((header.source, header.destination), (OWN, A.into()));
        assert_eq!((header.protocol, header.total_len), (ICMP, 56));
        assert!(right(&answer[..IPV4]) && right(&answer[IPV4..]));
        assert_eq!(answer[20..22], [3, 0]);
        assert_eq!(answer[28..], about[..28]);
        icmp_error(IcmpError::TimeExceeded, OWN, &about, &mut out).unwrap();
        assert_eq!(out[20..22], [11, 0]);
    }

    #[test]
    fn short_payloads_and_long_headers_are_quoted_whole() {
        let mut out = [0; ICMP_ERROR_MAX];
        let short = packet(UDP, A, B, &[7; 3]);
        let len = icmp_error(IcmpError::NetUnreachable, OWN, &short, &mut out).unwrap();
        assert_eq!(out[28..len], short[..23]);
        let mut long = packet(UDP, A, B, &[0; 60]);
        long[0] = 0x4f;
        assert_eq!(
            icmp_error(IcmpError::NetUnreachable, OWN, &long, &mut out),
            Some(ICMP_ERROR_MAX)
        );
    }

    #[test]
    fn some_packets_are_never_answered() {
        let mut out = [0; ICMP_ERROR_MAX];
        let mut answered =
            |packet: &[u8]| icmp_error(IcmpError::NetUnreachable, OWN, packet, &mut out).is_some();
        assert!(answered(&packet(ICMP, A, B, &[8, 0, 0, 0])));
        for icmp_type in [3, 4, 5, 11, 12, 40, 255] {
            assert!(!answered(&packet(ICMP, A, B, &[icmp_type, 0, 0, 0])), "{icmp_type}");
        }
        assert!(!answered(&packet(ICMP, A, B, &[])));
        let mut fragment = packet(UDP, A, B, &[0; 16]);
        fragment[7] = 1;
        assert!(!answered(&fragment));
        fragment[6..8].copy_from_slice(&[0x20, 0]);
        assert!(answered(&fragment), "the first fragment");
        assert!(!answered(&packet(UDP, [0; 4], B, &[0; 8])));
        assert!(!answered(&packet(UDP, [127, 0, 0, 1], B, &[0; 8])));
        assert!(!answered(&packet(UDP, A, [224, 0, 0, 1], &[0; 8])));
        assert!(!answered(&packet(UDP, [255; 4], B, &[0; 8])));
    }

    proptest! {
        #[test]
        fn hops_keep_a_right_checksum_right(
            source: [u8; 4], to: [u8; 4], id: u16, tos: u8, ttl in 2u8..,
        ) {
            let mut bytes = packet(UDP, source, to, &[]);
            bytes[1] = tos;
            bytes[4..6].copy_from_slice(&id.to_be_bytes());
            bytes[8] = ttl;
            write_checksum(&mut bytes);
            prop_assert!(decrement_ttl(&mut bytes));
            prop_assert_eq!(bytes[8], ttl - 1);
            prop_assert!(right(&bytes));
        }

        #[test]
        fn a_wrong_checksum_stays_wrong(wrong in 1u16..0xffff, ttl in 2u8..) {
            let mut bytes = packet(UDP, A, B, &[]);
            bytes[8] = ttl;
            write_checksum(&mut bytes);
            let field = u16::from_be_bytes([bytes[10], bytes[11]]).wrapping_add(wrong);
            prop_assume!(field != 0xffff && field != 0);
            bytes[10..12].copy_from_slice(&field.to_be_bytes());
            prop_assume!(!right(&bytes));
            decrement_ttl(&mut bytes);
            prop_assert!(!right(&bytes));
        }

        #[test]
        fn sums_do_not_depend_on_where_bytes_are_split(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..50,
        ) {
            let at = (at * 2).min(bytes.len() & !1);
            let parts = sum(&bytes[at..], sum(&bytes[..at], 0));
            prop_assert_eq!(fold(parts) % 0xffff, fold(sum(&bytes, 0)) % 0xffff);
        }

        #[test]
        fn nothing_panics_on_any_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let mut out = [0; ICMP_ERROR_MAX];
            let _ = Header::read(&bytes);
            let _ = icmp_error(IcmpError::TimeExceeded, OWN, &bytes, &mut out);
            write_checksum(&mut bytes);
            let _ = decrement_ttl(&mut bytes);
        }
    }
}
