//! A few leases more or less.

use super::*;

fn change(peer: Peer) -> PeerChange {
    (peer.subnet, Some(peer))
}

#[tokio::test]
async fn a_lease_alone_is_taken_in_without_looking_at_the_others() {
    let mut bench = bench(true);
    bench.pass(&[peer(2), peer(3)], Wake::ALL).await;
    bench.take_applied();
    bench.reconciler.kernel.state().fail_next_read = Some(libc::EIO);
    let hooks = bench.datapath.state().ensured;
    assert!(bench.reconciler.revise(&[change(peer(4))]).await.is_some());
    assert_eq!(bench.take_applied().len(), 3, "neighbour, FDB entry, route of one peer");
    assert_eq!(bench.datapath.state().peers.len(), 3);
    assert_eq!(bench.shared.lock().peers.len(), 3);
    let moved = Peer { public_ip: Ipv4Addr::new(192, 0, 2, 99), ..peer(4) };
    assert!(bench.reconciler.revise(&[change(moved), (peer(3).subnet, None)]).await.is_some());
    assert_eq!(bench.datapath.state().peers[&moved.subnet], moved);
    assert_eq!((bench.observed().routes.len(), bench.shared.lock().peers.len()), (2, 2));
    assert_eq!(bench.datapath.state().ensured, hooks);
    // What comes of that is as a pass would have it.
    bench.reconciler.kernel.state().fail_next_read = None;
    bench.take_applied();
    bench.pass(&[peer(2), moved], Wake::ALL).await;
    assert_eq!(bench.take_applied(), []);
    assert!(bench.shared.lock().record.repairs.is_empty(), "these were no repairs");
}

#[tokio::test]
async fn a_lease_that_fails_or_contradicts_another_is_left_to_a_pass() {
    let mut bench = bench(true);
    assert_eq!(bench.reconciler.revise(&[change(peer(2))]).await, None, "before any pass");
    bench.pass(&[peer(2)], Wake::ALL).await;
    let cloned = Peer { vtep_mac: peer(2).vtep_mac, ..peer(3) };
    assert_eq!(bench.reconciler.revise(&[change(cloned)]).await, None);
    bench.pass(&[peer(2)], Wake::ALL).await;
    let failing = Op::PutRoute(peer(4).subnet);
    bench.reconciler.kernel.state().failing.push((failing, libc::ENETUNREACH));
    assert_eq!(bench.reconciler.revise(&[change(peer(4))]).await, None);
    bench.pass(&[peer(2), peer(4)], RENEWED).await;
    assert_eq!(bench.complaints(), [About::peer(peer(4).subnet).to_string()]);
    assert_eq!(bench.reconciler.revise(&[change(peer(5))]).await, None, "something is left");
}

#[tokio::test]
async fn confirmations_end_with_the_first_of_a_row_of_leases_and_once_after_it() {
    let mut bench = bench(true);
    bench.pass(&[], Wake::ALL).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let before = bench.datapath.state().generation;
    let first = bench.reconciler.revise(&[change(peer(2))]).await.unwrap();
    assert_eq!((first.raise_at, bench.datapath.state().generation), (None, before + 1));
    let next = bench.reconciler.revise(&[change(peer(3))]).await.unwrap();
    assert_eq!(bench.datapath.state().generation, before + 1);
    tokio::time::sleep_until(next.raise_at.unwrap()).await;
    assert_eq!(bench.reconciler.raise_soon(), None);
    assert_eq!(bench.datapath.state().generation, before + 2);
}

#[tokio::test(start_paused = true)]
async fn confirmations_that_could_not_be_ended_are_ended_soon() {
    let mut bench = bench(true);
    bench.pass(&[], Wake::ALL).await;
    let later = || tokio::time::advance(Duration::from_millis(60));
    later().await;
    bench.datapath.state().generation_fails = true;
    let before = bench.datapath.state().generation;
    let failed = bench.reconciler.revise(&[change(peer(2))]).await.unwrap();
    let mut again = failed.raise_at.expect("it is tried again without an event");
    assert_eq!(bench.complaints(), ["generation"]);
    for _ in 0..3 {
        tokio::time::sleep_until(again).await;
        let next = bench.reconciler.raise_soon().expect("it failed again");
        assert!(next > again && next < again + Duration::from_secs(31));
        again = next;
    }
    bench.datapath.state().generation_fails = false;
    tokio::time::sleep_until(again).await;
    assert_eq!(bench.reconciler.raise_soon(), None);
    assert_eq!(bench.datapath.state().generation, before + 1);
    assert_eq!(bench.complaints(), [""; 0]);
}
