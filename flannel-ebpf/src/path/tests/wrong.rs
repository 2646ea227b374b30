//! Packets of confirmed flows that the kernel would refuse: they are the
//! kernel's to refuse.

use super::{INNER, confirmed};
use crate::abi::Outcome;
use crate::path::Verdict;
use crate::path::fake::*;
use crate::path::hook::{from_pod, from_underlay};
use crate::wire::{self, ETH_LEN};

/// Outer UDP header in a tunnel packet; VXLAN header and inner MACs follow.
const UDP: usize = ETH_LEN + 20;
const VXLAN: usize = UDP + 8;
const INNER_MACS: usize = VXLAN + 8;

/// Transport header in a packet of a pod, and within the tunnel.
const L4: [usize; 2] = [ETH_LEN + 20, INNER + 20];

/// Sends a packet that differs from a plain one in `edit` only, out of a pod or
/// in from the underlay; it has to be left as it is, for `reason`.
#[track_caller]
fn left(reason: Outcome, inwards: bool, edit: impl FnOnce(&mut [u8])) {
    left_of(Packet::udp(1, 2, b"x"), reason, inwards, edit);
}

/// As [`left`], for a packet of another protocol.
#[track_caller]
fn left_of(plain: Packet, reason: Outcome, inwards: bool, edit: impl FnOnce(&mut [u8])) {
    let (a, b) = confirmed(&plain);
    let mut packet = if inwards { plain.encapsulated(1, 2) } else { plain };
    edit(&mut packet.bytes);
    let before = packet.clone();
    let (verdict, node) = if inwards {
        (from_underlay::run(&mut packet, &b), b)
    } else {
        (from_pod::run(&mut packet, &a), a)
    };
    assert_eq!((verdict, packet), (Verdict::Pass, before));
    assert_eq!(node.counted(reason), 1, "{reason:?}");
}

#[test]
fn a_wrong_header_checksum() {
    for bit in 0..16 {
        let at = 10 + bit / 8;
        let turn = |l3: usize| move |bytes: &mut [u8]| bytes[l3 + at] ^= 1 << (bit % 8);
        left(Outcome::KernelMalformed, false, turn(ETH_LEN));
        left(Outcome::KernelMalformed, true, turn(INNER));
        left(Outcome::KernelMalformed, true, turn(ETH_LEN));
    }
}

#[test]
fn an_outer_udp_length_that_is_not_the_packets() {
    for length in [0_u16, 8, 58, 60, 0xffff] {
        left(Outcome::KernelMalformed, true, |bytes| {
            assert_ne!(bytes[UDP + 4..UDP + 6], length.to_be_bytes());
            bytes[UDP + 4..UDP + 6].copy_from_slice(&length.to_be_bytes());
        });
    }
}

#[test]
fn bits_of_the_vxlan_header_that_are_not_ours() {
    for byte in [0, 1, 2, 3, 7] {
        for bit in 0..8 {
            left(Outcome::KernelForeignVni, true, |bytes| bytes[VXLAN + byte] ^= 1 << bit);
        }
    }
}

#[test]
fn source_macs_that_no_station_has() {
    for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        left(Outcome::KernelForeignMac, false, |bytes| bytes[6..12].copy_from_slice(&mac));
        left(Outcome::KernelForeignMac, true, |bytes| {
            bytes[INNER_MACS + 6..INNER_MACS + 12].copy_from_slice(&mac);
        });
    }
    // The receiver's own.
    left(Outcome::KernelForeignMac, true, |bytes| {
        bytes.copy_within(INNER_MACS..INNER_MACS + 6, INNER_MACS + 6);
    });
}

/// `bpf_redirect_neigh` drops what has such a MAC.
#[test]
fn destination_macs_of_groups() {
    for mac in [[0xff; 6], [1, 0x80, 0xc2, 0, 0, 0], [1, 0, 0x5e, 0, 0, 1]] {
        left(Outcome::KernelForeignMac, false, |bytes| bytes[..6].copy_from_slice(&mac));
    }
}

#[test]
fn what_conntrack_takes_for_invalid() {
    for (inwards, l4) in [(false, L4[0]), (true, L4[1])] {
        for length in [0_u16, 7, 10, 0xffff] {
            left(Outcome::KernelMalformed, inwards, |bytes| {
                bytes[l4 + 4..l4 + 6].copy_from_slice(&length.to_be_bytes());
            });
        }
        let tcp = || Packet::tcp(1, 2, wire::TCP_ACK, b"x");
        for words in [0, 4, 6, 15] {
            left_of(tcp(), Outcome::KernelMalformed, inwards, |bytes| {
                bytes[l4 + 12] = words << 4;
            });
        }
    }
    // No flags, URG, PSH with URG. Inwards the kernel gets it past its device.
    for flags in [0, 0x20, 0x28] {
        let tcp = Packet::tcp(1, 2, wire::TCP_ACK, b"x");
        left_of(tcp, Outcome::KernelTcpState, false, |bytes| bytes[L4[0] + 13] = flags);
    }
}
