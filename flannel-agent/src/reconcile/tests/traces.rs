//! What is to be undone is known until it is undone, and before it is done.

use flannel_core::firewall::upstream::Place;
use flannel_core::observed::DirectRoute;

use super::*;
use crate::reconcile::conntrack::LIBERAL;
use TunnelChecksum::{Device, Kernel};

impl Bench {
    /// Somebody switches who makes the device's checksums.
    fn switch(&self, by: TunnelChecksum) {
        let mut state = self.reconciler.kernel.state();
        let observed = state.devices.get_mut("flannel.1").unwrap();
        observed.device.as_mut().unwrap().checksum = Some(by);
    }

    fn checksum(&self) -> Option<TunnelChecksum> {
        self.observed().device.unwrap().checksum
    }
}

#[tokio::test]
async fn a_changed_feature_is_known_until_it_is_set_back() {
    let mut bench = bench(true);
    bench.pass(&[], Wake::ALL).await;
    bench.reconciler.traces.tunnel_checksum = Kernel;
    bench.switch(Kernel);
    let set = Op::SetChecksum(Device);
    bench.reconciler.kernel.state().failing = vec![(set.clone(), libc::EBUSY)];
    bench.take_applied();
    // Two passes: the second looks, and does not try again yet.
    for _ in 0..2 {
        bench.pass(&[], Wake::ALL).await;
        assert_eq!(bench.reconciler.traces().tunnel_checksum, Kernel);
    }
    bench.reconciler.kernel.state().failing.clear();
    bench.reconciler.retries = Retries::default();
    bench.pass(&[], Wake::ALL).await;
    assert_eq!(bench.take_applied(), [set]);
    assert_eq!(bench.reconciler.traces().tunnel_checksum, Device);
    // From now on it is somebody else's choice.
    bench.switch(Kernel);
    bench.pass(&[], Wake::ALL).await;
    assert_eq!((bench.take_applied(), bench.checksum()), (vec![], Some(Kernel)));
}

#[tokio::test]
async fn a_feature_that_is_kept_off_stays_known() {
    let mut bench = bench(true);
    bench.reconciler.settings.tunnel_checksum = Kernel;
    bench.reconciler.traces.tunnel_checksum = Kernel;
    bench.pass(&[], Wake::ALL).await;
    assert_eq!(bench.checksum(), Some(Kernel));
    assert_eq!(bench.reconciler.traces().tunnel_checksum, Kernel);
}

#[tokio::test]
async fn sysctls_are_remembered_before_they_are_set() {
    let mut bench = bench(true);
    bench.reconciler.conntrack = Conntrack::default();
    let liberal = bench.sysctls.path().join("net/netfilter/nf_conntrack_tcp_be_liberal");
    let timeout = |name: &str| {
        bench.sysctls.path().join(format!("net/netfilter/nf_conntrack_tcp_timeout_{name}"))
    };
    let unacknowledged = timeout("unacknowledged");
    std::fs::write(timeout("established"), "432000\n").unwrap();
    std::fs::write(&unacknowledged, "300\n").unwrap();
    std::fs::write(timeout("max_retrans"), "300\n").unwrap();
    let tcp = |bench: &Bench| bench.datapath.state().config.as_ref().unwrap().tcp;
    bench.reconciler.pass(&[peer(2)], Wake::ALL).await;
    bench.reconciler.check_hooks();
    assert_eq!(std::fs::read_to_string(&liberal).unwrap(), "0\n");
    assert_eq!(bench.reconciler.traces().sysctls[LIBERAL], "0");
    assert_eq!(bench.reconciler.traces().sysctls.len(), 3, "all that TCP needs, in one write");
    assert!(!tcp(&bench) && bench.reconciler.has_hooks_left(), "it is looked at once more");
    bench.reconciler.remembered();
    bench.reconciler.check_hooks();
    assert_eq!(std::fs::read_to_string(&liberal).unwrap(), "1");
    assert!(tcp(&bench) && !bench.reconciler.has_hooks_left());
    assert_eq!(std::fs::read_to_string(&unacknowledged).unwrap(), "432000");
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test]
async fn flannels_routes_are_taken_over_until_all_are_gone() {
    let mut bench = bench_of(Backend::HostGw, false);
    bench.reconciler.traces.unmarked_routes = true;
    let left = DirectRoute::to_peer(peer(6).subnet, peer(6).public_ip, 2);
    bench.reconciler.kernel.state().unmarked.insert(left);
    bench.reconciler.kernel.state().failing = vec![(Op::RemoveDirect(left), libc::EBUSY)];
    for _ in 0..2 {
        bench.pass(&[], Wake::ALL).await;
        assert!(bench.reconciler.traces().unmarked_routes);
    }
    bench.reconciler.kernel.state().failing.clear();
    bench.reconciler.retries = Retries::default();
    bench.pass(&[], Wake::ALL).await;
    assert!(bench.reconciler.kernel.state().unmarked.is_empty());
    assert!(!bench.reconciler.traces().unmarked_routes);
}

#[tokio::test]
async fn former_rules_are_known_until_they_are_swept() {
    let mut bench = bench(true);
    let former = Place { network: "10.6.0.0/16".parse().unwrap(), subnet: peer(NODE).subnet };
    bench.reconciler.traces.former_places.insert(former);
    bench.reconciler.guard.firewall().state().failing = Some("nft hangs".to_owned());
    bench.pass(&[], Wake::ALL).await;
    assert_eq!(bench.reconciler.traces().former_places, [former].into());
    bench.reconciler.guard.firewall().state().failing = None;
    bench.pass(&[], Wake::ALL).await;
    assert!(bench.reconciler.traces().former_places.is_empty());
}
