//! Packets in buffers, maps in memory, and the kernel's part of the way: what it
//! takes to run the hooks of a node in a test.
#![cfg_attr(not(test), allow(dead_code, unused_imports, reason = "the rest is for unit tests"))]

mod any;
mod node;
mod packet;

pub use self::any::any_packets;
pub(crate) use self::any::{Step, walk};
pub(crate) use self::node::Node;
pub(crate) use self::packet::Packet;
use super::hook::{from_overlay, from_pod, from_underlay, to_overlay, to_pod};
use super::{NextHop, Verdict};

pub(crate) const UNDERLAY: u32 = 2;
pub(crate) const OVERLAY: u32 = 3;
pub(crate) const VETH: u32 = 7;
pub(crate) const PORT: u16 = 8472;
pub(crate) const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub(crate) const SECOND: u64 = 1_000_000_000;

/// Address of a service, outside of the overlay network.
pub(crate) const SERVICE: [u8; 4] = [10, 96, 0, 7];
/// Tickets of the one CPU that takes some.
pub(crate) const SLOTS: u32 = 16;
/// Another address of every node.
pub(crate) const SECONDARY: [u8; 4] = [203, 0, 113, 9];

/// Addresses of the two nodes of the tests.
pub(crate) fn underlay(node: u8) -> [u8; 4] {
    [192, 0, 2, node]
}

pub(crate) fn vtep(node: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, node]
}

pub(crate) fn pod(node: u8) -> [u8; 4] {
    [10, 5, node, 2]
}

/// The packet, whoever carried it through the tunnel, if the kernel routed it.
pub(crate) fn kernel(way: Way) -> Packet {
    match way {
        Way::Kernel(packet) | Way::Shortcut(packet) => packet,
        other => panic!("not the kernel path: {other:?}"),
    }
}

/// The packet that the fast path carried.
pub(crate) fn fast(way: Way) -> (Packet, Verdict) {
    match way {
        Way::Fast(packet, verdict) => (packet, verdict),
        other => panic!("not the fast path: {other:?}"),
    }
}

/// The way of a packet through a node, and where it came out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Fast(Packet, Verdict),
    /// The kernel routed it; its VXLAN device had no part in it.
    Shortcut(Packet),
    Kernel(Packet),
    Dropped,
}

/// Sends a pod's packet through node `me` to node `to`.
pub(crate) fn send(node: &Node, packet: Packet, me: u8, to: u8) -> Way {
    let mut packet = packet.at(VETH);
    match from_pod::run(&mut packet, node) {
        Verdict::Pass => {}
        Verdict::Drop => return Way::Dropped,
        verdict => return Way::Fast(packet.at(UNDERLAY), verdict),
    }
    leave(node, packet.forwarded(vtep(to), vtep(me)), me, to)
}

/// Sends a packet that the kernel has routed through `flannel.<VNI>`.
pub(crate) fn leave(node: &Node, packet: Packet, me: u8, to: u8) -> Way {
    let mut packet = packet.at(OVERLAY);
    match to_overlay::run(&mut packet, node) {
        Verdict::Pass => Way::Kernel(packet.encapsulated(me, to)),
        Verdict::NextHop { ifindex, next_hop } => {
            assert_eq!((ifindex, next_hop), (UNDERLAY, NextHop::ipv4(underlay(to))));
            Way::Shortcut(packet.at(UNDERLAY))
        }
        other => panic!("at the exit: {other:?}"),
    }
}

/// Receives a tunnel packet at a node, for its pod.
pub(crate) fn receive(node: &Node, packet: Packet) -> Way {
    let mut packet = packet.at(UNDERLAY);
    let (mut packet, way): (_, fn(Packet) -> Way) = match from_underlay::run(&mut packet, node) {
        Verdict::Pass => (packet.decapsulated(), Way::Kernel),
        Verdict::Ingress { ifindex } => (packet.at(ifindex), Way::Shortcut),
        Verdict::Drop => return Way::Dropped,
        verdict => return Way::Fast(packet.at(VETH), verdict),
    };
    match from_overlay::run(&mut packet, node) {
        Verdict::Pass => {}
        Verdict::Drop => return Way::Dropped,
        verdict => return Way::Fast(packet.at(VETH), verdict),
    }
    let mut packet = packet.forwarded(POD_MAC, GATEWAY_MAC).at(VETH);
    assert_eq!(to_pod::run(&mut packet, node), Verdict::Pass);
    way(packet)
}
