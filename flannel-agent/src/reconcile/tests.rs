//! Passes over fakes: what is done, what is left alone, what is tried again.

mod complaints;
mod conntrack;
mod direct;
mod opened;
mod packet_rules;
mod retries;
mod revise;
mod traces;
mod unheard;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::checksum::TunnelChecksum;
use flannel_core::config::VxlanConfig;
use flannel_core::desired::roster::PeerChange;
use flannel_core::health::About;
use flannel_core::link::{Link, RouteTo};
use flannel_core::observed::Observed;
use flannel_core::op::Op;
use flannel_core::status::{DatapathKind, PeerState};

use super::*;
use crate::bpf::FastPath;
use crate::bpf::fake::FakeDatapath;
use crate::firewall::fake::FakeFirewall;
use crate::kernel::KernelEvent;
use crate::kernel::fake::{self, FakeKernel};
use crate::status::lock;
use flannel_core::blackhole::Blackhole;

const NODE: u8 = 1;

struct Bench {
    reconciler: Reconciler<FakeKernel, FakeFirewall>,
    datapath: FakeDatapath,
    shared: Shared,
    sysctls: tempfile::TempDir,
}

fn peer(third: u8) -> Peer {
    Peer {
        subnet: Ipv4Network::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap(),
        vtep_mac: MacAddr([2, 0, 0, 0, 0, third]),
        public_ip: Ipv4Addr::new(192, 0, 2, third),
    }
}

fn link(ifindex: u32, name: &str, kind: &str, address: Option<&str>) -> Link {
    let network: Option<Ipv4Network> = address.map(|address| address.parse().unwrap());
    Link {
        mac: Some(MacAddr([2, 0, 0, 0, 9, ifindex as u8])),
        ..fake::link(ifindex, name, kind, network.as_slice())
    }
}

fn bench(with_datapath: bool) -> Bench {
    bench_of(vxlan(false), with_datapath)
}

fn vxlan(direct_routing: bool) -> Backend {
    Backend::Vxlan(VxlanConfig {
        vni: 1,
        port: 8472,
        gbp: false,
        learning: false,
        mtu: None,
        direct_routing,
    })
}

/// Files as below `/proc/sys`.
fn sysctl_files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fake::write_sysctls(dir.path()).unwrap();
    dir
}

fn bench_of(backend: Backend, with_datapath: bool) -> Bench {
    let kernel = FakeKernel::default();
    {
        let mut state = kernel.state();
        state.links =
            vec![link(2, "eth0", "", Some("192.0.2.1/24")), link(7, "veth0", "veth", None)];
        let route = RouteTo { ifindex: 2, source: None, gateway: None };
        state.defaults.push(route);
    }
    let sysctls = sysctl_files();
    let datapath = FakeDatapath::default();
    let slot = SharedDatapath::default();
    if with_datapath {
        *lock(&slot) = Some(Box::new(datapath.clone()));
    }
    let shared = Shared::default();
    let identity = Identity {
        subnet: peer(NODE).subnet,
        network: "10.5.0.0/16".parse().unwrap(),
        vtep_mac: peer(NODE).vtep_mac,
        underlay: Underlay {
            mac: None,
            ifindex: 2,
            name: "eth0".to_owned(),
            address: peer(NODE).public_ip,
            public_ip: peer(NODE).public_ip,
            mtu: 1500,
            ethernet: true,
        },
        backend,
    };
    let words = ["flannel-agent", "--ip-masq"].map(OsString::from);
    let options = crate::cli::parse(words, |_| None).unwrap().0.daemon;
    let settings = LoopOptions {
        underlay: options.underlay,
        rules: options.rules,
        blackhole: options.ip_blackhole_route,
        fast_path: options.fast_path,
        programs: options.programs,
        tunnel_checksum: TunnelChecksum::Device,
    };
    // An earlier run has changed it.
    let liberal = (super::conntrack::LIBERAL.to_owned(), "0".to_owned());
    let known = with_datapath.then_some(liberal).into_iter().collect();
    let reconciler = Reconciler::new(
        kernel,
        FakeFirewall::default(),
        slot,
        shared.clone(),
        Sysctl::at(sysctls.path()),
        settings,
        identity,
    );
    let reconciler = reconciler.with_traces(Traces { sysctls: known, ..Traces::default() });
    Bench { reconciler, datapath, shared, sysctls }
}

