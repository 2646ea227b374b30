//! Carries out a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use flannel_core::model;
use flannel_core::op::Op;
use flannel_core::repair::Repair;
use flannel_ebpf::abi::MAX_PEERS;
use ipnetwork::Ipv4Network;

use super::Reconciler;
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::status::lock;

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Carries out a plan in its order: neighbouring operations of one kind go
    /// together. Returns whether the device was created or deleted.
    /// With `repairs` what has to be done is counted as such.
    pub(super) async fn carry_out(&mut self, ops: &[Op], repairs: bool) -> bool {
        let tunnel = self.tunnel().unwrap_or_default();
        let mut ran = Ran::new(repairs);
        for group in ops.chunk_by(|a, b| kind(a) == kind(b)) {
            if !ran.grounded && kind(&group[0]) == Kind::Entries {
                continue;
            }
            // What a peer was reached by stays until the new way is there.
            let group: Vec<Op> =
                group.iter().filter(|op| !needed(&ran.unreached, op)).cloned().collect();
            let group = group.as_slice();
            if group.is_empty() {
                continue;
            }
            let results = match kind(&group[0]) {
                Kind::Maps => self.write_maps(group),
                Kind::Device | Kind::Entries | Kind::Direct => self
                    .kernel
                    .apply(&tunnel, group)
                    .await
                    .into_iter()
                    .map(|result| result.map_err(|error| error.to_string()))
                    .collect(),
            };
            for (op, result) in group.iter().zip(results) {
                // Without a device nothing on it works: one cause, one
                // complaint.
                if ran.grounded || !is_device(op) {
                    self.ran(op, result, &mut ran);
                }
            }
        }
        ran.device_changed
    }

    /// Takes what became of one operation.
    fn ran(&mut self, op: &Op, result: Result<(), String>, ran: &mut Ran) {
        if let Err(reason) = result {
            match op {
                Op::PutRoute(subnet) => ran.unreached.insert(*subnet),
                Op::PutDirect(route) => ran.unreached.insert(route.destination),
                _ => false,
            };
            self.retries.failed(op, reason);
            ran.grounded &= !is_ground(op);
            self.seen.stale = true;
            return;
        }
        self.log(op);
        if ran.repairs {
            self.shared.lock().record.repaired(Repair::of(op), 1);
        }
        self.retries.worked(op);
        if matches!(op, Op::CreateDevice(_) | Op::DeleteDevice { .. }) {
            ran.device_changed = true;
            self.seen.device = None;
        }
        if let Some(observed) = &mut self.seen.observed {
            model::apply(observed, op);
        }
    }

    fn log(&self, op: &Op) {
        match op {
            Op::CreateDevice(device) => tracing::info!(
                device = device.name,
                mac = %device.mac,
                mtu = device.mtu,
                "VXLAN device created"
            ),
            Op::DeleteDevice { name, why } => {
                tracing::warn!(device = name, why, "device removed: it does not fit");
            }
            Op::SetMac(mac) => tracing::warn!(%mac, "device MAC set back"),
            Op::SetMtu(mtu) => tracing::info!(mtu, "device MTU set"),
            Op::SetChecksum(by) => {
                tracing::info!(%by, "tunnel checksum set");
            }
            Op::PutLinkRoute(network) => tracing::debug!(%network, "overlay route added"),
            Op::PutRoute(subnet) => tracing::debug!(%subnet, "peer route added"),
            Op::RemoveRoute(route) => {
                tracing::debug!(subnet = %route.destination, "peer route removed");
            }
            Op::PutDirect(route) => {
                tracing::debug!(subnet = %route.destination, "direct route added");
            }
            Op::RemoveDirect(route) => {
                tracing::debug!(subnet = %route.destination, "direct route removed");
            }
            _ => {}
        }
    }

    fn write_maps(&self, group: &[Op]) -> Vec<Result<(), String>> {
        let mut guard = lock(&self.datapath);
        let Some(datapath) = guard.as_mut() else {
            return group.iter().map(|_| Err("there is no eBPF data path".to_owned())).collect();
        };
        let mut put = Vec::new();
        let mut remove = Vec::new();
        for op in group {
            match op {
                Op::PutMaps(peer) => put.push(*peer),
                Op::RemoveMaps(subnet) => remove.push(*subnet),
                _ => {}
            }
        }
        let there = self.seen.observed.as_ref().and_then(|observed| observed.maps.as_ref());
        let full = there.map_or(0, BTreeMap::len) + put.len() > MAX_PEERS as usize;
        let mut remove_peers = || datapath.remove_peers(&remove);
        // Room is made first only where it is needed: otherwise a subnet that is
        // replaced by another keeps its peer meanwhile.
        let written = if full { remove_peers() } else { Ok(()) };
        let written = written
            .and_then(|()| datapath.put_peers(&put))
            .and_then(|()| if full { Ok(()) } else { datapath.remove_peers(&remove) })
            .map_err(|error| error.to_string());
        drop(guard);
        if !put.is_empty() {
            self.watch.look_at_new_peers();
        }
        group.iter().map(|_| written.clone()).collect()
    }
}

