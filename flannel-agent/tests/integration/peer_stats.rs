//! The map of the peers' counters: a part for each CPU.

use std::path::Path;

use aya::maps::{Array, Map, MapData};
use flannel_agent::bpf::{AttachMode, Datapath as _};
use flannel_core::peer::Peer;
use flannel_core::status::PeerCounters;
use flannel_ebpf::abi::{ABI_VERSION, MAX_PEER_STATS, PeerStats};

use crate::place::{isolated, open, peer};

/// Peers of the test.
const MANY: u8 = 9;

fn counters(pins: &Path) -> Array<MapData, PeerStats> {
    let map = MapData::from_pin(pins.join(format!("v{ABI_VERSION}/fl_peer_stats")));
    Map::Array(map.unwrap()).try_into().unwrap()
}

/// As if programs had counted on each CPU: one packet more on each.
fn count(pins: &Path, id: u32) -> u64 {
    let mut map = counters(pins);
    let cpus = map.len() / MAX_PEER_STATS;
    for cpu in 0..cpus {
        let packets = u64::from(cpu + 1);
        let stats =
            PeerStats { tx_fast_packets: packets, rx_kernel_bytes: 7, ..Default::default() };
        map.set(PeerStats::index(cpu, id), stats, 0).unwrap();
    }
    (1..=u64::from(cpus)).sum()
}

#[test]
fn counters_are_summed_over_the_cpus_and_begin_at_zero_for_another_peer() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        let peers: Vec<Peer> = (1..=MANY).map(peer).collect();
        datapath.put_peers(&peers).unwrap();
        let cpus = u64::from(counters(pins).len() / MAX_PEER_STATS);
        assert_eq!(cpus, aya::util::nr_cpus().unwrap() as u64);
        // Ids are given in the order of the peers.
        let (second, last) = (1, u32::from(MANY) - 1);
        let packets = count(pins, second);
        count(pins, last);
        let read = datapath.meter().peer_counters().unwrap();
        let counted = PeerCounters {
            tx_fast_packets: packets,
            rx_kernel_bytes: 7 * cpus,
            ..Default::default()
        };
        assert_eq!(read[&peers[1].subnet], counted);
        assert_eq!(read[&peers[8].subnet], counted);
        assert_eq!(read[&peers[0].subnet], PeerCounters::default());
        // A new peer takes the id of one that has gone, and nothing of its counters.
        datapath.remove_peers(&[peers[1].subnet]).unwrap();
        let new = peer(MANY + 1);
        datapath.put_peers(&[new]).unwrap();
        let read = datapath.meter().peer_counters().unwrap();
        assert_eq!(read[&new.subnet], PeerCounters::default());
        assert_eq!(read[&peers[8].subnet], counted);
        let map = counters(pins);
        for cpu in 0..cpus as u32 {
            let stats = map.get(&PeerStats::index(cpu, second), 0).unwrap();
            assert_eq!(stats, PeerStats::default(), "on CPU {cpu}");
        }
    });
}