impl Bench {
    /// A pass, and the look at the firewall that it asks for.
    async fn pass(&mut self, peers: &[Peer], wake: Wake) -> PassResult {
        let mut outcome = self.reconciler.pass(peers, wake).await;
        if self.reconciler.guard.is_busy() {
            let guarded = self.reconciler.guard.ended().await;
            let again = self.reconciler.take_guarded(guarded);
            outcome.retry_at = earliest(outcome.retry_at, again);
        }
        outcome
    }

    fn take_applied(&self) -> Vec<Op> {
        std::mem::take(&mut self.reconciler.kernel.state().applied)
    }

    fn observed(&self) -> Observed {
        self.reconciler.kernel.state().devices.get("flannel.1").cloned().unwrap_or_default()
    }

    fn complaints(&self) -> Vec<String> {
        self.shared
            .lock()
            .health
            .lines(std::time::Instant::now())
            .into_iter()
            .map(|line| line.what)
            .collect()
    }
}

const RENEWED: Wake = Wake {
    generation: true,
    look: false,
    order: false,
    links: false,
    next_hops: false,
    firewall: false,
};

#[tokio::test]
async fn the_first_pass_makes_everything() {
    let mut bench = bench(true);
    bench.pass(&[peer(2), peer(3)], Wake::ALL).await;
    let observed = bench.observed();
    let device = observed.device.unwrap();
    assert_eq!((device.mac, device.mtu), (peer(NODE).vtep_mac, 1450));
    assert_eq!(observed.routes.len(), 2);
    assert_eq!(observed.fdb.len(), 2);
    assert_eq!(observed.neighbours.len(), 2);
    let state = bench.datapath.state();
    assert_eq!(state.peers.len(), 2);
    assert_eq!(state.veths.len(), 1);
    let config = state.config.clone().unwrap();
    assert!(config.tcp && config.fast_path == FastPath::Confirmed);
    assert_eq!(config.overlay, device.ifindex);
    drop(state);
    assert_eq!(bench.complaints(), [""; 0]);
    assert_eq!(bench.reconciler.traces().sysctls[super::conntrack::LIBERAL], "0");
    let liberal = bench.sysctls.path().join("net/netfilter/nf_conntrack_tcp_be_liberal");
    assert_eq!(std::fs::read_to_string(liberal).unwrap().trim(), "1");
    assert_eq!(bench.shared.lock().peers.len(), 2);
}

#[tokio::test]
async fn a_second_pass_does_nothing() {
    let mut bench = bench(true);
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.take_applied();
    let generation = bench.datapath.state().generation;
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.take_applied(), []);
    assert_eq!(bench.datapath.state().generation, generation);
}

#[tokio::test]
async fn peers_come_move_and_go_without_a_look() {
    let mut bench = bench(true);
    bench.pass(&[peer(2)], Wake::ALL).await;
    // Any look would fail.
    bench.take_applied();
    bench.reconciler.kernel.state().fail_next_read = Some(libc::EIO);
    bench.pass(&[peer(2), peer(3)], RENEWED).await;
    assert_eq!(bench.take_applied().len(), 3, "neighbour, FDB entry, route of one peer");
    let moved = Peer { public_ip: Ipv4Addr::new(192, 0, 2, 99), ..peer(3) };
    bench.pass(&[peer(2), moved], RENEWED).await;
    assert!(bench.observed().fdb.contains(&(moved.vtep_mac, moved.public_ip)));
    assert!(!bench.observed().fdb.contains(&(moved.vtep_mac, peer(3).public_ip)));
    assert_eq!(bench.datapath.state().peers[&moved.subnet], moved);
    bench.pass(&[peer(2)], RENEWED).await;
    assert_eq!(bench.observed().routes.len(), 1);
    assert_eq!(bench.datapath.state().peers.len(), 1);
    assert_eq!(bench.reconciler.kernel.state().fail_next_read, Some(libc::EIO), "nobody looked");
}

