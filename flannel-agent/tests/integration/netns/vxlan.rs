//! A node with a VXLAN device, and rounds of reconciling it.

use std::net::Ipv4Addr;

use flannel_agent::kernel::netlink::RealKernel;
use flannel_agent::kernel::{Kernel, PROTOCOL};
use flannel_core::desired::{Desired, Device};
use flannel_core::mac::MacAddr;
use flannel_core::observed::Observed;
use flannel_core::op::Op;
use flannel_core::peer::Peer;
use flannel_core::plan;
use ipnetwork::Ipv4Network;

use super::{json, run};

pub(crate) const OWN_MAC: MacAddr = MacAddr([0x72, 0x35, 0x2e, 0xf2, 0xe7, 0xc9]);

/// An underlay: eth0 with 192.0.2.1/24, and its other end, up.
pub(crate) fn underlay() -> u32 {
    run("ip link add eth0 type veth peer name wire");
    run("ip link set wire up");
    run("ip link set eth0 up");
    run("ip address add 192.0.2.1/24 dev eth0");
    ifindex("eth0")
}

pub(crate) fn ifindex(name: &str) -> u32 {
    json(&format!("ip -j link show {name}"))[0]["ifindex"].as_u64().unwrap() as u32
}

pub(crate) fn device(underlay: u32) -> Device {
    Device {
        name: "flannel.1".to_owned(),
        vni: 1,
        port: 8472,
        local: Ipv4Addr::new(192, 0, 2, 1),
        underlay,
        mac: OWN_MAC,
        mtu: 1450,
        gbp: false,
        learning: false,
        address: Ipv4Addr::new(10, 5, 0, 0),
        checksum: None,
    }
}

pub(crate) fn peer(n: u16) -> Peer {
    let [high, low] = n.to_be_bytes();
    let subnet = Ipv4Addr::from((0x0a05_0000_u32) + (u32::from(n) << 8));
    Peer {
        subnet: Ipv4Network::new(subnet, 24).unwrap(),
        vtep_mac: MacAddr([2, 0, 0, 0, high, low]),
        public_ip: Ipv4Addr::new(198, 18, high, low),
    }
}

pub(crate) fn desired(underlay: u32, peers: impl IntoIterator<Item = Peer>) -> Desired {
    let device = device(underlay);
    Desired {
        cut_mtu: None,
        network: "10.5.0.0/16".parse().unwrap(),
        mtu: device.mtu,
        device: Some(device),
        underlay,
        peers: peers.into_iter().map(|peer| (peer.subnet, peer)).collect(),
        direct: Default::default(),
        unmapped: Default::default(),
    }
}

/// One round of reconciling; every operation must succeed.
pub(crate) async fn reconcile(kernel: &RealKernel, desired: &Desired) -> Vec<Op> {
    let name = &device_name(desired);
    let ops = plan::diff(desired, &observe(kernel, desired).await);
    for (op, result) in ops.iter().zip(kernel.apply(name, &ops).await) {
        result.unwrap_or_else(|error| panic!("{op:?}: {error}"));
    }
    ops
}

pub(crate) fn device_name(desired: &Desired) -> String {
    desired.device.as_ref().map(|device| device.name.clone()).unwrap_or_default()
}

async fn observe(kernel: &RealKernel, desired: &Desired) -> Observed {
    let direct = kernel.direct_routes(PROTOCOL).await.unwrap();
    let observed = kernel.observe(&device_name(desired)).await.unwrap();
    let overlay = observed.device.as_ref().map(|device| device.ifindex);
    let behind = kernel.behind(desired.network, overlay).await.unwrap();
    Observed { direct, behind, ..observed }
}

pub(crate) async fn settled(kernel: &RealKernel, desired: &Desired) -> Observed {
    let observed = observe(kernel, desired).await;
    assert_eq!(plan::diff(desired, &observed), []);
    observed
}
