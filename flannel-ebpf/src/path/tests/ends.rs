//! How connections end.

use crate::path::fake::*;
use crate::wire::{self, ETH_LEN};

/// Two nodes with a TCP connection that is confirmed in both directions, and a
/// packet of its other end: the ports the other way round.
fn connected() -> (Node, Node, impl Fn(u8, &[u8]) -> Packet) {
    let back = |flags: u8, payload: &[u8]| {
        let mut packet = Packet::tcp(2, 1, flags, payload);
        packet.bytes[ETH_LEN + 20..ETH_LEN + 24].rotate_left(2);
        packet
    };
    let (a, b) = (Node::new(1), Node::new(2));
    kernel(receive(&b, kernel(send(&a, Packet::tcp(1, 2, 0, b"data"), 1, 2))));
    kernel(receive(&a, kernel(send(&b, back(0, b"data"), 2, 1))));
    (a, b, back)
}

#[test]
fn the_kernel_sees_the_answer_to_the_last_fin() {
    let (a, b, back) = connected();
    kernel(receive(&b, kernel(send(&a, Packet::tcp(1, 2, wire::TCP_FIN, b""), 1, 2))));
    // A connection that is closed on one side only goes on as before.
    for payload in [b"".as_slice(), b"more"] {
        let (wire, _) = fast(send(&b, back(0, payload), 2, 1));
        fast(receive(&a, wire));
        let (wire, _) = fast(send(&a, Packet::tcp(1, 2, 0, b""), 1, 2));
        fast(receive(&b, wire));
    }
    kernel(receive(&a, kernel(send(&b, back(wire::TCP_FIN, b""), 2, 1))));
    kernel(receive(&b, kernel(send(&a, Packet::tcp(1, 2, 0, b""), 1, 2))));
    for node in [&a, &b] {
        let left = node.flows.borrow().keys().filter(|key| key.proto == wire::TCP).count();
        assert_eq!(left, 0, "flows of a connection that has ended");
    }
}

#[test]
fn each_node_sees_an_answer_to_fins_that_cross() {
    let (a, b, back) = connected();
    let there = kernel(send(&a, Packet::tcp(1, 2, wire::TCP_FIN, b""), 1, 2));
    let here = kernel(send(&b, back(wire::TCP_FIN, b""), 2, 1));
    kernel(receive(&b, there));
    kernel(receive(&a, here));
    // For each node the second FIN is the other's.
    kernel(send(&a, Packet::tcp(1, 2, 0, b""), 1, 2));
    kernel(send(&b, back(0, b""), 2, 1));
}

#[test]
fn a_second_fin_is_one_though_the_window_ended_between_them() {
    let (a, b, back) = connected();
    kernel(receive(&b, kernel(send(&a, Packet::tcp(1, 2, wire::TCP_FIN, b""), 1, 2))));
    for node in [&a, &b] {
        node.pass_time(20 * SECOND);
    }
    kernel(receive(&a, kernel(send(&b, back(0, b"more"), 2, 1))));
    kernel(receive(&b, kernel(send(&a, Packet::tcp(1, 2, 0, b""), 1, 2))));
    let (wire, _) = fast(send(&a, Packet::tcp(1, 2, 0, b""), 1, 2));
    fast(receive(&b, wire));
    kernel(receive(&a, kernel(send(&b, back(wire::TCP_FIN, b""), 2, 1))));
    kernel(receive(&b, kernel(send(&a, Packet::tcp(1, 2, 0, b""), 1, 2))));
}
