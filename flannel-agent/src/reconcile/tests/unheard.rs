//! What no event tells of: time that passes, and entries that are deleted.

use flannel_core::observed::ObservedRoute;

use super::*;
use flannel_core::underlay::successor::PATIENCE;

#[tokio::test(start_paused = true)]
async fn the_programs_hear_of_an_agent_that_sees_the_node() {
    let mut bench = bench(true);
    bench.reconciler.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.datapath.state().attended, 1);
    for _ in 0..10 {
        tokio::time::advance(Duration::from_secs(1)).await;
        bench.reconciler.check_hooks();
    }
    assert_eq!(bench.datapath.state().attended, 3, "each 5 s");
    // What cannot be seen is not kept true.
    bench.reconciler.attendance.looked(false);
    tokio::time::advance(Duration::from_secs(60)).await;
    bench.reconciler.check_hooks();
    assert_eq!(bench.datapath.state().attended, 3);
    bench.reconciler.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.datapath.state().attended, 4);
    // A sign that could not be given is due at once.
    bench.datapath.state().maps_fail = true;
    tokio::time::advance(Duration::from_secs(5)).await;
    bench.reconciler.check_hooks();
    assert!(bench.complaints().contains(&"sign of life".to_owned()));
    bench.datapath.state().maps_fail = false;
    bench.reconciler.check_hooks();
    assert_eq!(bench.datapath.state().attended, 5);
    assert!(bench.complaints().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_underlay_that_is_away_is_waited_for() {
    let mut bench = bench(true);
    let address = |bench: &Bench| bench.reconciler.identity().underlay.address.to_string();
    bench.reconciler.pass(&[peer(2)], Wake::ALL).await;
    let now = link(2, "eth0", "", Some("192.0.2.99/24"));
    bench.reconciler.kernel.state().links[0] = now;
    let links = Wake { links: true, ..Wake::default() };
    let began = Instant::now();
    let mut outcome = bench.reconciler.pass(&[peer(2)], links).await;
    while !outcome.underlay_changed {
        assert_eq!(address(&bench), "192.0.2.1");
        assert_eq!(bench.complaints(), ["underlay"]);
        tokio::time::sleep_until(outcome.retry_at.expect("nobody else tells")).await;
        outcome = bench.reconciler.pass(&[peer(2)], Wake::default()).await;
    }
    assert!(began.elapsed() >= PATIENCE && began.elapsed() < PATIENCE + Duration::from_secs(1));
    assert_eq!(address(&bench), "192.0.2.99");
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test]
async fn a_route_before_a_peers_is_looked_for_where_there_may_be_one() {
    let mut bench = bench(true);
    let looks = |bench: &Bench| bench.reconciler.kernel.state().order_looks;
    bench.pass(&[peer(2)], Wake::ALL).await;
    let first = looks(&bench);
    bench.reconciler.kernel.state().behind = [peer(2).subnet].into();
    bench.take_applied();
    let look = Wake { look: true, ..Wake::default() };
    bench.pass(&[peer(2)], look).await;
    assert_eq!((bench.take_applied(), looks(&bench)), (vec![], first), "the table may be large");
    let wake = bench.reconciler.wake_for(KernelEvent::RouteBefore);
    // A look that fails leaves it to the next one.
    bench.reconciler.kernel.state().fail_next_read = Some(libc::EINTR);
    bench.pass(&[peer(2)], Wake { links: false, ..wake }).await;
    bench.pass(&[peer(2)], look).await;
    let subnet = peer(2).subnet;
    let ours = ObservedRoute::to_peer(subnet);
    assert_eq!(bench.take_applied(), [Op::RemoveRoute(ours), Op::PutRoute(subnet)]);
    assert_eq!(looks(&bench), first + 1);
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.take_applied(), []);
}

#[tokio::test]
async fn a_look_at_the_rules_that_panics_has_failed_and_is_tried_again() {
    let mut bench = bench(true);
    let rules = Wake { firewall: true, ..Wake::default() };
    bench.reconciler.guard.firewall().state().panics = true;
    let outcome = bench.pass(&[], rules).await;
    assert_eq!(bench.complaints(), ["firewall"]);
    tokio::time::sleep_until(outcome.retry_at.expect("nobody else tells")).await;
    bench.pass(&[], Wake::default()).await;
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test]
async fn rules_that_somebody_flushed_are_a_repair() {
    let mut bench = bench(true);
    let rules = Wake { firewall: true, ..Wake::default() };
    let repaired = |bench: &Bench| {
        let state = bench.reconciler.shared.lock();
        state.record.repairs.get(&flannel_core::repair::Repair::Firewall).copied()
    };
    bench.pass(&[], Wake::ALL).await;
    bench.pass(&[], rules).await;
    assert_eq!(repaired(&bench), None, "the first writing, and none");
    bench.reconciler.guard.firewall().state().rules = None;
    bench.pass(&[], rules).await;
    assert_eq!(repaired(&bench), Some(1));
    bench.pass(&[], rules).await;
    assert_eq!(repaired(&bench), Some(1));
    // Others are wanted now.
    bench.reconciler.settings.rules.masquerade = !bench.reconciler.settings.rules.masquerade;
    bench.pass(&[], rules).await;
    assert_eq!(repaired(&bench), Some(1));
}

#[tokio::test]
async fn entries_that_somebody_changed_are_repairs() {
    let mut bench = bench(true);
    bench.reconciler.pass(&[peer(2)], Wake::ALL).await;
    bench.datapath.state().mended = 3;
    assert_eq!(bench.reconciler.check_hooks(), Wake::default());
    let repaired = |bench: &Bench| {
        let state = bench.reconciler.shared.lock();
        state.record.repairs[&flannel_core::repair::Repair::Map]
    };
    assert_eq!(repaired(&bench), 3);
    bench.reconciler.check_hooks();
    assert_eq!(repaired(&bench), 3);
    // The look says what is wrong.
    bench.datapath.state().maps_fail = true;
    assert!(bench.reconciler.check_hooks().look);
}
