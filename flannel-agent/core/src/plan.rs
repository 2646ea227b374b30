//! The difference between desired and observed, as ordered operations. Pure.
//!
//! On our own device everything under the overlay network is ours: a route, a
//! neighbour entry or an address that belongs to no peer goes. So does an FDB
//! entry whose MAC is no peer's. What lies outside the overlay network stays,
//! with the FDB entries that its neighbours need.
//!
//! A MAC has one destination in the FDB, and an address one MAC in the
//! neighbour table. Where two peers of a [`Desired`] contradict each other,
//! the one later in the order of subnets (the more specific one, if they begin
//! at the same address) wins, each time: the plan never flips between them.
//! [`crate::desired::desired`] leaves such peers out in the first place.

mod excerpt;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::checksum::TunnelChecksum;
use crate::desired::{Desired, Device};
use crate::mac::MacAddr;
use crate::model::apply;
use crate::observed::{DirectRoute, Observed, ObservedDevice, ObservedRoute};
use crate::op::Op;
use crate::peer::Peer;
use crate::reach::PeerReach;
use crate::subnet::within;

pub use self::excerpt::diff_of;

/// Peers whose additions are carried out together: the first of many peers are
/// reached early, and batches are large.
pub const SLAB: usize = 64;

/// The operations that turn `observed` into `desired`, in the order in which
/// they are to be carried out: the device, then every addition and
/// replacement, then the removals. Empty when nothing differs.
///
/// Additions go in slabs of [`SLAB`] peers, within them by kind.
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Op> {
    diff_in_slabs(desired, observed, SLAB)
}

fn diff_in_slabs(desired: &Desired, observed: &Observed, size: usize) -> Vec<Op> {
    let mut ops = Vec::new();
    if let Some(device) = &desired.device {
        device_ops(device, desired.network, observed.device.as_ref(), &mut ops);
    }
    let mut base = Cow::Borrowed(observed);
    for op in &ops {
        apply(base.to_mut(), op);
    }
    let wanted = Wanted::new(desired);
    additions(desired, &wanted, &base, size, &mut ops);
    removals(desired, &wanted, &base, &mut ops);
    ops
}

/// Entries that the peers need, contradictions settled.
struct Wanted {
    neighbours: BTreeMap<Ipv4Addr, MacAddr>,
    fdb: BTreeMap<MacAddr, Ipv4Addr>,
}

impl Wanted {
    fn new(desired: &Desired) -> Self {
        let peers = desired.tunnelled();
        Self {
            neighbours: peers.clone().map(|peer| (peer.subnet.network(), peer.vtep_mac)).collect(),
            fdb: peers.map(|peer| (peer.vtep_mac, peer.public_ip)).collect(),
        }
    }
}

fn device_ops(
    want: &Device,
    network: Ipv4Network,
    have: Option<&ObservedDevice>,
    ops: &mut Vec<Op>,
) {
    let misfit = have.and_then(|have| misfit(want, have));
    let kept = match (have, misfit) {
        (None, _) => None,
        (Some(have), None) => Some(have),
        (Some(_), Some(why)) => {
            ops.push(Op::DeleteDevice { name: want.name.clone(), why });
            None
        }
    };
    match kept {
        None => ops.push(Op::CreateDevice(want.clone())),
        Some(have) => {
            if have.mac != want.mac {
                ops.push(Op::SetMac(want.mac));
            }
            if have.mtu != want.mtu {
                ops.push(Op::SetMtu(want.mtu));
            }
        }
    }
    // One that was made just now leaves checksums to the card.
    let checksum = kept.map_or(Some(TunnelChecksum::Device), |have| have.checksum);
    ops.extend(want.checksum.filter(|want| Some(*want) != checksum).map(Op::SetChecksum));
    let own = Ipv4Network::from(want.address);
    if !kept.is_some_and(|have| have.addresses.contains(&own)) {
        ops.push(Op::AddAddress(want.address));
    }
    let unrouted = |have: &ObservedDevice| have.up && have.unrouted.contains(&want.address);
    if kept.is_some_and(unrouted) {
        ops.push(Op::PutLocal(want.address));
    }
    if kept.is_some_and(|have| have.proto_down) {
        ops.push(Op::EndProtoDown);
    }
    if !kept.is_some_and(|have| have.up) {
        ops.push(Op::SetUp);
    }
    let others = kept.into_iter().flat_map(|have| &have.addresses);
    ops.extend(
        others
            .filter(|address| **address != own && network.contains(address.ip()))
            .map(|address| Op::RemoveAddress(*address)),
    );
}

