//! Packets and bytes by path, as counters that never fall: peers come and go,
//! and take their counters along.

use std::collections::BTreeMap;

use flannel_core::status::{PeerCounters, UdpCounters};
use ipnetwork::Ipv4Network;

/// Packets and bytes of one path and direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) path: &'static str,
    pub(super) direction: &'static str,
    pub(super) packets: u64,
    /// Not known of every path.
    pub(super) bytes: Option<u64>,
}

/// Packets and bytes.
type Count = [u64; 2];

fn traffic(path: &'static str, direction: &'static str, [packets, bytes]: Count) -> Traffic {
    Traffic { path, direction, packets, bytes: Some(bytes) }
}

/// Of one peer, by path.
pub(super) fn of_peer(peer: &PeerCounters) -> Vec<Traffic> {
    counts(peer).into_iter().map(|((path, way), count)| traffic(path, way, count)).collect()
}

/// Of one peer of the udp backend.
pub(super) fn of_udp_peer(peer: &UdpCounters) -> Vec<Traffic> {
    vec![
        traffic("udp", "out", [peer.tx_udp_packets, peer.tx_udp_bytes]),
        traffic("udp", "in", [peer.rx_udp_packets, peer.rx_udp_bytes]),
    ]
}

fn counts(peer: &PeerCounters) -> [((&'static str, &'static str), Count); 4] {
    [
        (("fast", "out"), [peer.tx_fast_packets, peer.tx_fast_bytes]),
        (("fast", "in"), [peer.rx_fast_packets, peer.rx_fast_bytes]),
        (("kernel", "out"), [peer.tx_kernel_packets, peer.tx_kernel_bytes]),
        (("kernel", "in"), [peer.rx_kernel_packets, peer.rx_kernel_bytes]),
    ]
}

/// Sums over all peers that there are and were.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// As last seen, of the peers that there are.
    seen: BTreeMap<Ipv4Network, Vec<Traffic>>,
    sums: BTreeMap<(&'static str, &'static str), Count>,
    /// The largest told so far of what is a difference.
    told: BTreeMap<&'static str, u64>,
}

impl Totals {
    /// Takes the peers' counters and gives the sums. `shortcut` has the packets,
    /// out and in, that the kernel routed and the programs carried: they are among
    /// the peers' kernel packets.
    pub(super) fn take(
        &mut self,
        peers: BTreeMap<Ipv4Network, Vec<Traffic>>,
        shortcut: Option<[u64; 2]>,
    ) -> Vec<Traffic> {
        for (peer, now) in &peers {
            let before = self.seen.get(peer);
            for (index, now) in now.iter().enumerate() {
                let before = before.and_then(|before| before.get(index));
                let sum = self.sums.entry((now.path, now.direction)).or_default();
                let bytes = |traffic: &Traffic| traffic.bytes.unwrap_or(0);
                sum[0] += grown(before.map_or(0, |before| before.packets), now.packets);
                sum[1] += grown(before.map_or(0, bytes), bytes(now));
            }
        }
        self.seen = peers;
        let mut all: Vec<Traffic> =
            self.sums.iter().map(|(&(path, way), &count)| traffic(path, way, count)).collect();
        for (direction, packets) in ["out", "in"].into_iter().zip(shortcut.into_iter().flatten()) {
            self.part(&mut all, direction, packets);
        }
        all
    }

    /// Parts the kernel's packets of a direction. The two counters are not read at
    /// one moment, so the rest may seem to fall a little: it must not.
    fn part(&mut self, all: &mut Vec<Traffic>, direction: &'static str, packets: u64) {
        let kernel = all.iter_mut().find(|one| one.path == "kernel" && one.direction == direction);
        if let Some(kernel) = kernel {
            let told = self.told.entry(direction).or_default();
            *told = kernel.packets.saturating_sub(packets).max(*told);
            kernel.packets = *told;
        }
        all.push(Traffic { path: "shortcut", direction, packets, bytes: None });
    }
}

/// What was counted since `before`. A counter that is smaller began anew.
fn grown(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(tx_kernel: u64, rx_fast: u64) -> Vec<Traffic> {
        of_peer(&PeerCounters {
            tx_kernel_packets: tx_kernel,
            tx_kernel_bytes: 100 * tx_kernel,
            rx_fast_packets: rx_fast,
            ..PeerCounters::default()
        })
    }

    fn find(all: &[Traffic], path: &str, direction: &str) -> (u64, Option<u64>) {
        let one = all.iter().find(|one| one.path == path && one.direction == direction).unwrap();
        (one.packets, one.bytes)
    }

    #[test]
    fn a_peer_that_leaves_takes_nothing_away() {
        let subnet = |third: u8| Ipv4Network::new([10, 5, third, 0].into(), 24).unwrap();
        let mut totals = Totals::default();
        let both = BTreeMap::from([(subnet(1), peer(10, 1)), (subnet(2), peer(5, 2))]);
        let all = totals.take(both, Some([0, 0]));
        assert_eq!(find(&all, "kernel", "out"), (15, Some(1500)));
        let all = totals.take(BTreeMap::from([(subnet(1), peer(12, 1))]), Some([0, 0]));
        assert_eq!(find(&all, "kernel", "out"), (17, Some(1700)));
        // It comes back and is counted from nothing.
        let both = BTreeMap::from([(subnet(1), peer(3, 1)), (subnet(2), peer(1, 2))]);
        let all = totals.take(both, Some([0, 0]));
        assert_eq!(find(&all, "kernel", "out"), (21, Some(2100)));
        assert_eq!(find(&all, "fast", "in").0, 5);
    }

    #[test]
    fn the_shortcuts_packets_are_no_longer_the_kernels() {
        let subnet: Ipv4Network = "10.5.1.0/24".parse().unwrap();
        let mut totals = Totals::default();
        let all = totals.take(BTreeMap::from([(subnet, peer(10, 0))]), Some([4, 0]));
        assert_eq!(find(&all, "kernel", "out").0, 6);
        assert_eq!(find(&all, "shortcut", "out"), (4, None));
        // Read at another moment: it does not fall.
        let all = totals.take(BTreeMap::from([(subnet, peer(10, 0))]), Some([5, 0]));
        assert_eq!(find(&all, "kernel", "out").0, 6);
    }
}
