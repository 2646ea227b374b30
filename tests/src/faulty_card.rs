//! A network card that makes wrong checksums in tunnel packets (flannel #1279, #2152).
//!
//! It stands between a node and the switch. What the kernel leaves to a card is a
//! checksum field that holds the pseudo-header's sum only. This card finishes that of TCP
//! and UDP, but not that of a packet inside another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::lab::Lab;
use crate::node::Node;
use crate::packet::Wire;

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The card. `Drop` takes it out, and the node off the switch.
pub struct FaultyCard {
    end: Arc<AtomicBool>,
    ways: Vec<JoinHandle<()>>,
}

impl FaultyCard {
    /// Puts it before this node. Packets in both directions go through it, so that the
    /// node's peers have such a card, too.
    ///
    /// # Panics
    /// A device cannot be made.
    pub fn before(lab: &Lab, node: &Node) -> Self {
        let underlay = lab.underlay();
        let [port, inner, outer] = ["p", "i", "o"].map(|name| format!("{name}{}", node.number));
        // No aggregate is given to it.
        node.netns.ip("link set eth0 gso_max_segs 1");
        underlay.ip_batch(&[
            format!("link set {port} nomaster"),
            format!("link add {inner} type veth peer name {outer}"),
            format!("link set {inner} up"),
            format!("link set {outer} gso_max_segs 1 master br0 up"),
        ]);
        let end = Arc::new(AtomicBool::new(false));
        let ways = [(&port, &inner), (&inner, &port)].map(|(from, to)| {
            let (from, to) = (Wire::open(underlay, from), Wire::open(underlay, to));
            let end = Arc::clone(&end);
            thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    from.arriving(|frame| {
                        finish(frame);
                        to.send(frame);
                    });
                }
            })
        });
        Self { end, ways: ways.into() }
    }
}

impl Drop for FaultyCard {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for way in self.ways.drain(..) {
            let _ = way.join();
        }
    }
}

/// Writes the checksum of TCP or UDP over whatever stands in its place.
fn finish(frame: &mut [u8]) {
    let Some((ethernet, packet)) = frame.split_at_mut_checked(ETHERNET) else { return };
    if ethernet[12..] != [8, 0] || packet.len() < 20 {
        return;
    }
    let length = usize::from(u16::from_be_bytes([packet[2], packet[3]])).min(packet.len());
    let header = usize::from(packet[0] & 15) * 4;
    // Of a fragment the kernel makes it.
    let is_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
    let protocol = packet[9];
    let place = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return,
    };
    if is_fragment || length < header + place + 2 {
        return;
    }
    let addresses = sum(&packet[12..20]);
    let segment = &mut packet[header..length];
    let none = protocol == UDP && segment[place..place + 2] == [0, 0];
    if none {
        return;
    }
    segment[place..place + 2].fill(0);
    let total = sum(segment) + addresses + u32::from(protocol) + segment.len() as u32;
    let folded = (total & 0xffff) + (total >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let checksum = match !(folded as u16) {
        0 => 0xffff,
        checksum => checksum,
    };
    segment[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2);
    words.map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forge::{OUTER, Tunnelled};

    #[test]
    fn it_finishes_the_outer_checksum_and_leaves_the_inner_one() {
        let packet = Tunnelled {
            outer_mac: ([2; 6], [4; 6]),
            outer: ([192, 0, 2, 11].into(), [192, 0, 2, 12].into()),
            port: 8472,
            flags: 8,
            vni: 1,
            inner_mac: ([6; 6], [8; 6]),
            inner: ([10, 5, 1, 2].into(), [10, 5, 2, 2].into()),
            ports: (40_000, 53),
            payload: b"odd".to_vec(),
        };
        let whole = packet.frame();
        let mut frame = whole.clone();
        frame[ETHERNET + 20 + 6] ^= 0x55;
        finish(&mut frame);
        assert_eq!(frame, whole, "as the packet's builder makes it");
        let inner = OUTER + ETHERNET + 20 + 6;
        frame[inner] ^= 0x55;
        let wrong = frame[inner];
        finish(&mut frame);
        assert_eq!(frame[inner], wrong);
        assert_ne!(frame[40..42], whole[40..42], "over what is sent");
    }
}