/// Why a device cannot be kept: an attribute that only creation sets.
fn misfit(want: &Device, have: &ObservedDevice) -> Option<String> {
    let Some(vxlan) = &have.vxlan else {
        return Some("it is no VXLAN device".to_owned());
    };
    let mut why = Vec::new();
    let mut compare = |name: &str, have: String, want: String| {
        if have != want {
            why.push(format!("{name} is {have}, not {want}"));
        }
    };
    compare("VNI", vxlan.vni.to_string(), want.vni.to_string());
    compare("port", vxlan.port.to_string(), want.port.to_string());
    let local = vxlan.local.map_or_else(|| "unset".to_owned(), |local| local.to_string());
    compare("local address", local, want.local.to_string());
    compare("underlay ifindex", vxlan.underlay.to_string(), want.underlay.to_string());
    compare("gbp", vxlan.gbp.to_string(), want.gbp.to_string());
    compare("learning", vxlan.learning.to_string(), want.learning.to_string());
    compare("TTL", vxlan.ttl.to_string(), "0".to_owned());
    compare("DF", vxlan.df.to_string(), "false".to_owned());
    let remote = vxlan.remote.map_or_else(|| "unset".to_owned(), |remote| remote.to_string());
    compare("remote address", remote, "unset".to_owned());
    if have.bridge_port {
        why.push("it is a port of a bridge".to_owned());
    }
    (!why.is_empty()).then(|| why.join(", "))
}

/// What a slab of peers needs, by kind, in the order in which it is carried out:
/// operations of one kind go to the kernel or into the maps together.
#[derive(Default)]
struct Slab {
    /// Neighbour entries where there were none: no route leads to them yet.
    neighbours: Vec<Op>,
    fdb: Vec<Op>,
    /// Neighbour entries that are only being changed already carry traffic: the
    /// FDB must know the new MAC before it is used.
    changed: Vec<Op>,
    maps: Vec<Op>,
    routes: Vec<Op>,
    direct: Vec<Op>,
}

impl Slab {
    /// The route of each peer comes behind everything that it needs.
    fn into_ops(self) -> impl Iterator<Item = Op> {
        let Self { neighbours, fdb, changed, maps, routes, direct } = self;
        [neighbours, fdb, changed, maps, routes, direct].into_iter().flatten()
    }
}

fn additions(desired: &Desired, wanted: &Wanted, base: &Observed, size: usize, ops: &mut Vec<Op>) {
    let mut fdb_done = BTreeSet::new();
    let mut slab = Slab::default();
    for (count, peer) in desired.peers.values().enumerate() {
        if count % size == 0 {
            ops.extend(std::mem::take(&mut slab).into_ops());
        }
        // Direct peers, too: their packets may come through the tunnel, and
        // the check of the source has to know them.
        let put_maps = !desired.unmapped.contains(&peer.subnet)
            && base.maps.as_ref().is_some_and(|maps| maps.get(&peer.subnet) != Some(peer));
        if desired.reach(&peer.subnet) == PeerReach::Direct {
            slab.maps.extend(put_maps.then_some(Op::PutMaps(*peer)));
            let route = direct_to(desired, peer);
            let there = base.direct.contains(&route);
            put_route(base, there, Op::RemoveDirect(route), Op::PutDirect(route), &mut slab.direct);
            continue;
        }
        if desired.device.is_none() {
            continue;
        }
        let hop = peer.subnet.network();
        let mac = wanted.neighbours[&hop];
        let have = base.neighbours.get(&hop);
        let changes = have.is_some_and(|have| *have != mac);
        if have.is_none() {
            slab.neighbours.push(Op::PutNeighbour(hop, mac));
        }
        if fdb_done.insert(peer.vtep_mac) {
            put_fdb(peer.vtep_mac, wanted.fdb[&peer.vtep_mac], base, &mut slab.fdb);
        }
        if changes {
            if fdb_done.insert(mac) {
                put_fdb(mac, wanted.fdb[&mac], base, &mut slab.fdb);
            }
            slab.changed.push(Op::PutNeighbour(hop, mac));
        }
        slab.maps.extend(put_maps.then_some(Op::PutMaps(*peer)));
        let route = ObservedRoute::to_peer(peer.subnet);
        let there = base.routes.contains(&route);
        let put = Op::PutRoute(peer.subnet);
        put_route(base, there, Op::RemoveRoute(route), put, &mut slab.routes);
    }
    ops.extend(slab.into_ops());
}

/// A route that is `there`, behind another one's, cannot be put in its place: it goes, which
/// no packet notices, and comes again in the place of the first.
fn put_route(base: &Observed, there: bool, remove: Op, put: Op, ops: &mut Vec<Op>) {
    let behind = match &put {
        Op::PutDirect(route) => base.behind.contains(&route.destination),
        Op::PutRoute(subnet) => base.behind.contains(subnet),
        _ => false,
    };
    if there && behind {
        ops.push(remove);
    }
    if !there || behind {
        ops.push(put);
    }
}

fn direct_to(desired: &Desired, peer: &Peer) -> DirectRoute {
    DirectRoute::to_peer(peer.subnet, peer.public_ip, desired.underlay)
}

/// A unicast MAC has one destination in the kernel's FDB, and replacing turns
/// it into the new one without a gap. Should there be more, they are removed
/// behind it.
fn put_fdb(mac: MacAddr, ip: Ipv4Addr, base: &Observed, ops: &mut Vec<Op>) {
    let others: Vec<Ipv4Addr> = base.destinations(mac).filter(|other| *other != ip).collect();
    let present = base.fdb.contains(&(mac, ip));
    if !present {
        ops.push(Op::PutFdb(mac, ip));
    }
    if present || others.len() > 1 {
        ops.extend(others.into_iter().map(|other| Op::RemoveFdb(mac, other)));
    }
}

