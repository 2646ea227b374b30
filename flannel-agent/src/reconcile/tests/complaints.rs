//! Complaints end with their causes, and without another pass where none comes.

use flannel_core::link::LinkAddress;

use super::*;
use crate::status;

#[tokio::test]
async fn counters_are_not_well_only_while_they_cannot_be_read() {
    let mut bench = bench(true);
    bench.pass(&[peer(2)], Wake::ALL).await;
    let ask = |bench: &Bench| {
        let status = status::status(&bench.shared, &bench.reconciler.datapath);
        status.health.into_iter().map(|line| line.what).collect::<Vec<_>>()
    };
    bench.datapath.state().counters_fail = true;
    assert_eq!(ask(&bench), ["counters"]);
    bench.reconciler.check_hooks();
    assert_eq!(bench.complaints(), ["counters", "flow table", "source of peer"]);
    bench.datapath.state().counters_fail = false;
    assert_eq!(ask(&bench), ["flow table", "source of peer"], "asking alone ends it");
    bench.reconciler.check_hooks();
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test]
async fn source_ports_are_not_well_only_while_they_cannot_be_read() {
    let mut bench = bench(true);
    let range = bench.sysctls.path().join("net/ipv4/ip_local_port_range");
    std::fs::write(&range, "9 8").unwrap();
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.complaints(), ["source ports"]);
    std::fs::write(&range, "1024\t65535\n").unwrap();
    bench.reconciler.check_hooks();
    assert_eq!(bench.complaints(), [""; 0]);
    assert_eq!(bench.datapath.state().config.as_ref().unwrap().source_ports, (1024, 65535));
}

#[tokio::test]
async fn pins_that_are_refused_are_told_also_without_a_device() {
    let mut bench = bench(true);
    bench.pass(&[peer(2)], Wake::ALL).await;
    // It is moved away, and cannot be made again.
    bench.reconciler.seen.device = None;
    bench.datapath.state().pins_refused = Some("nothing is mounted there".to_owned());
    bench.reconciler.check_hooks();
    assert_eq!(bench.complaints(), ["pins"]);
    bench.datapath.state().pins_refused = None;
    bench.reconciler.check_hooks();
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test]
async fn hooks_that_are_left_without_a_device_are_not_looked_for_at_once() {
    let mut bench = bench(true);
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.reconciler.hooks_left = true;
    bench.reconciler.seen.device = None;
    bench.reconciler.check_hooks();
    assert!(!bench.reconciler.has_hooks_left());
}

#[tokio::test]
async fn what_was_asked_for_while_nothing_could_be_desired_is_still_due() {
    let mut bench = bench(true);
    bench.pass(&[peer(2)], Wake::ALL).await;
    let generation = bench.datapath.state().generation;
    bench.reconciler.kernel.state().links[0].mtu = 100;
    bench.reconciler.kernel.state().devices.clear();
    bench.pass(&[peer(2)], Wake { generation: true, ..Wake::ALL }).await;
    assert_eq!(bench.complaints(), ["MTU"]);
    assert_eq!(bench.datapath.state().generation, generation + 1);
    bench.reconciler.kernel.state().links[0].mtu = 1500;
    bench.pass(&[peer(2)], Wake { links: true, ..Wake::default() }).await;
    assert_eq!(bench.complaints(), [""; 0]);
    assert_eq!(bench.observed().routes.len(), 1, "somebody had deleted the device");
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_could_not_be_raised_is_raised_later() {
    let mut bench = bench(true);
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.datapath.state().generation_fails = true;
    let outcome = bench.pass(&[peer(2)], RENEWED).await;
    assert_eq!(bench.complaints(), ["generation"]);
    bench.datapath.state().generation_fails = false;
    let before = bench.datapath.state().generation;
    tokio::time::sleep_until(outcome.retry_at.expect("another try")).await;
    let outcome = bench.pass(&[peer(2)], Wake::default()).await;
    assert_eq!(bench.datapath.state().generation, before + 1);
    assert_eq!((bench.complaints(), outcome.retry_at), (vec![], None));
}

#[tokio::test]
async fn what_was_not_known_of_a_link_goes_with_the_link() {
    let mut bench = bench(true);
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.reconciler.kernel.state().fail_next_read = Some(libc::EIO);
    bench.reconciler.look_for_uplinks().await;
    assert_eq!(bench.complaints(), ["uplinks"]);
    let gateway = LinkAddress {
        network: "10.5.1.1/32".parse().unwrap(),
        permanent: true,
        deprecated: false,
        global: true,
    };
    bench.reconciler.kernel.state().links[1].addresses.push(gateway);
    bench.pass(&[peer(2)], Wake { links: true, ..Wake::default() }).await;
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test]
async fn eager_is_no_matter_without_ethernet() {
    let mut bench = bench(true);
    bench.reconciler.settings.fast_path.mode = FastPath::Eager;
    let loose = bench.sysctls.path().join("net/netfilter/nf_conntrack_tcp_loose");
    std::fs::write(loose, "0\n").unwrap();
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.complaints(), ["eager"]);
    bench.reconciler.kernel.state().links[0].ethernet = false;
    bench.pass(&[peer(2)], Wake { links: true, ..Wake::default() }).await;
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_is_pending_while_anything_of_it_cannot_be_programmed() {
    let mut bench = bench(true);
    let states = |bench: &Bench| {
        let lines = status::peers(&bench.shared, &bench.reconciler.datapath);
        lines.into_iter().map(|line| line.state).collect::<Vec<_>>()
    };
    let pending = |state: &PeerState| matches!(state, PeerState::Pending(_));
    let peers = [peer(2), peer(3)];
    bench.pass(&[], Wake::ALL).await;
    for failing in [
        Op::PutNeighbour(peer(2).subnet.network(), peer(2).vtep_mac),
        Op::PutFdb(peer(2).vtep_mac, peer(2).public_ip),
        Op::PutRoute(peer(2).subnet),
    ] {
        bench.reconciler.kernel.state().failing.push((failing, libc::ENOBUFS));
        let outcome = bench.pass(&peers, RENEWED).await;
        let found = states(&bench);
        assert!(pending(&found[0]) && found[1] == PeerState::Ok, "{found:?}");
        bench.reconciler.kernel.state().failing.clear();
        tokio::time::sleep_until(outcome.retry_at.unwrap()).await;
        bench.pass(&peers, RENEWED).await;
        assert_eq!(states(&bench), [PeerState::Ok, PeerState::Ok]);
        bench.pass(&[], RENEWED).await;
    }
    // There are more of them than complaints are kept.
    let many: Vec<_> = (2..250).map(peer).collect();
    for peer in &many {
        let failing = (Op::PutRoute(peer.subnet), libc::ENETUNREACH);
        bench.reconciler.kernel.state().failing.push(failing);
    }
    bench.pass(&many, RENEWED).await;
    assert!(states(&bench).iter().all(pending));
}

#[tokio::test]
async fn peers_are_pending_while_the_device_cannot_be_made() {
    let mut bench = bench(true);
    let device = bench.reconciler.desire(&[]).unwrap().device.unwrap();
    let failing = (Op::CreateDevice(device), libc::EADDRINUSE);
    bench.reconciler.kernel.state().failing.push(failing);
    bench.pass(&[peer(2)], Wake::ALL).await;
    let lines = status::peers(&bench.shared, &bench.reconciler.datapath);
    assert!(matches!(lines[0].state, PeerState::Pending(_)), "{}", lines[0].state);
}
