//! Headers as they stand on the wire, and the arithmetic on them. Pure.

#[cfg(test)]
mod tests;

use network_types::eth::EthHdr;
use network_types::ip::Ipv4Hdr;
use network_types::udp::UdpHdr;
use network_types::vxlan::VxlanHdr;
use zerocopy::transmute;

/// Length of an Ethernet header in bytes.
pub const ETH_LEN: usize = EthHdr::LEN;
/// Length of an IPv4 header without options in bytes.
pub const IPV4_LEN: usize = Ipv4Hdr::LEN;
/// Length of a UDP header in bytes.
pub const UDP_LEN: usize = UdpHdr::LEN;
/// Length of a VXLAN header in bytes.
pub const VXLAN_LEN: usize = VxlanHdr::LEN;
/// What encapsulation adds in front of the inner IP packet, behind the outer
/// Ethernet header: IPv4, UDP, VXLAN and the inner Ethernet header.
pub const ENCAP_LEN: usize = IPV4_LEN + UDP_LEN + VXLAN_LEN + ETH_LEN;

/// EtherType of IPv4, network byte order.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// Length of a VLAN tag in bytes.
pub const TAG_LEN: usize = 4;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// Where the checksum stands in a TCP header.
pub const TCP_CHECK: usize = 16;
/// Where the checksum stands in a UDP header.
pub const UDP_CHECK: usize = 6;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// The smallest Ethernet frame without its checksum: shorter ones are padded.
pub const SMALLEST_FRAME: u32 = 60;
/// TCP flag FIN.
pub const TCP_FIN: u8 = 0x01;
/// TCP flag SYN.
pub const TCP_SYN: u8 = 0x02;
/// TCP flag RST.
pub const TCP_RST: u8 = 0x04;
/// TCP flag ACK.
pub const TCP_ACK: u8 = 0x10;
/// The TCP flags that tell what a packet is to its connection.
pub const TCP_HANDSHAKE: u8 = TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK;
/// TTL of the outer header, as the kernel's device sets it (`ttl auto`).
pub const OUTER_TTL: u8 = 64;

/// The bits of a TOS byte that are ECN; the others are the DSCP.
pub const ECN_MASK: u8 = 0x03;
const ECN_CE: u8 = 0x03;
const ECN_ECT_1: u8 = 0x01;
const ECN_ECT_0: u8 = 0x02;

/// Reads an IPv4 header.
#[inline(always)]
pub fn ipv4(bytes: [u8; IPV4_LEN]) -> Ipv4Hdr {
    // By words: the compiler would keep each byte in a register of its own.
    let [first, second, third, source, destination]: [u32; 5] = transmute!(bytes);
    let [vihl, tos, l0, l1] = first.to_ne_bytes();
    let [i0, i1, f0, f1] = second.to_ne_bytes();
    let [ttl, proto, c0, c1] = third.to_ne_bytes();
    Ipv4Hdr {
        vihl,
        tos,
        tot_len: [l0, l1],
        id: [i0, i1],
        frags: [f0, f1],
        ttl,
        proto,
        check: [c0, c1],
        src_addr: source.to_ne_bytes(),
        dst_addr: destination.to_ne_bytes(),
    }
}

/// Reads a UDP header.
#[inline(always)]
pub fn udp([s0, s1, d0, d1, l0, l1, c0, c1]: [u8; UDP_LEN]) -> UdpHdr {
    UdpHdr { src: [s0, s1], dst: [d0, d1], len: [l0, l1], check: [c0, c1] }
}

/// Whether a VXLAN header is of this VNI: the I flag set, the 24 bits equal, and
/// all reserved bits zero. RFC 7348 has receivers ignore these; the kernel's
/// device drops what it does not know.
#[inline(always)]
pub fn is_vni(bytes: [u8; VXLAN_LEN], vni: u32) -> bool {
    let [_, v0, v1, v2] = vni.to_be_bytes();
    bytes == [network_types::vxlan::VXLAN_I_FLAG_MASK, 0, 0, 0, v0, v1, v2, 0]
}

/// Whether a VLAN tag follows (802.1Q, 802.1ad).
#[inline(always)]
pub fn is_tag(ethertype: [u8; 2]) -> bool {
    matches!(ethertype, [0x81, 0x00] | [0x88, 0xa8])
}

/// Whether a source MAC is one that a station can have: not all zero, not a
/// group's (`is_valid_ether_addr`).
#[inline(always)]
pub fn is_station(mac: [u8; 6]) -> bool {
    mac != [0; 6] && !is_group(mac)
}

