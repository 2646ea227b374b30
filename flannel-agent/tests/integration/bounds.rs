//! Sizes of packets to peers in the programs' maps.

use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData};
use flannel_agent::bpf::loader::Loaded;
use flannel_agent::bpf::{AttachMode, Bounded, Datapath as _, Which};
use flannel_core::limits::{Destination, TunnelEnd};
use flannel_ebpf::abi::{ABI_VERSION, Subnet, map, subnet_flag};

use crate::place::{isolated, open, peer};

/// What the programs know of this peer.
fn known(pins: &Path, number: u8) -> Subnet {
    let pin = pins.join(format!("v{ABI_VERSION}")).join(map::SUBNETS4);
    let subnets = Map::LpmTrie(MapData::from_pin(pin).unwrap());
    let subnets = LpmTrie::<_, [u8; 4], Subnet>::try_from(subnets).unwrap();
    let subnet = peer(number).subnet;
    subnets.get(&Key::new(u32::from(subnet.prefix()), subnet.network().octets()), 0).unwrap()
}

fn largest(pins: &Path, number: u8) -> u16 {
    known(pins, number).largest()
}

/// Peers with even numbers have this bound.
fn bound(agent: &Loaded, which: Which, largest: u16) -> Option<Bounded> {
    let mut ask = |to: Destination, _: TunnelEnd| {
        let [_, _, number, _] = to.subnet.network().octets();
        (number % 2 == 0).then_some(largest)
    };
    agent.teller().bound_peers(which, Some(&mut ask)).unwrap()
}

const UNBOUNDED: u16 = u16::MAX;

#[test]
fn peers_keep_the_sizes_of_their_routes() {
    isolated(|pins| {
        let mut agent = open(pins, AttachMode::Tcx);
        agent.put_peers(&[peer(2), peer(3)]).unwrap();
        agent.set_direct(&[peer(3).subnet].into()).unwrap();
        assert_eq!(bound(&agent, Which::All, 1300), Some(Bounded { narrow: 1, left: 0 }));
        assert_eq!((largest(pins, 2), largest(pins, 3)), (1300, UNBOUNDED));
        assert_ne!(known(pins, 3).flags & subnet_flag::DIRECT, 0);
        assert_eq!(bound(&agent, Which::All, 1300), None);
        // The kernel sends to new peers, and to those that moved, until somebody asks.
        let moved = flannel_core::peer::Peer { public_ip: peer(9).public_ip, ..peer(2) };
        agent.put_peers(&[moved, peer(3), peer(4), peer(5)]).unwrap();
        assert_eq!([2, 3, 4, 5].map(|number| largest(pins, number)), [0, UNBOUNDED, 0, 0]);
        agent.set_direct(&[].into()).unwrap();
        assert_eq!(largest(pins, 3), 0);
        assert!(bound(&agent, Which::New, 1250).is_some());
        let all = [2, 3, 4, 5].map(|number| largest(pins, number));
        assert_eq!(all, [1250, UNBOUNDED, 1250, UNBOUNDED]);
        assert_eq!(bound(&agent, Which::New, 1200), None);
        assert_eq!(agent.mend().unwrap(), 0);
        drop(agent);
        // They hold until the next run has asked, and then no longer.
        let mut agent = open(pins, AttachMode::Tcx);
        agent.put_peers(&[moved, peer(6)]).unwrap();
        assert_eq!((largest(pins, 2), largest(pins, 6)), (1250, 0));
        let now = agent.teller().bound_peers(Which::All, None).unwrap();
        assert_eq!(now, Some(Bounded::default()));
        let all = [2, 3, 4, 5, 6].map(|number| largest(pins, number));
        assert_eq!(all, [UNBOUNDED; 5]);
        agent.put_peers(&[peer(7)]).unwrap();
        assert_eq!(largest(pins, 7), UNBOUNDED);
    });
}
