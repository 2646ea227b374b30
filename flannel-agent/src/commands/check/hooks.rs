//! Other people's programs and filters on devices that have ours.

use std::collections::{BTreeMap, BTreeSet};

use flannel_core::check::facts::{Foreign, Known, Unknown};
use flannel_core::pods::{self, Choice};

use super::node::DeviceRoles;
use crate::bpf::features;
use crate::commands::known::Daemon;
use crate::kernel::Kernel as _;
use crate::kernel::netlink::RealKernel;

/// Pods' veths that are looked at.
const VETHS: usize = 256;

/// Whose programs and filters are on underlay, overlay, and the pods' veths.
pub(super) fn foreign(
    kernel: &RealKernel,
    node: &DeviceRoles,
    daemon: &Daemon,
) -> Known<Vec<Foreign>> {
    let devices = devices(node, daemon);
    let mut found = Vec::new();
    for (ifindex, name) in &devices {
        found.extend(features::foreign_programs(*ifindex, name)?);
    }
    let indexes: BTreeSet<u32> = devices.keys().copied().collect();
    let traffic = kernel.inspector().traffic_control(&indexes).map_err(Unknown::because)?;
    for (ifindex, control) in traffic {
        let sides = [("ingress", control.ingress), ("egress", control.egress)];
        for (side, filter) in sides
            .into_iter()
            .flat_map(|(side, filters)| filters.into_iter().map(move |filter| (side, filter)))
            .filter(|(_, filter)| !filter.ours)
        {
            let what = format!("a {} filter of priority {}", filter.kind, filter.priority);
            let device = devices.get(&ifindex).cloned().unwrap_or_default();
            found.push(Foreign { device, side, what });
        }
    }
    Ok(found)
}

fn devices(node: &DeviceRoles, daemon: &Daemon) -> BTreeMap<u32, String> {
    let ends = [&node.underlay, &node.overlay].into_iter().flatten();
    let mut devices: BTreeMap<u32, String> =
        ends.map(|link| (link.ifindex, link.name.clone())).collect();
    let Some(network) = &daemon.network else { return devices };
    let choice = Choice {
        underlay: node.underlay.as_ref().map_or(0, |link| link.ifindex),
        overlay: node.overlay.as_ref().map(|link| link.ifindex),
        network: network.network.unwrap_or(network.subnet),
        subnet: network.subnet,
        uplinks: &BTreeSet::new(),
        names: None,
    };
    let veths = pods::pod_veths(&node.links, choice).into_iter().take(VETHS);
    devices.extend(veths.map(|link| (link.ifindex, link.name.clone())));
    devices
}
