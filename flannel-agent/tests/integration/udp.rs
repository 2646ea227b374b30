//! The udp backend's device and proxy on a real kernel, two namespaces joined
//! by a veth.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use flannel_agent::backend::udp::proxy::ProxySettings;
use flannel_agent::backend::udp::upkeep::WantedProxy;
use flannel_agent::backend::udp::{DEVICE, UdpBackend};
use flannel_agent::bpf::VerifySource;
use flannel_agent::kernel::netlink::RealKernel;
use ipnetwork::Ipv4Network;

use crate::netns::{Namespace, run, try_run};

fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, node)
}

fn subnet(node: u8) -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::new(10, 2, node, 0), 24).unwrap()
}

fn wanted(node: u8) -> WantedProxy {
    let settings = ProxySettings {
        device: DEVICE.to_owned(),
        local: address(node),
        port: 8285,
        network: "10.2.0.0/16".parse().unwrap(),
        subnet: subnet(node),
        verify_source: VerifySource::Drop,
        queues: 2,
    };
    WantedProxy { settings, mtu: 1472 }
}

async fn ensure(overlay: &mut UdpBackend, node: u8) -> Result<Option<String>, String> {
    let peers = BTreeMap::from([(subnet(3 - node), address(3 - node))]);
    overlay.ensure(&RealKernel::open().unwrap(), &wanted(node), &peers).await
}

fn blocking(overlay: &mut UdpBackend, node: u8) -> Result<Option<String>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(ensure(overlay, node))
}

/// Two namespaces with `eth0` each.
fn nodes() -> [Namespace; 2] {
    let nodes = [Namespace::new(), Namespace::new()];
    let other = nodes[1].id();
    nodes[0].run(move || {
        run(&format!("ip link add eth0 type veth peer name eth0 netns {other}"));
        run("ip address add 192.0.2.1/24 dev eth0");
        run("ip link set eth0 up");
    });
    nodes[1].sh("ip address add 192.0.2.2/24 dev eth0");
    nodes[1].sh("ip link set eth0 up");
    nodes
}

#[test]
fn two_nodes_carry_each_others_packets() {
    let nodes = nodes();
    let overlays = [1u8, 2].map(|node| {
        nodes[usize::from(node) - 1].run(move || {
            let mut overlay = UdpBackend::default();
            assert_eq!(blocking(&mut overlay, node), Ok(None));
            overlay
        })
    });
    let text = nodes[0].sh("ping -c 3 -i 0.1 -W 2 10.2.2.0");
    assert!(text.contains("ttl=62"), "a hop for each proxy: {text}");
    nodes[1].sh("ping -c 2 -i 0.1 -W 2 -s 1444 -M do 10.2.1.0");
    let counters = overlays[0].proxy().peer_counters().unwrap()[&subnet(2)];
    assert_eq!((counters.tx_udp_packets, counters.rx_udp_packets), (5, 5));
    // The proxy counts a packet after the device has it.
    let counted = || overlays[0].proxy().outcomes().unwrap()["udp_decap"];
    let ended = Instant::now() + Duration::from_secs(5);
    while counted() < 5 && Instant::now() < ended {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(counted(), 5);
    // Peers that have gone are not sent to.
    overlays[0].set_peers(&BTreeMap::new());
    assert!(nodes[0].run(|| try_run("ping -c 1 -W 1 10.2.2.0")).is_err());
    assert_eq!(overlays[0].proxy().outcomes().unwrap()["drop_no_peer"], 1);
    drop(overlays);
    let text = nodes[0].sh("ip route show");
    assert!(text.contains("10.2.0.0/16 dev flannel0"), "the device outlives its proxy: {text}");
}

#[test]
fn a_deleted_device_ends_the_proxy_and_the_next_look_brings_both_back() {
    let [node, _other] = nodes();
    node.run(|| {
        let mut overlay = UdpBackend::default();
        assert_eq!(blocking(&mut overlay, 1), Ok(None));
        let before = overlay.ifindex();
        assert!(overlay.is_alive());
        run("ip link del flannel0");
        for _ in 0..100 {
            if !overlay.is_alive() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(!overlay.is_alive());
        assert_eq!(blocking(&mut overlay, 1), Ok(None));
        assert!(overlay.is_alive() && overlay.ifindex() != before);
        assert!(run("ip route show").contains("10.2.0.0/16 dev flannel0"));
    });
}

#[test]
fn a_foreign_device_of_that_name_is_left_alone() {
    let [node, _other] = nodes();
    node.run(|| {
        run("ip link add flannel0 type bridge");
        let error = blocking(&mut UdpBackend::default(), 1).unwrap_err();
        assert!(error.contains("flannel0") && error.contains("another program"), "{error}");
        assert!(run("ip -d link show flannel0").contains("bridge"));
    });
}