/// Whether a destination MAC is that of several stations.
#[inline(always)]
pub fn is_group([first, ..]: [u8; 6]) -> bool {
    first & 1 != 0
}

/// Whether this is any fragment: MF set, or an offset.
#[inline(always)]
pub fn is_fragment(ip: &Ipv4Hdr) -> bool {
    u16::from_be_bytes(ip.frags) & 0x3fff != 0
}

/// Whether this is a fragment that does not hold the start of the payload.
#[inline(always)]
pub fn is_later_fragment(ip: &Ipv4Hdr) -> bool {
    u16::from_be_bytes(ip.frags) & 0x1fff != 0
}

/// Whether `addr` lies in `network`/`netmask`.
#[inline(always)]
pub fn within(addr: [u8; 4], network: [u8; 4], netmask: [u8; 4]) -> bool {
    u32::from_ne_bytes(addr) & u32::from_ne_bytes(netmask) == u32::from_ne_bytes(network)
}

/// TTL and header checksum after one more hop (`ip_decrease_ttl`, RFC 1624).
#[inline(always)]
pub fn decrement_ttl(ttl: u8, check: [u8; 2]) -> (u8, [u8; 2]) {
    // The TTL is the high byte of its 16-bit word: one less there is 0x0100
    // more in the one's complement sum.
    let sum = u32::from(u16::from_be_bytes(check)) + 0x0100;
    let folded = (sum + u32::from(sum >= 0xffff)) as u16;
    (ttl - 1, folded.to_be_bytes())
}

/// IPv4 header checksum of a header whose checksum field is zero.
#[inline(always)]
pub fn ipv4_checksum(ip: &Ipv4Hdr) -> [u8; 2] {
    // The sum does not depend on the byte order (RFC 1071).
    let half = |bytes: [u8; 2]| u64::from(u16::from_ne_bytes(bytes));
    let word = |bytes: [u8; 4]| u64::from(u32::from_ne_bytes(bytes));
    let sum = half([ip.vihl, ip.tos])
        + half(ip.tot_len)
        + half(ip.id)
        + half(ip.frags)
        + half([ip.ttl, ip.proto])
        + word(ip.src_addr)
        + word(ip.dst_addr);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_ne_bytes()
}

/// UDP source port from the flow hash (`udp_flow_src_port`): in `min..max`,
/// host byte order.
#[inline(always)]
pub fn source_port(hash: u32, min: u16, max: u16) -> u16 {
    let spread = u64::from(hash ^ (hash << 16));
    let range = u64::from(max.saturating_sub(min));
    ((spread * range) >> 32) as u16 + min
}

/// ECN bits of the outer header (`INET_ECN_encapsulate`, RFC 6040): those of
/// the inner, but congestion experienced is not carried outwards.
#[inline(always)]
pub fn outer_tos(inner_tos: u8) -> u8 {
    match inner_tos & ECN_MASK {
        ECN_CE => ECN_ECT_0,
        ecn => ecn,
    }
}

/// Whether decapsulation has to change the inner ECN bits, or to drop
/// (`INET_ECN_decapsulate`, RFC 6040).
#[inline(always)]
pub fn decap_changes_ecn(outer_tos: u8, inner_tos: u8) -> bool {
    match outer_tos & ECN_MASK {
        ECN_CE => true,
        ECN_ECT_1 => inner_tos & ECN_MASK != ECN_ECT_1,
        _ => false,
    }
}

/// What the outer headers are made of.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Our underlay address.
    pub source: [u8; 4],
    /// The peer's underlay address.
    pub destination: [u8; 4],
    /// UDP source port, host byte order.
    pub source_port: u16,
    /// UDP destination port, network byte order.
    pub port: [u8; 2],
    /// VXLAN network identifier.
    pub vni: u32,
    /// IPv4 identification.
    pub id: u16,
    /// TTL.
    pub ttl: u8,
    /// TOS byte of the inner packet.
    pub inner_tos: u8,
    /// Length of the inner IP packet in bytes.
    pub inner_len: u16,
    /// Inner destination MAC: the peer's VTEP.
    pub vtep_dst: [u8; 6],
    /// Inner source MAC: our VTEP.
    pub vtep_src: [u8; 6],
    /// The mark that the VXLAN header carries (VXLAN-GBP); 0: none.
    pub gbp: u32,
}

