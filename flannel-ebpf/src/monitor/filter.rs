//! Which packets are wanted.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Packet;
use crate::wire;

/// An IPv4 network. The mask of all takes all.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Net {
    /// Its address.
    pub address: [u8; 4],
    /// Its mask; 0.0.0.0 for any address.
    pub mask: [u8; 4],
}

impl Net {
    #[inline(always)]
    fn holds(&self, address: [u8; 4]) -> bool {
        wire::within(address, self.address, self.mask)
    }
}

/// What a packet has to be. The default takes every one.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Filter {
    /// An address of the packet, inside a tunnel if it is in one, lies in the first.
    pub pod: Net,
    /// An address of the packet, or of the tunnel around it, lies in one of these.
    pub peer: [Net; 2],
    /// One of its ports, network byte order; 0: any.
    pub port: [u8; 2],
    /// Its IP protocol; 0: any.
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
}

impl Filter {
    /// Whether the packet is wanted.
    #[inline(always)]
    pub fn takes(&self, packet: &Packet) -> bool {
        let Packet { source, destination, outer_source, outer_destination, .. } = *packet;
        let pod = self.pod.holds(source) || self.pod.holds(destination);
        let port = self.port == [0; 2] || self.port == packet.sport || self.port == packet.dport;
        let proto = self.proto == 0 || self.proto == packet.proto;
        let [first, second] = self.peer;
        let of = |net: Net| {
            net.holds(source)
                || net.holds(destination)
                || packet.tunnel != 0 && (net.holds(outer_source) || net.holds(outer_destination))
        };
        pod && port && proto && (of(first) || of(second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: [u8; 4] = [255; 4];

    fn packet() -> Packet {
        Packet {
            source: [10, 5, 1, 2],
            destination: [10, 5, 2, 2],
            sport: [0x10, 0],
            dport: [0, 80],
            proto: wire::TCP,
            outer_source: [192, 0, 2, 1],
            outer_destination: [192, 0, 2, 2],
            tunnel: 1,
            ..Packet::default()
        }
    }

    #[test]
    fn what_is_not_asked_does_not_matter() {
        assert!(Filter::default().takes(&packet()));
        assert!(Filter::default().takes(&Packet::default()));
    }

    #[test]
    fn each_condition_counts() {
        let net = |address, mask| Net { address, mask };
        let nobody = net([203, 0, 113, 1], HOST);
        let subnet = net([10, 5, 2, 0], [255, 255, 255, 0]);
        let any = Filter::default();
        let takes = |filter: Filter| filter.takes(&packet());
        assert!(takes(Filter { pod: subnet, ..any }));
        assert!(!takes(Filter { pod: nobody, ..any }));
        assert!(!takes(Filter { pod: net([192, 0, 2, 1], HOST), ..any }), "a node is no pod");
        let tunnel = Filter { peer: [net([192, 0, 2, 2], HOST), nobody], ..any };
        assert!(takes(tunnel) && takes(Filter { peer: [nobody, subnet], ..any }));
        assert!(!tunnel.takes(&Packet { tunnel: 0, ..packet() }), "there is no tunnel around it");
        assert!(!takes(Filter { peer: [nobody, nobody], ..any }));
        assert!(takes(Filter { port: [0, 80], ..any }) && takes(Filter { port: [0x10, 0], ..any }));
        assert!(!takes(Filter { port: [0, 81], ..any }));
        assert!(takes(Filter { proto: wire::TCP, ..any }));
        assert!(!takes(Filter { proto: wire::UDP, ..any }));
        assert!(!takes(Filter { proto: wire::TCP, port: [0, 81], ..any }));
    }
}
