//! Against etherparse, and against the kernel's formulas written out.

use etherparse::{IpNumber, Ipv4Header, PacketHeaders, TransportHeader};
use proptest::prelude::*;

use super::*;

fn outer() -> impl Strategy<Value = Outer> {
    (
        any::<([u8; 4], [u8; 4], u16, [u8; 2])>(),
        0u32..1 << 24,
        any::<(u16, u8, u8, [u8; 6], [u8; 6])>(),
        20u16..60_000,
    )
        .prop_map(
            |(
                (source, destination, source_port, port),
                vni,
                (id, ttl, inner_tos, vtep_dst, vtep_src),
                inner_len,
            )| Outer {
                source,
                destination,
                source_port,
                port,
                vni,
                id,
                ttl,
                inner_tos,
                inner_len,
                vtep_dst,
                vtep_src,
                gbp: 0,
            },
        )
}

proptest! {
    #[test]
    fn outer_headers_read_back(outer in outer()) {
        let headers = encap_headers(&outer);
        let mut packet = headers.to_vec();
        packet.resize(ENCAP_LEN + usize::from(outer.inner_len), 0);
        let parsed = PacketHeaders::from_ip_slice(&packet).unwrap();
        let Some(etherparse::NetHeaders::Ipv4(ip, _)) = parsed.net else { panic!("not IPv4") };
        prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        prop_assert_eq!((ip.source, ip.destination), (outer.source, outer.destination));
        prop_assert_eq!((ip.time_to_live, ip.protocol), (outer.ttl, IpNumber::UDP));
        prop_assert_eq!((ip.dont_fragment, ip.more_fragments), (false, false));
        prop_assert_eq!(ip.identification, outer.id);
        prop_assert_eq!(u8::from(ip.dscp), 0);
        prop_assert_eq!(usize::from(ip.total_len), packet.len());
        let Some(TransportHeader::Udp(udp)) = parsed.transport else { panic!("not UDP") };
        prop_assert_eq!(udp.source_port, outer.source_port);
        prop_assert_eq!(udp.destination_port.to_be_bytes(), outer.port);
        prop_assert_eq!(usize::from(udp.length), packet.len() - IPV4_LEN);
        prop_assert_eq!(udp.checksum, 0);
        let vxlan: [u8; 8] = headers[28..36].try_into().unwrap();
        prop_assert!(is_vni(vxlan, outer.vni));
        prop_assert!(!is_vni(vxlan, outer.vni ^ 1));
        prop_assert_eq!(vxlan[0], 0x08);
        prop_assert_eq!(&headers[36..42], &outer.vtep_dst);
        prop_assert_eq!(&headers[42..48], &outer.vtep_src);
    }

    #[test]
    fn a_hop_keeps_the_checksum_right(
        source in any::<[u8; 4]>(),
        destination in any::<[u8; 4]>(),
        ttl in 1u8..,
        id in any::<u16>(),
        length in 0u16..1400,
    ) {
        let mut ip = Ipv4Header::new(length, ttl, IpNumber::UDP, source, destination).unwrap();
        ip.identification = id;
        ip.header_checksum = ip.calc_header_checksum();
        let before = ip.header_checksum;
        let (less, check) = decrement_ttl(ttl, before.to_be_bytes());
        ip.time_to_live = less;
        prop_assert_eq!(less, ttl - 1);
        prop_assert_eq!(u16::from_be_bytes(check), ip.calc_header_checksum());
    }

    /// `udp_flow_src_port` in include/net/udp.h, Linux 6.18.
    #[test]
    fn source_ports_are_the_kernels(hash in any::<u32>(), a in 1u16.., b in 1u16..) {
        let (min, max) = (a.min(b), a.max(b));
        let mut mixed = hash;
        mixed ^= mixed << 16;
        let expected = ((u64::from(mixed) * u64::from(max - min)) >> 32) as u32 + u32::from(min);
        let port = source_port(hash, min, max);
        prop_assert_eq!(u32::from(port), expected);
        prop_assert!(port >= min && port <= max);
    }
}

#[test]
fn ecn_follows_rfc_6040() {
    // Inner Not-ECT, ECT(1), ECT(0), CE; DSCP stays inside.
    assert_eq!([0u8, 1, 2, 3].map(outer_tos), [0, 1, 2, 2]);
    assert_eq!(outer_tos(0xb8 | 2), 2);
    for inner in 0..4 {
        assert!(!decap_changes_ecn(0, inner));
        assert!(!decap_changes_ecn(2, inner));
        assert_eq!(decap_changes_ecn(1, inner), inner != 1);
        assert!(decap_changes_ecn(3, inner));
    }
}

#[test]
fn fragments_are_told_apart() {
    assert!(!is_fragment(&fragment([0x40, 0])), "DF alone");
    assert!(is_fragment(&fragment([0x20, 0])) && !is_later_fragment(&fragment([0x20, 0])));
    assert!(is_fragment(&fragment([0, 1])) && is_later_fragment(&fragment([0, 1])));
}

fn fragment(frags: [u8; 2]) -> Ipv4Hdr {
    let mut bytes = [0; IPV4_LEN];
    bytes[0] = 0x45;
    bytes[6..8].copy_from_slice(&frags);
    ipv4(bytes)
}
