//! What can be odd about a packet. Pure.

use std::net::Ipv4Addr;

use etherparse::{EtherType, IpFragOffset, IpNumber, Ipv4Options};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::draft::{Draft, Edit, Transport};
use super::world::{ABSENT, LEFT, MTU, Mac, RIGHT};

/// One way of being odd. Most are right packets that are not plain, some are
/// wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Oddity {
    /// Any mix of TCP's nine flags.
    TcpFlags,
    /// TCP options; a data offset that may be wrong.
    TcpOffset,
    /// IP options, right and wrong ones.
    IpOptions,
    /// A fragment whose others never come.
    LoneFragment,
    /// All fragments of a packet.
    WholeFragments,
    /// DF or the reserved flag.
    Flags,
    /// A TTL that ends on the way, or nearly.
    Ttl,
    /// Any TOS byte, ECN included.
    Tos,
    /// Around the MTU, beyond it, or nearly nothing.
    Length,
    /// Bytes behind the packet.
    Padding,
    /// A total length that the frame contradicts.
    TotalLen,
    /// A wrong header checksum.
    HeaderChecksum,
    /// A wrong TCP or UDP checksum.
    TransportChecksum,
    /// UDP without a checksum.
    NoUdpChecksum,
    /// A UDP length that the packet contradicts.
    UdpLength,
    /// Another IP version.
    Version,
    /// A header length that the packet contradicts.
    HeaderLength,
    /// VLAN tags.
    Vlan,
    /// Another destination MAC.
    DestinationMac,
    /// Another source MAC.
    SourceMac,
    /// Another destination: multicast, broadcast, edges of subnets, anywhere.
    Destination,
    /// Another source.
    Source,
    /// ICMP, SCTP or anything else.
    Protocol,
    /// Shorter than it says.
    Cut,
    /// Another EtherType.
    EtherType,
}

impl Oddity {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::TcpFlags,
        Self::TcpOffset,
        Self::IpOptions,
        Self::LoneFragment,
        Self::WholeFragments,
        Self::Flags,
        Self::Ttl,
        Self::Tos,
        Self::Length,
        Self::Padding,
        Self::TotalLen,
        Self::HeaderChecksum,
        Self::TransportChecksum,
        Self::NoUdpChecksum,
        Self::UdpLength,
        Self::Version,
        Self::HeaderLength,
        Self::Vlan,
        Self::DestinationMac,
        Self::SourceMac,
        Self::Destination,
        Self::Source,
        Self::Protocol,
        Self::Cut,
        Self::EtherType,
    ];

    /// Makes a packet odd. One that cannot be odd in this way stays as it is.
    pub fn apply(self, draft: &mut Draft, rng: &mut StdRng) {
        let udp = matches!(draft.transport, Transport::Udp(..));
        match self {
            Self::TcpFlags => tcp_flags(draft, rng),
            Self::TcpOffset => tcp_offset(draft, rng),
            Self::IpOptions => {
                draft.ip.options = Ipv4Options::try_from(*pick(OPTIONS, rng)).expect("options");
            }
            Self::LoneFragment => lone_fragment(draft, rng),
            Self::WholeFragments => {
                draft.ip.dont_fragment = false;
                let bytes = *pick(&[8, 16, 64, 512, 1024], rng);
                let least = draft.total_len() / 40;
                draft.edits.push(Edit::Fragment(bytes.max(least)));
            }
            Self::Flags => {
                let value = *pick(&[0x00, 0x40, 0x80, 0xc0], rng);
                draft.edits.push(Edit::Header { at: 6, value });
            }
            Self::Ttl => draft.ip.time_to_live = *pick(&[0, 1, 2, 3, 4, 255], rng),
            Self::Tos => draft.edits.push(Edit::Header { at: 1, value: rng.random() }),
            Self::Length => length(draft, rng),
            Self::Padding => draft.edits.push(Edit::Pad(rng.random_range(1..=40))),
            Self::TotalLen => total_len(draft, rng),
            Self::HeaderChecksum => draft.edits.push(Edit::HeaderChecksum(bits(rng))),
            Self::TransportChecksum => draft.edits.push(Edit::TransportChecksum(bits(rng))),
            Self::NoUdpChecksum if udp => {
                draft.edits.push(Edit::Transport { at: 6, bytes: vec![0, 0] });
            }
            Self::UdpLength if udp => udp_length(draft, rng),
            Self::NoUdpChecksum | Self::UdpLength => {}
            Self::Version => {
                let version = *pick(&[0, 3, 5, 6, 15], rng);
                draft.edits.push(Edit::Header { at: 0, value: version << 4 | draft.ip.ihl() });
            }
            Self::HeaderLength => {
                draft.edits.push(Edit::Header { at: 0, value: 0x40 | rng.random_range(0..16) });
            }
            Self::Vlan => vlan(draft, rng),
            Self::DestinationMac => draft.eth.destination = mac(rng),
            Self::SourceMac => draft.eth.source = mac(rng),
            Self::Destination => draft.ip.destination = address(rng).octets(),
            Self::Source => draft.ip.source = address(rng).octets(),
            Self::Protocol => protocol(draft, rng),
            Self::Cut => {
                // The identification stays: the frame is known by it.
                let (least, all) = (draft.l3() + 6, draft.l3() + draft.total_len());
                draft.edits.push(Edit::Cut(rng.random_range(least..all)));
            }
            Self::EtherType => {
                let types = [0x0000, 0x05dc, 0x0600, 0x0801, 0x86dd, 0x8847, 0x8864, 0xffff];
                draft.eth.ether_type = EtherType(*pick(&types, rng));
            }
        }
    }
}