#[tokio::test]
async fn a_lost_device_comes_back_with_its_mac_and_all_peers() {
    let mut bench = bench(true);
    bench.pass(&[peer(2), peer(3)], Wake::ALL).await;
    let before = bench.observed();
    bench.reconciler.kernel.state().devices.clear();
    let ifindex = before.device.as_ref().unwrap().ifindex;
    let wake = bench.reconciler.wake_for(KernelEvent::Link { ifindex });
    assert!(wake.look);
    bench.pass(&[peer(2), peer(3)], wake).await;
    let after = bench.observed();
    assert_eq!(after.device.unwrap().mac, before.device.unwrap().mac);
    assert_eq!((after.routes, after.fdb), (before.routes, before.fdb));
}

#[tokio::test]
async fn a_failure_is_retried_and_stops_nobody_else() {
    let mut bench = bench(true);
    bench.pass(&[], Wake::ALL).await;
    let failing = Op::PutRoute(peer(2).subnet);
    bench.reconciler.kernel.state().failing.push((failing, libc::ENETUNREACH));
    let outcome = bench.pass(&[peer(2), peer(3)], RENEWED).await;
    assert!(outcome.retry_at.is_some());
    assert_eq!(bench.observed().routes.len(), 1, "the other peer's");
    assert_eq!(bench.complaints(), [About::peer(peer(2).subnet).to_string()]);
    bench.reconciler.kernel.state().failing.clear();
    bench.pass(&[peer(2), peer(3)], RENEWED).await;
    assert_eq!(bench.observed().routes.len(), 1, "not before it is due");
    tokio::time::sleep(Duration::from_millis(250)).await;
    let outcome = bench.pass(&[peer(2), peer(3)], RENEWED).await;
    assert_eq!(bench.observed().routes.len(), 2);
    assert_eq!(outcome.retry_at, None);
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test]
async fn the_generation_rises_when_decisions_may_have_changed() {
    let mut bench = bench(true);
    bench.pass(&[peer(2)], Wake::ALL).await;
    let generation = || bench.datapath.state().generation;
    let first = generation();
    let reconciler = &bench.reconciler;
    assert!(reconciler.wake_for(KernelEvent::Overrun).generation);
    let wake = reconciler.wake_for(KernelEvent::Neighbour { ifindex: 5 });
    assert!(wake.is_nothing(), "neighbours of other devices");
    bench.reconciler.pass(&[peer(2)], RENEWED).await;
    assert_eq!(bench.datapath.state().generation, first + 1);
}

#[tokio::test]
async fn without_ebpf_the_kernel_path_is_whole() {
    let mut bench = bench(false);
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.observed().routes.len(), 1);
    assert_eq!(bench.complaints(), [""; 0]);
    assert!(bench.reconciler.traces().sysctls.is_empty(), "conntrack is left alone");
}

