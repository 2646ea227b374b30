//! The part of a node's state that a few peers have to do with.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::diff;
use crate::desired::Desired;
use crate::desired::roster::Touched;
use crate::observed::{Observed, ObservedRoute};
use crate::op::Op;

/// As [`diff`], where nothing but this has changed since they were the same.
pub fn diff_of(desired: &Desired, observed: &Observed, touched: &Touched) -> Vec<Op> {
    diff(&wanted(desired, touched), &found(desired.network, observed, touched))
}

fn wanted(desired: &Desired, touched: &Touched) -> Desired {
    let peer = |subnet| desired.peers.get(subnet).map(|peer| (peer.subnet, *peer));
    Desired {
        network: desired.network,
        mtu: desired.mtu,
        cut_mtu: desired.cut_mtu,
        device: desired.device.clone(),
        underlay: desired.underlay,
        peers: touched.subnets.iter().filter_map(peer).collect(),
        direct: desired.direct.intersection(&touched.subnets).copied().collect(),
        unmapped: desired.unmapped.intersection(&touched.subnets).copied().collect(),
    }
}

fn found(network: Ipv4Network, observed: &Observed, touched: &Touched) -> Observed {
    let mut part = Observed { device: observed.device.clone(), ..Observed::default() };
    part.maps = observed.maps.as_ref().map(|maps| {
        let entry = |subnet| maps.get(subnet).map(|peer| (*subnet, *peer));
        touched.subnets.iter().filter_map(entry).collect()
    });
    part.behind = observed.behind.intersection(&touched.subnets).copied().collect();
    for subnet in &touched.subnets {
        part.routes.extend(routes_to(observed, *subnet));
        part.direct.extend(observed.all_direct_to(*subnet));
        let hop = subnet.network();
        part.neighbours.extend(observed.neighbours.get(&hop).map(|mac| (hop, *mac)));
    }
    for mac in &touched.macs {
        part.fdb.extend(observed.destinations(*mac).map(|to| (*mac, to)));
    }
    // Those of other people keep their FDB entries.
    let outside = observed.neighbours.range(..network.network());
    let after = u32::from(network.broadcast()).checked_add(1).map(Ipv4Addr::from);
    let beyond = after.map(|after| observed.neighbours.range(after..));
    part.neighbours.extend(outside.chain(beyond.into_iter().flatten()));
    part
}

fn routes_to(
    observed: &Observed,
    destination: Ipv4Network,
) -> impl Iterator<Item = ObservedRoute> + '_ {
    let first = ObservedRoute::to_link(destination);
    let last = ObservedRoute {
        gateway: Some(Ipv4Addr::BROADCAST),
        onlink: true,
        metric: u32::MAX,
        extra: true,
        ..first
    };
    observed.routes.range(first..=last).copied()
}