fn lone_fragment(draft: &mut Draft, rng: &mut StdRng) {
    draft.ip.more_fragments = rng.random();
    let most = if draft.ip.more_fragments { 3 } else { 200 };
    let offset = rng.random_range(u16::from(!draft.ip.more_fragments)..most);
    draft.ip.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
}

fn total_len(draft: &mut Draft, rng: &mut StdRng) {
    let len = i32::try_from(draft.total_len()).unwrap_or(0);
    let near = len + *pick(&[-40, -8, -1, 1, 2, 8, 40], rng);
    let value = *pick(&[near, near, 0, 19, 20, 28, 0xffff], rng);
    draft.edits.push(Edit::TotalLen(u16::try_from(value.max(0)).unwrap_or(0)));
}

fn udp_length(draft: &mut Draft, rng: &mut StdRng) {
    let right = u16::try_from(draft.payload.len() + 8).unwrap_or(8);
    let wrong = [0, 7, 8, right.wrapping_sub(1), right + 1, right / 2, 0xffff];
    let bytes = pick(&wrong, rng).to_be_bytes().to_vec();
    draft.edits.push(Edit::Transport { at: 4, bytes });
}

fn vlan(draft: &mut Draft, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..=2) {
        let tci = pick(&[0_u16, 1, 0x2064, 4095], rng).to_be_bytes();
        let tpid = pick(&[0x8100_u16, 0x88a8], rng).to_be_bytes();
        draft.tags.push([tpid[0], tpid[1], tci[0], tci[1]]);
    }
}

/// Options as they stand in headers, padded to whole words. None holds a time:
/// nodes would write theirs into it.
const OPTIONS: &[&[u8]] = &[
    // No operation, end of options.
    &[1, 1, 1, 0],
    // Record route: empty, full, and with a pointer that is wrong.
    &[7, 7, 4, 0, 0, 0, 0, 0],
    &[7, 7, 8, 1, 2, 3, 4, 0],
    &[7, 7, 3, 1, 2, 3, 4, 0],
    // Time stamp without room.
    &[68, 8, 9, 0, 0, 0, 0, 0],
    // Loose and strict source route.
    &[131, 7, 4, 10, 244, 102, 2, 0],
    &[137, 7, 8, 10, 244, 102, 2, 0],
    // Router alert.
    &[148, 4, 0, 0],
    // Lengths that lead out of the header.
    &[7, 40, 4, 0],
    &[130, 0, 0, 0],
    // Unknown, copied.
    &[222, 4, 1, 2],
    // As many as there can be.
    &[1; 40],
];

fn pick<'a, T>(from: &'a [T], rng: &mut StdRng) -> &'a T {
    from.choose(rng).expect("something to choose from")
}

fn bits(rng: &mut StdRng) -> u16 {
    1 << rng.random_range(0..16)
}