/// Builds what stands between the outer Ethernet header and the inner IP
/// packet. Like the kernel's device but for the UDP checksum, which is 0
/// (RFC 7348 allows it): it could not be right for each segment of a GSO packet.
#[inline(always)]
pub fn encap_headers(outer: &Outer) -> [u8; ENCAP_LEN] {
    let inner_len = outer.inner_len;
    let udp_len = inner_len + (UDP_LEN + VXLAN_LEN + ETH_LEN) as u16;
    let mut ip = Ipv4Hdr {
        vihl: 0x45,
        tos: outer_tos(outer.inner_tos),
        tot_len: (udp_len + IPV4_LEN as u16).to_be_bytes(),
        id: outer.id.to_be_bytes(),
        frags: [0, 0],
        ttl: outer.ttl,
        proto: UDP,
        check: [0, 0],
        src_addr: outer.source,
        dst_addr: outer.destination,
    };
    ip.check = ipv4_checksum(&ip);
    let mut bytes = [0; ENCAP_LEN];
    bytes[0] = ip.vihl;
    bytes[1] = ip.tos;
    bytes[2..4].copy_from_slice(&ip.tot_len);
    bytes[4..6].copy_from_slice(&ip.id);
    bytes[8] = ip.ttl;
    bytes[9] = ip.proto;
    bytes[10..12].copy_from_slice(&ip.check);
    bytes[12..16].copy_from_slice(&ip.src_addr);
    bytes[16..20].copy_from_slice(&ip.dst_addr);
    bytes[20..22].copy_from_slice(&outer.source_port.to_be_bytes());
    bytes[22..24].copy_from_slice(&outer.port);
    bytes[24..26].copy_from_slice(&udp_len.to_be_bytes());
    bytes[28..32].copy_from_slice(&vxlan_flags(outer.gbp));
    let [_, v0, v1, v2] = outer.vni.to_be_bytes();
    bytes[32] = v0;
    bytes[33] = v1;
    bytes[34] = v2;
    bytes[36..42].copy_from_slice(&outer.vtep_dst);
    bytes[42..48].copy_from_slice(&outer.vtep_src);
    bytes[48..50].copy_from_slice(&ETHERTYPE_IPV4);
    bytes
}

/// First four bytes of a VXLAN header that carries this mark
/// (`vxlan_build_gbp_hdr`).
#[inline(always)]
pub fn vxlan_flags(gbp: u32) -> [u8; 4] {
    if gbp == 0 {
        return [network_types::vxlan::VXLAN_I_FLAG_MASK, 0, 0, 0];
    }
    let [_, bits, p0, p1] = gbp.to_be_bytes();
    [network_types::vxlan::VXLAN_I_FLAG_MASK | VXLAN_G_FLAG, bits & GBP_BITS, p0, p1]
}

/// Flag of a VXLAN header that carries a group policy.
const VXLAN_G_FLAG: u8 = 0x80;
/// Bits "don't learn" and "policy applied" (VXLAN_GBP_DONT_LEARN,
/// VXLAN_GBP_POLICY_APPLIED).
const GBP_BITS: u8 = 0x48;

/// What replacing `old` by `new` adds to a checksum, for
/// `bpf_l4_csum_replace` (`bpf_csum_diff`): never 0 if they differ.
#[inline(always)]
pub fn sum_of_change<const N: usize>(old: [[u8; 4]; N], new: [[u8; 4]; N]) -> u32 {
    let mut sum = 0_u64;
    let mut word = 0;
    while word < N {
        sum += u64::from(!u32::from_ne_bytes(old[word])) + u64::from(u32::from_ne_bytes(new[word]));
        word += 1;
    }
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum as u32
}

/// A checksum field that a packet's sender has completed, after a change of the
/// packet (RFC 1624).
#[inline(always)]
pub fn changed_checksum(check: [u8; 2], sum: u32) -> u16 {
    !folded(u64::from(!u16::from_ne_bytes(check)) + u64::from(sum))
}

/// A checksum field that holds the sum of the pseudo header only, for the device
/// to complete (CHECKSUM_PARTIAL), after a change of the addresses.
#[inline(always)]
pub fn changed_partial_sum(check: [u8; 2], sum: u32) -> u16 {
    folded(u64::from(u16::from_ne_bytes(check)) + u64::from(sum))
}

/// Whether two checksum fields say the same: 0 and 0xffff do.
#[inline(always)]
pub fn same_sum(a: u16, b: u16) -> bool {
    a == b || (a ^ b == 0xffff && (a == 0 || b == 0))
}

#[inline(always)]
fn folded(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}