#[tokio::test]
async fn hooks_of_the_devices_decide_the_mode_and_those_of_pods_do_not() {
    let mut bench = bench(true);
    bench.datapath.state().failing_hooks = vec!["veth0/from_pod".to_owned()];
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.shared.lock().datapath.mode, Some(DatapathKind::Ebpf));
    assert_eq!(bench.complaints(), ["hook veth0/from_pod"]);
    bench.datapath.state().failing_hooks = vec!["eth0/from_underlay".to_owned()];
    bench.reconciler.check_hooks();
    assert_eq!(bench.shared.lock().datapath.mode, Some(DatapathKind::Kernel));
    assert!(bench.shared.lock().datapath.reason.is_some());
    bench.datapath.state().failing_hooks.clear();
    bench.reconciler.check_hooks();
    assert_eq!(bench.shared.lock().datapath.mode, Some(DatapathKind::Ebpf));
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test]
async fn a_second_card_without_its_hook_is_told_and_takes_nothing_else_away() {
    let mut bench = bench(true);
    bench.reconciler.kernel.state().links.push(link(9, "eth1", "", None));
    bench.datapath.state().failing_hooks = vec!["eth1/from_underlay".to_owned()];
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.datapath.state().inlets[0].name, "eth1");
    let state = bench.shared.lock();
    assert_eq!(state.datapath.mode, Some(DatapathKind::Ebpf));
    assert_eq!(state.datapath.envelope.hooks[0].hook, "eth1/from_underlay");
    drop(state);
    assert_eq!(bench.complaints(), ["hook eth1/from_underlay"]);
}

#[tokio::test]
async fn peers_without_a_place_in_the_maps_are_told() {
    let mut bench = bench(true);
    bench.pass(&[peer(2), peer(3)], Wake::ALL).await;
    assert!(!bench.datapath.state().keep.more_peers);
    let mut desired = bench.reconciler.desire(&[peer(2), peer(3)]).unwrap();
    desired.unmapped = [peer(3).subnet].into();
    bench.reconciler.tell_peers(&desired);
    bench.reconciler.check_hooks();
    assert!(bench.datapath.state().keep.more_peers);
    assert_eq!(bench.complaints(), ["peers"]);
    let lines = crate::status::peers(&bench.shared, &bench.reconciler.datapath);
    assert_eq!(lines[0].state, PeerState::Ok);
    assert!(lines[1].state.to_string().contains("full"), "{}", lines[1].state);
    desired.unmapped.clear();
    bench.reconciler.tell_peers(&desired);
    bench.reconciler.check_hooks();
    assert!(!bench.datapath.state().keep.more_peers);
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test]
async fn tcp_stays_on_the_kernel_path_where_conntrack_cannot_be_made_liberal() {
    let mut bench = bench(true);
    let liberal = bench.sysctls.path().join("net/netfilter/nf_conntrack_tcp_be_liberal");
    std::fs::remove_file(&liberal).unwrap();
    std::fs::create_dir(&liberal).unwrap();
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert!(!bench.datapath.state().config.as_ref().unwrap().tcp);
    assert_eq!(bench.complaints(), ["conntrack"]);
}

#[tokio::test]
async fn the_underlay_is_followed() {
    let mut bench = bench(true);
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.reconciler.kernel.state().links[0].mtu = 9000;
    let wake = Wake { links: true, ..Wake::default() };
    assert!(bench.pass(&[peer(2)], wake).await.underlay_changed);
    assert_eq!(bench.observed().device.unwrap().mtu, 8950);
    // Gone for a moment: everything stays.
    bench.reconciler.kernel.state().links.remove(0);
    assert!(!bench.pass(&[peer(2)], wake).await.underlay_changed);
    assert_eq!(bench.observed().routes.len(), 1);
    assert_eq!(bench.complaints(), ["underlay"]);
}