fn tcp_flags(draft: &mut Draft, rng: &mut StdRng) {
    if let Transport::Tcp(tcp) = &mut draft.transport {
        let flags = [
            &mut tcp.ns,
            &mut tcp.cwr,
            &mut tcp.ece,
            &mut tcp.urg,
            &mut tcp.ack,
            &mut tcp.psh,
            &mut tcp.rst,
            &mut tcp.syn,
            &mut tcp.fin,
        ];
        for flag in flags {
            *flag = rng.random();
        }
    }
}

fn tcp_offset(draft: &mut Draft, rng: &mut StdRng) {
    if let Transport::Tcp(tcp) = &mut draft.transport {
        if rng.random() {
            // No operation, as often as fits.
            let options = vec![1; 4 * rng.random_range(0..=10)];
            tcp.set_options_raw(&options).expect("at most 40 bytes");
        } else {
            let bytes = vec![rng.random_range(0..16) << 4];
            draft.edits.push(Edit::Transport { at: 12, bytes });
        }
    }
}

fn length(draft: &mut Draft, rng: &mut StdRng) {
    draft.ip.dont_fragment = rng.random();
    let headers = draft.ip.header_len() + draft.transport_len();
    let wanted = if rng.random() {
        headers + rng.random_range(0..4)
    } else {
        MTU - 3 + rng.random_range(0..54)
    };
    draft.payload.resize(wanted.max(headers) - headers, 0x5a);
}

fn mac(rng: &mut StdRng) -> Mac {
    let side = *pick(&[LEFT, RIGHT, ABSENT], rng);
    *pick(
        &[
            side.pod_mac(),
            side.gateway_mac(),
            side.vtep_mac(),
            side.node_mac(),
            [0xff; 6],
            [1, 0, 0x5e, 0, 0, 1],
            [0x33, 0x33, 0, 0, 0, 1],
            // Reserved for bridges.
            [1, 0x80, 0xc2, 0, 0, 0],
            [0; 6],
            [6, 0, 0, 0, 0, 0x77],
        ],
        rng,
    )
}

fn address(rng: &mut StdRng) -> Ipv4Addr {
    let side = *pick(&[LEFT, RIGHT, ABSENT], rng);
    *pick(
        &[
            side.address(0),
            side.address(1),
            side.address(2),
            side.address(3),
            side.address(255),
            side.node(),
            // In the overlay, leased by nobody.
            Ipv4Addr::new(10, 244, 0, 0),
            Ipv4Addr::new(10, 244, 250, 7),
            Ipv4Addr::new(10, 244, 255, 255),
            // Just outside.
            Ipv4Addr::new(10, 243, 255, 255),
            Ipv4Addr::new(10, 245, 0, 0),
            Ipv4Addr::new(198, 51, 100, 2),
            Ipv4Addr::new(198, 18, 0, 255),
            Ipv4Addr::new(224, 0, 0, 1),
            Ipv4Addr::new(239, 1, 2, 3),
            Ipv4Addr::new(240, 0, 0, 1),
            Ipv4Addr::BROADCAST,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::LOCALHOST,
        ],
        rng,
    )
}

fn protocol(draft: &mut Draft, rng: &mut StdRng) {
    // ICMP, GRE, ESP, SCTP, UDP-Lite, IPv4 and IPv6 in IPv4, ends of the range.
    let numbers = [1, 1, 1, 132, 132, 47, 50, 136, 4, 41, 0, 255];
    let number = *pick(&numbers, rng);
    draft.ip.protocol = IpNumber(number);
    let mut header = vec![0; 12];
    rng.fill(&mut header[..]);
    if number == 1 {
        // Echo, its answer, errors and what is out of use.
        let kinds = [8, 8, 8, 0, 3, 4, 5, 11, 12, 13, 17, 255];
        header[0] = *pick(&kinds, rng);
        header[1] = rng.random_range(0..3);
        // An echo's answer is known by its identifier.
        header[4..6].copy_from_slice(&draft.ip.identification.to_be_bytes());
        header[2..4].fill(0);
        let mut message = header.clone();
        message.extend(&draft.payload);
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&message);
        header[2..4].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    }
    draft.transport = Transport::Other(header);
}
