//! What is told of a packet.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::path::Frame;
use crate::wire::{self, ENCAP_LEN, ETH_LEN, IPV4_LEN, UDP_LEN, VXLAN_LEN};

/// A packet: of one in a tunnel the inner addresses, with those of the tunnel beside
/// them. All zero where it is not IPv4. Addresses and ports are in network byte order.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Packet {
    /// Interface of the hook.
    pub ifindex: u32,
    /// Length in bytes, with the Ethernet header.
    pub len: u32,
    /// Source.
    pub source: [u8; 4],
    /// Destination.
    pub destination: [u8; 4],
    /// Source of the tunnel.
    pub outer_source: [u8; 4],
    /// Destination of the tunnel.
    pub outer_destination: [u8; 4],
    /// Source port; 0 for what has none, and for later fragments.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// IP protocol.
    pub proto: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// 1 if there is a tunnel of our port around it.
    pub tunnel: u8,
    /// 1 if it is IPv4.
    pub ipv4: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

/// Reads what can be told of a packet; `port` is the tunnel's.
#[inline(always)]
pub fn describe<F: Frame>(frame: &F, port: [u8; 2]) -> Packet {
    let mut packet = Packet { ifindex: frame.ifindex(), len: frame.len(), ..Packet::default() };
    read(frame, 0, &mut packet);
    if packet.proto == wire::UDP && packet.dport == port && port != [0; 2] {
        let Packet { source, destination, .. } = packet;
        let mut inner = Packet { ifindex: packet.ifindex, len: packet.len, ..Packet::default() };
        read(frame, ENCAP_LEN, &mut inner);
        if inner.ipv4 != 0 {
            packet = inner;
            packet.tunnel = 1;
            packet.outer_source = source;
            packet.outer_destination = destination;
        }
    }
    packet
}

/// The IPv4 packet behind the Ethernet header at `at`.
#[inline(always)]
fn read<F: Frame>(frame: &F, at: usize, packet: &mut Packet) {
    if frame.load::<2>(at + ETH_LEN - 2) != Some(wire::ETHERTYPE_IPV4) {
        return;
    }
    let Some(ip) = frame.load::<IPV4_LEN>(at + ETH_LEN).map(wire::ipv4) else { return };
    if ip.vihl >> 4 != 4 {
        return;
    }
    packet.ipv4 = 1;
    packet.source = ip.src_addr;
    packet.destination = ip.dst_addr;
    packet.proto = ip.proto;
    // Options are rare, and where they end need not be known for the addresses.
    if ip.vihl != 0x45 || wire::is_later_fragment(&ip) {
        return;
    }
    let l4 = at + ETH_LEN + IPV4_LEN;
    if (ip.proto == wire::TCP || ip.proto == wire::UDP)
        && let Some([s0, s1, d0, d1]) = frame.load::<4>(l4)
    {
        packet.sport = [s0, s1];
        packet.dport = [d0, d1];
    }
    if ip.proto == wire::TCP
        && let Some([flags]) = frame.load::<1>(l4 + 13)
    {
        packet.tcp_flags = flags;
    }
}

const _: () = assert!(ENCAP_LEN == IPV4_LEN + UDP_LEN + VXLAN_LEN + ETH_LEN);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::fake;

    const PORT: [u8; 2] = fake::PORT.to_be_bytes();

    #[test]
    fn a_plain_packet() {
        let packet = fake::Packet::tcp(1, 2, wire::TCP_SYN, b"x");
        let seen = describe(&packet, PORT);
        let len = packet.bytes.len() as u32;
        assert_eq!((seen.ifindex, seen.len, seen.ipv4, seen.tunnel), (fake::VETH, len, 1, 0));
        assert_eq!((seen.source, seen.destination), (fake::pod(1), fake::pod(2)));
        assert_eq!((seen.sport, seen.dport), (4000_u16.to_be_bytes(), 5000_u16.to_be_bytes()));
        assert_eq!((seen.proto, seen.tcp_flags), (wire::TCP, wire::TCP_SYN));
    }

    #[test]
    fn of_a_tunnel_packet_both_ends() {
        let packet = fake::Packet::udp(1, 2, b"x").encapsulated(1, 2);
        let seen = describe(&packet, PORT);
        assert_eq!((seen.tunnel, seen.proto), (1, wire::UDP));
        assert_eq!((seen.source, seen.destination), (fake::pod(1), fake::pod(2)));
        let outer = (seen.outer_source, seen.outer_destination);
        assert_eq!(outer, (fake::underlay(1), fake::underlay(2)));
        assert_eq!(seen.dport, 5000_u16.to_be_bytes());
        let other = describe(&packet, [0, 1]);
        assert_eq!((other.tunnel, other.source, other.dport), (0, fake::underlay(1), PORT));
    }

    #[test]
    fn what_cannot_be_read_is_zero() {
        let whole = fake::Packet::tcp(1, 2, 0, b"x");
        for len in 0..ETH_LEN + IPV4_LEN {
            let cut = fake::Packet::new(whole.bytes[..len].to_vec(), fake::VETH);
            let empty = Packet { ifindex: fake::VETH, len: len as u32, ..Packet::default() };
            assert_eq!(describe(&cut, PORT), empty);
        }
        let later = whole.clone().edit(ETH_LEN, |ip| ip[7] = 1);
        assert_eq!(describe(&later, PORT).sport, [0; 2]);
        let short = fake::Packet::udp(1, 2, b"").encapsulated(1, 2);
        let short = fake::Packet::new(short.bytes[..60].to_vec(), fake::UNDERLAY);
        assert_eq!(describe(&short, PORT).tunnel, 0, "nothing inner is told of half a packet");
    }
}