#[tokio::test]
async fn failing_maps_do_not_keep_the_kernel_path_from_a_peer() {
    let mut bench = bench(true);
    bench.pass(&[], Wake::ALL).await;
    bench.datapath.state().maps_fail = true;
    bench.pass(&[peer(2)], RENEWED).await;
    assert_eq!(bench.observed().routes.len(), 1);
    assert_eq!(bench.complaints(), ["map entry 10.5.2.0/24"]);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_cannot_be_made_is_one_complaint() {
    let mut bench = bench(true);
    let device = bench.reconciler.desire(&[]).unwrap().device;
    bench
        .reconciler
        .kernel
        .state()
        .failing
        .push((Op::CreateDevice(device.unwrap()), libc::EADDRINUSE));
    let peers: Vec<_> = (2..250).map(peer).collect();
    for _ in 0..5 {
        let outcome = bench.pass(&peers, Wake::ALL).await;
        assert_eq!(bench.complaints(), ["device"]);
        tokio::time::sleep_until(outcome.retry_at.unwrap()).await;
    }
    assert_eq!(bench.datapath.state().ensured, 0, "no hooks without the device");
    bench.reconciler.kernel.state().failing.clear();
    assert_eq!(bench.pass(&peers, Wake::default()).await.retry_at, None);
    assert_eq!(bench.observed().routes.len(), peers.len());
    assert_eq!(bench.complaints(), [""; 0]);
    assert_eq!(bench.datapath.state().ensured, 1);
}

#[tokio::test]
async fn a_device_with_a_fault_carries_peers_all_the_same() {
    let mut bench = bench(true);
    bench.pass(&[], Wake::ALL).await;
    bench.reconciler.kernel.state().links[0].mtu = 1400;
    bench.reconciler.kernel.state().failing.push((Op::SetMtu(1350), libc::EINVAL));
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.observed().routes.len(), 1);
    assert_eq!(bench.complaints(), ["device MTU"]);
}

#[tokio::test]
async fn a_failing_peer_keeps_no_pod_from_its_hooks() {
    let mut bench = bench(true);
    let failing = Op::PutRoute(peer(2).subnet);
    bench.reconciler.kernel.state().failing.push((failing, libc::ENETUNREACH));
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.datapath.state().veths.len(), 1);
    assert!(bench.datapath.state().config.is_some());
}

#[tokio::test(start_paused = true)]
async fn rules_that_cannot_be_set_are_tried_again() {
    let mut bench = bench(true);
    bench.reconciler.guard.firewall().state().failing = Some("no nft here".to_owned());
    let outcome = bench.pass(&[], Wake::ALL).await;
    assert_eq!(bench.complaints(), ["firewall"]);
    bench.reconciler.guard.firewall().state().failing = None;
    tokio::time::sleep_until(outcome.retry_at.unwrap()).await;
    assert_eq!(bench.pass(&[], Wake::default()).await.retry_at, None);
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_blackhole_route_is_kept() {
    let ours = Blackhole::ours(peer(NODE).subnet);
    let foreign = Blackhole { metric: 5, ..ours };
    let mut bench = bench(false);
    let kernel = bench.reconciler.kernel.clone();
    kernel.state().blackholes.push(foreign);
    bench.reconciler.settings.blackhole = true;
    bench.pass(&[], Wake::ALL).await;
    assert_eq!(kernel.state().blackholes, [foreign, ours]);
    kernel.state().blackholes.clear();
    bench.pass(&[], Wake::default()).await;
    assert_eq!(kernel.state().blackholes, [], "nothing asked for a look");
    let event = bench.reconciler.wake_for(KernelEvent::Route { ifindex: 0 });
    bench.pass(&[], event).await;
    assert_eq!(kernel.state().blackholes, [ours]);
    bench.pass(&[], Wake::ALL).await;
    assert_eq!(kernel.state().blackholes, [ours]);
}

#[tokio::test(start_paused = true)]
async fn an_earlier_runs_blackhole_route_goes_without_the_flag() {
    let ours = Blackhole::ours(peer(NODE).subnet);
    let mut bench = bench(false);
    let kernel = bench.reconciler.kernel.clone();
    kernel.state().blackholes = vec![ours, Blackhole { metric: 0, ..ours }];
    bench.pass(&[], Wake::ALL).await;
    assert_eq!(kernel.state().blackholes, [Blackhole { metric: 0, ..ours }]);
}