/// What became of a plan so far.
struct Ran {
    /// What is done repairs what the last pass left.
    repairs: bool,
    /// The device was created or deleted.
    device_changed: bool,
    /// What entries hang on is there.
    grounded: bool,
    /// Peers whose new route could not be put.
    unreached: BTreeSet<Ipv4Network>,
}

impl Ran {
    fn new(repairs: bool) -> Self {
        Self { repairs, device_changed: false, grounded: true, unreached: BTreeSet::new() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Device,
    Entries,
    Direct,
    Maps,
}

/// Whether this removal would take the present way to a peer for which no new
/// one could be put.
fn needed(unreached: &BTreeSet<Ipv4Network>, op: &Op) -> bool {
    match op {
        Op::RemoveRoute(route) => unreached.contains(&route.destination),
        Op::RemoveDirect(route) => unreached.contains(&route.destination),
        Op::RemoveNeighbour(address, _) => begins_at(unreached, *address),
        Op::RemoveFdb(..) => !unreached.is_empty(),
        _ => false,
    }
}

/// Whether one of these subnets begins at this address.
fn begins_at(subnets: &BTreeSet<Ipv4Network>, address: Ipv4Addr) -> bool {
    let [first, last] = [0, 32].map(|prefix| Ipv4Network::new(address, prefix));
    let (Ok(first), Ok(last)) = (first, last) else { return false };
    subnets.range(first..=last).next().is_some()
}

fn kind(op: &Op) -> Kind {
    if op.is_maps() {
        Kind::Maps
    } else if op.is_direct() {
        Kind::Direct
    } else if is_device(op) {
        Kind::Device
    } else {
        Kind::Entries
    }
}

/// Whether the operation is about the device itself.
fn is_device(op: &Op) -> bool {
    matches!(
        op,
        Op::DeleteDevice { .. }
            | Op::CreateDevice(_)
            | Op::SetMac(_)
            | Op::SetMtu(_)
            | Op::SetChecksum(_)
            | Op::EndProtoDown
            | Op::SetUp
            | Op::AddAddress(_)
            | Op::PutLocal(_)
            | Op::RemoveAddress(_)
    )
}

/// Whether entries on the device cannot be made before this has worked.
pub(super) fn is_ground(op: &Op) -> bool {
    matches!(op, Op::DeleteDevice { .. } | Op::CreateDevice(_) | Op::SetUp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_found_by_its_first_address() {
        let subnets: BTreeSet<Ipv4Network> =
            ["10.5.1.0/24", "10.5.3.0/32", "10.5.5.0/25"].map(|text| text.parse().unwrap()).into();
        for third in 0..7 {
            let address = Ipv4Addr::new(10, 5, third, 0);
            let expected = subnets.iter().any(|subnet| subnet.network() == address);
            assert_eq!(begins_at(&subnets, address), expected, "{address}");
        }
        assert!(!begins_at(&subnets, Ipv4Addr::new(10, 5, 1, 1)));
    }
}