fn removals(desired: &Desired, wanted: &Wanted, base: &Observed, ops: &mut Vec<Op>) {
    let network = desired.network;
    let through_device = |subnet: &Ipv4Network| {
        desired.peers.contains_key(subnet) && desired.reach(subnet) == PeerReach::Tunnel
    };
    let stale_route = |route: &&ObservedRoute| {
        within(network, route.destination)
            && match through_device(&route.destination) {
                // PutRoute replaces a route of its own metric.
                true => {
                    **route != ObservedRoute::to_peer(route.destination) && !replaced(base, route)
                }
                false => true,
            }
    };
    for route in base.routes.iter().filter(stale_route) {
        ops.push(Op::RemoveRoute(*route));
        let same_way = ObservedRoute { extra: false, ..*route };
        let wanted = ObservedRoute::to_peer(route.destination);
        // As with direct routes, below.
        if through_device(&route.destination) && same_way == wanted {
            ops.push(Op::PutRoute(route.destination));
        }
    }
    removals_of_direct(desired, base, ops);
    if let Some(maps) = &base.maps {
        let mapped = |subnet: &&Ipv4Network| {
            desired.peers.contains_key(subnet) && !desired.unmapped.contains(subnet)
        };
        let stale = maps.keys().filter(|subnet| !mapped(subnet));
        ops.extend(stale.map(|subnet| Op::RemoveMaps(*subnet)));
    }
    let foreign: BTreeSet<MacAddr> = base
        .neighbours
        .iter()
        .filter(|(ip, _)| !network.contains(**ip))
        .map(|(_, mac)| *mac)
        .collect();
    let stale =
        base.fdb.iter().filter(|(mac, _)| !wanted.fdb.contains_key(mac) && !foreign.contains(mac));
    ops.extend(stale.map(|(mac, ip)| Op::RemoveFdb(*mac, *ip)));
    let stale = base
        .neighbours
        .iter()
        .filter(|(ip, _)| network.contains(**ip) && !wanted.neighbours.contains_key(ip));
    ops.extend(stale.map(|(ip, mac)| Op::RemoveNeighbour(*ip, *mac)));
}

/// Those that a route of the other kind has just replaced are named, too: which of several
/// routes the kernel replaces cannot be told from here.
///
/// The kernel deletes a route by its way, whatever else is told of it. So one with the
/// right way and something more may take ours with it, which is put again.
fn removals_of_direct(desired: &Desired, base: &Observed, ops: &mut Vec<Op>) {
    for route in base.direct.iter().filter(|route| within(desired.network, route.destination)) {
        let peer = desired.peers.get(&route.destination);
        let peer = peer.filter(|peer| desired.reach(&peer.subnet) == PeerReach::Direct);
        let wanted = peer.map(|peer| direct_to(desired, peer));
        let same_way = wanted.filter(|wanted| DirectRoute { extra: false, ..*route } == *wanted);
        if wanted == Some(*route) {
            continue;
        }
        // PutDirect has replaced the only one.
        let first = !base.behind.contains(&route.destination);
        if first && same_way.is_some() && base.all_direct_to(route.destination).count() == 1 {
            continue;
        }
        ops.push(Op::RemoveDirect(*route));
        ops.extend(same_way.map(Op::PutDirect));
    }
}

/// What goes when the overlay network is another one than before: all of the
/// `former` one that is not in `network`, which a plan looks after.
pub fn retire(observed: &Observed, former: Ipv4Network, network: Ipv4Network) -> Vec<Op> {
    let past = |subnet: Ipv4Network| within(former, subnet) && !within(network, subnet);
    let mut ops = Vec::new();
    let routes = observed.routes.iter().filter(|route| past(route.destination));
    ops.extend(routes.map(|route| Op::RemoveRoute(*route)));
    let direct = observed.direct.iter().filter(|route| past(route.destination));
    ops.extend(direct.map(|route| Op::RemoveDirect(*route)));
    let neighbours = observed.neighbours.iter().filter(|(ip, _)| past(Ipv4Network::from(**ip)));
    ops.extend(neighbours.map(|(ip, mac)| Op::RemoveNeighbour(*ip, *mac)));
    let addresses = observed.device.iter().flat_map(|device| &device.addresses);
    let addresses = addresses.filter(|address| past(Ipv4Network::from(address.ip())));
    ops.extend(addresses.map(|address| Op::RemoveAddress(*address)));
    ops
}

/// Whether putting the peer's route takes the place of `route`: the kernel
/// replaces the first route with the same destination and metric.
fn replaced(base: &Observed, route: &ObservedRoute) -> bool {
    let peer = ObservedRoute::to_peer(route.destination);
    let first = !base.behind.contains(&route.destination);
    first && !base.routes.contains(&peer) && base.first_to(route.destination) == Some(*route)
}
