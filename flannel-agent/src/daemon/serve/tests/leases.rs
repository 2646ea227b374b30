//! What becomes of our lease, and of peers that the store lost.

use super::*;

/// The start of a node with this further flag.
async fn with_flag(flag: &str, peers: &[u8]) -> Bench {
    Bench::start_flagged(CONFIG, peers, &[flag]).await
}

#[tokio::test(start_paused = true)]
async fn our_lease_is_claimed_again_when_it_goes() {
    let bench = Bench::start(&[2]).await;
    bench.source.remove(bench.own.subnet);
    bench.settle().await;
    assert_eq!(bench.stands(), Some(attrs(1)));
    assert_eq!(bench.complaint(Subject::OwnLease), None);
    // The store away at that moment: as soon as it is back.
    bench.source.fail(Call::Renew, 3);
    bench.source.remove(bench.own.subnet);
    bench.settle().await;
    assert!(bench.complaint(Subject::Renewal).is_some());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.stands(), Some(attrs(1)));
    assert_eq!(bench.shared.lock().complaints(), []);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_claimed_again_and_the_node_is_not_ready_meanwhile() {
    let bench = Bench::start(&[2]).await;
    assert!(bench.shared.lock().is_ready());
    bench.source.put(Lease { attrs: attrs(9), ..bench.own.clone() });
    bench.settle().await;
    assert!(!bench.shared.lock().is_ready());
    bench.source.remove(bench.own.subnet);
    bench.settle().await;
    assert_eq!(bench.stands(), Some(attrs(1)));
    assert_eq!(bench.complaint(Subject::LostLease), None);
    assert!(bench.shared.lock().is_ready());
    // Deleted, with a store that takes no writes.
    bench.source.fail(Call::Renew, 3);
    bench.source.remove(bench.own.subnet);
    bench.settle().await;
    assert!(!bench.shared.lock().is_ready());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(bench.shared.lock().is_ready());
}

#[tokio::test(start_paused = true)]
async fn the_agent_ends_with_a_lost_lease_if_that_is_wished() {
    for taken in [true, false] {
        let bench = with_flag("--on-lost-lease=exit", &[2]).await;
        // News from before, and a store that lost its data, are no loss.
        let old = LeaseUpdate::Removed { subnet: bench.own.subnet, revision: 0 };
        bench.source.push(old);
        bench.source.push(LeaseUpdate::OtherHistory { reason: "empty".to_owned() });
        bench.source.push(LeaseUpdate::Snapshot { leases: Vec::new(), revision: 90 });
        bench.settle().await;
        assert!(!bench.task.is_finished());
        let own = bench.source.lease(bench.own.subnet).unwrap();
        let writes = bench.source.writes().len();
        if taken {
            bench.source.put(Lease { attrs: attrs(9), ..own });
        } else {
            bench.source.remove(own.subnet);
        }
        bench.settle().await;
        let error = bench.task.await.unwrap().unwrap_err();
        assert_eq!(error.exit_code(), 4);
        let text = error.to_string();
        assert!(text.contains("10.5.1.0/24") && text.contains("--on-lost-lease"), "{text}");
        assert_eq!(bench.source.writes().len(), writes, "it is not claimed again");
    }
}

#[tokio::test(start_paused = true)]
async fn peers_that_the_store_lost_stay_and_are_told() {
    let bench = Bench::start(&[2, 3]).await;
    let other = || LeaseUpdate::OtherHistory { reason: "its revision went back".to_owned() };
    bench.source.push(other());
    bench.source.push(LeaseUpdate::Snapshot { leases: Vec::new(), revision: 1 });
    bench.settle().await;
    assert_eq!(bench.renewals(), 1, "ours is written again");
    assert_eq!(bench.subnets().len(), 2);
    let told = bench.complaint(Subject::StoreHistory).unwrap();
    for part in ["its revision went back", "2 peers", "restart"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // The right data are back.
    bench.source.push(other());
    bench.source.push_snapshot();
    bench.settle().await;
    assert_eq!(bench.subnets().len(), 2);
    assert_eq!(bench.shared.lock().complaints(), []);
    // For good: one writes its lease again, the other never.
    bench.source.push(other());
    bench.source.push(LeaseUpdate::Snapshot { leases: Vec::new(), revision: 1 });
    bench.source.put(lease(3));
    bench.settle().await;
    assert!(bench.complaint(Subject::StoreHistory).is_some());
    tokio::time::advance(Duration::from_secs(23 * 3600)).await;
    bench.settle().await;
    assert_eq!(bench.subnets().len(), 2);
    tokio::time::advance(Duration::from_secs(2 * 3600)).await;
    bench.settle().await;
    assert_eq!(bench.subnets(), [lease(3).subnet]);
    assert_eq!(bench.complaint(Subject::StoreHistory), None);
}

#[tokio::test(start_paused = true)]
async fn our_lease_is_claimed_again_in_a_store_that_was_made_anew() {
    let bench = Bench::start(&[2]).await;
    // Its revisions begin anew, too.
    bench.source.push(LeaseUpdate::Snapshot { leases: Vec::new(), revision: 1 });
    bench.settle().await;
    assert_eq!(bench.renewals(), 1);
    assert_eq!(bench.subnets(), []);
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_another_node_holds_is_not_taken_back() {
    let bench = Bench::start(&[2]).await;
    bench.take_applied();
    bench.source.put(Lease { attrs: attrs(9), ..bench.own.clone() });
    bench.settle().await;
    let reason = bench.complaint(Subject::LostLease).unwrap();
    assert!(reason.contains("192.0.2.9"), "{reason}");
    // Nothing is written, whatever comes; pods here are not cut off.
    bench.source.put(Lease { attrs: attrs(8), ..bench.own.clone() });
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(bench.renewals(), 0);
    assert_eq!(bench.stands(), Some(attrs(8)));
    assert_eq!(bench.take_applied(), []);
    assert_eq!(bench.subnets(), [lease(2).subnet]);
    // Others are still followed.
    bench.source.put(lease(3));
    bench.settle().await;
    assert_eq!(bench.subnets().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_others_write_into_our_lease_is_corrected_but_not_in_a_hurry() {
    let bench = Bench::start(&[]).await;
    let wrong = LeaseAttrs::vxlan(address(1), 1, MacAddr([2, 0, 0, 0, 0, 0x77]));
    let wrong = Lease { attrs: wrong, ..bench.own.clone() };
    bench.source.put(wrong.clone());
    bench.settle().await;
    assert_eq!(bench.stands(), Some(attrs(1)));
    assert_eq!(bench.complaint(Subject::OwnLease), None);
    // Another node with our PublicIP does the same as we.
    for _ in 0..600 {
        if bench.stands() == Some(attrs(1)) {
            bench.source.put(wrong.clone());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let renewals = bench.renewals();
    assert!((5..=30).contains(&renewals), "{renewals} in ten minutes");
    let told = bench.complaint(Subject::ContestedLease).expect("a complaint that stays");
    assert!(told.contains(&address(1).to_string()), "{told}");
    // The other one has gone.
    tokio::time::sleep(Duration::from_secs(15 * 60)).await;
    bench.settle().await;
    assert_eq!(bench.complaint(Subject::ContestedLease), None);
}
