//! What an operation does to the kernel's tables and the maps.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::checksum::TunnelChecksum;
use crate::desired::Device;
use crate::mac::MacAddr;
use crate::observed::{DirectRoute, Observed, ObservedDevice, ObservedRoute, ObservedVxlan};
use crate::op::Op;

/// What an operation does to the kernel's tables and the maps: the model that
/// `kernel::fake` and the tests use. Like the kernel's, every operation is
/// idempotent; an operation on a device that is not there does nothing.
pub fn apply(observed: &mut Observed, op: &Op) {
    match op {
        Op::DeleteDevice { .. } => {
            *observed = Observed {
                maps: observed.maps.take(),
                direct: std::mem::take(&mut observed.direct),
                behind: std::mem::take(&mut observed.behind),
                ..Observed::default()
            };
        }
        Op::CreateDevice(device) if observed.device.is_none() => {
            observed.device = Some(created(device));
        }
        Op::PutMaps(peer) => {
            if let Some(maps) = &mut observed.maps {
                maps.insert(peer.subnet, *peer);
            }
        }
        Op::RemoveMaps(subnet) => {
            if let Some(maps) = &mut observed.maps {
                maps.remove(subnet);
            }
        }
        Op::PutDirect(route) => put_direct(observed, *route),
        Op::RemoveDirect(route) => {
            observed.direct.remove(route);
        }
        _ if observed.device.is_none() => {}
        Op::PutNeighbour(ip, mac) => {
            observed.neighbours.insert(*ip, *mac);
        }
        Op::RemoveNeighbour(ip, _) => {
            observed.neighbours.remove(ip);
        }
        Op::PutFdb(mac, ip) => put_fdb(observed, *mac, *ip),
        Op::RemoveFdb(mac, ip) => {
            observed.fdb.remove(&(*mac, *ip));
        }
        Op::PutRoute(subnet) => put_route(observed, *subnet),
        Op::PutLinkRoute(network) => {
            observed.routes.insert(ObservedRoute::to_link(*network));
        }
        Op::RemoveRoute(route) => {
            observed.routes.remove(route);
        }
        Op::SetMac(_)
        | Op::SetMtu(_)
        | Op::SetChecksum(_)
        | Op::EndProtoDown
        | Op::SetUp
        | Op::AddAddress(_)
        | Op::PutLocal(_)
        | Op::RemoveAddress(_)
        | Op::CreateDevice(_) => apply_to_device(observed, op),
    }
}

/// As NLM_F_REPLACE: the first route to the destination gives way, whoever made it.
fn put_direct(observed: &mut Observed, route: DirectRoute) {
    if observed.behind.remove(&route.destination) {
        observed.direct.insert(route);
        return;
    }
    if observed.direct.contains(&route) {
        return;
    }
    if let Some(old) = observed.direct_to(route.destination) {
        observed.direct.remove(&old);
    } else if let Some(old) = observed.first_to(route.destination) {
        observed.routes.remove(&old);
    }
    observed.direct.insert(route);
}

/// As [`put_direct`], through the device.
fn put_route(observed: &mut Observed, subnet: Ipv4Network) {
    let route = ObservedRoute::to_peer(subnet);
    if observed.behind.remove(&subnet) {
        observed.routes.insert(route);
        return;
    }
    if observed.routes.contains(&route) {
        return;
    }
    if let Some(old) = observed.first_to(subnet) {
        observed.routes.remove(&old);
    } else if let Some(old) = observed.direct_to(subnet) {
        observed.direct.remove(&old);
    }
    observed.routes.insert(route);
}

/// The first destination of the MAC gives way.
fn put_fdb(observed: &mut Observed, mac: MacAddr, ip: Ipv4Addr) {
    if observed.fdb.contains(&(mac, ip)) {
        return;
    }
    let first = observed.destinations(mac).next();
    if let Some(first) = first {
        observed.fdb.remove(&(mac, first));
    }
    observed.fdb.insert((mac, ip));
}

fn apply_to_device(observed: &mut Observed, op: &Op) {
    let Some(device) = &mut observed.device else { return };
    match op {
        Op::SetMac(mac) if device.mac != *mac => {
            device.mac = *mac;
            // The kernel flushes a device's neighbours when its MAC changes,
            // the permanent ones too.
            observed.neighbours.clear();
        }
        Op::SetMtu(mtu) => device.mtu = *mtu,
        Op::SetChecksum(by) => device.checksum = Some(*by),
        Op::EndProtoDown => device.proto_down = false,
        // The kernel puts the routes of all addresses, then.
        Op::SetUp => {
            device.up = true;
            device.unrouted.clear();
        }
        Op::AddAddress(address) => {
            device.addresses.insert(Ipv4Network::from(*address));
        }
        Op::PutLocal(address) => {
            device.unrouted.remove(address);
        }
        Op::RemoveAddress(address) => {
            device.addresses.remove(address);
        }
        _ => {}
    }
}

pub(crate) fn created(device: &Device) -> ObservedDevice {
    ObservedDevice {
        ifindex: device.underlay + 1,
        vxlan: Some(ObservedVxlan {
            vni: device.vni,
            port: device.port,
            local: Some(device.local),
            underlay: device.underlay,
            gbp: device.gbp,
            learning: device.learning,
            ..ObservedVxlan::default()
        }),
        mac: device.mac,
        mtu: device.mtu,
        up: false,
        proto_down: false,
        bridge_port: false,
        addresses: BTreeSet::new(),
        unrouted: BTreeSet::new(),
        checksum: Some(TunnelChecksum::Device),
    }
}
