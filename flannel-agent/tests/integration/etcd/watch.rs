//! Following the leases, by either API.

use std::time::Duration;

use flannel_agent::source::LeaseSource;
use flannel_core::lease::update::LeaseUpdate;
use tokio_util::sync::CancellationToken;

use super::server::{Signal, Way};
use super::updates::{Updates, map, next, next_break, next_snapshot};
use super::*;

by_either_api!(
    changes_come_in_order_after_the_snapshot,
    the_first_lease_of_all_is_seen,
    foreign_garbage_disturbs_no_other_lease,
    changes_that_etcd_dropped_while_away_come_as_a_snapshot,
    a_killed_etcd_is_followed_again_after_its_restart,
    a_stopped_etcd_is_noticed,
);

async fn changes_come_in_order_after_the_snapshot(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    keys.put_leased(&key("10.5.1.0/24"), &value(1)).await;
    let stop = CancellationToken::new();
    let mut updates = store(&etcd.url(), api).await.watch(stop.clone());
    assert_eq!(next_snapshot(&mut updates).await, map(&[("10.5.1.0/24", "10.99.0.1")]));

    // The last one runs out.
    keys.write(&key("10.5.2.0/24"), &value(2), Some(2)).await;
    keys.put_leased(&key("10.5.1.0/24"), &value(3)).await;
    keys.delete(&key("10.5.1.0/24")).await;
    for (subnet, n) in [("10.5.2.0/24", 2), ("10.5.1.0/24", 3)] {
        match next(&mut updates).await {
            LeaseUpdate::Put { lease } => {
                assert_eq!((lease.subnet, &lease.attrs), (net(subnet), &attrs(n)));
                // v3 would have to be asked when a peer's lease ends, which nobody does.
                assert_eq!(lease.expires.is_some(), api == EtcdApi::V2);
                assert!(lease.revision > 0);
            }
            other => panic!("{other:?}"),
        }
    }
    for subnet in ["10.5.1.0/24", "10.5.2.0/24"] {
        match next(&mut updates).await {
            LeaseUpdate::Removed { subnet: removed, .. } => assert_eq!(removed, net(subnet)),
            other => panic!("{other:?}"),
        }
    }
    stop.cancel();
    assert_eq!(updates.recv().await, None);
}

async fn the_first_lease_of_all_is_seen(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let mut updates = store(&etcd.url(), api).await.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 0);
    Keys::by(api, &etcd).put_leased(&key("10.5.1.0/24"), &value(1)).await;
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
}

async fn foreign_garbage_disturbs_no_other_lease(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    keys.put(&key("nonsense"), &value(9)).await;
    keys.put(&key("10.5.8.0/24"), "{").await;
    keys.put(&key("10.5.1.0/24"), &value(1)).await;
    keys.put(&format!("{PREFIX}/subnets-not-ours/10.5.3.0-24"), &value(3)).await;
    let mut updates = store(&etcd.url(), api).await.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await, map(&[("10.5.1.0/24", "10.99.0.1")]));
    let (nonsense, bad) = (key("nonsense"), key("10.5.8.0/24"));
    assert_eq!(unreadable(&mut updates).await, [bad.as_str(), &nonsense]);
    // One that has gone, and one that is a lease now.
    keys.delete(&nonsense).await;
    assert_eq!(unreadable(&mut updates).await, [bad.as_str()]);
    keys.put(&bad, &value(8)).await;
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
    assert_eq!(unreadable(&mut updates).await, [""; 0]);
    if api == EtcdApi::V3 {
        let no_text = format!("{PREFIX}/subnets/\u{0}");
        etcd.client().await.kv_client().put(no_text, vec![0xff, 0xfe], None).await.unwrap();
    } else {
        keys.put(&format!("{}/below", key("10.5.9.0/24")), &value(9)).await;
    }
    keys.put(&key("10.5.1.0-24&junk"), &value(9)).await;
    keys.delete(&key("10.5.1.0-24&junk")).await;
    keys.put(&key("10.5.2.0/24"), &value(2)).await;
    let put = loop {
        match next(&mut updates).await {
            LeaseUpdate::Unreadable { .. } => {}
            other => break other,
        }
    };
    match put {
        LeaseUpdate::Put { lease } => assert_eq!(lease.subnet, net("10.5.2.0/24")),
        other => panic!("{other:?}"),
    }
    // As a list would no longer have it, neither do the updates.
    keys.put(&key("10.5.2.0/24"), "{").await;
    match next(&mut updates).await {
        LeaseUpdate::Removed { subnet, .. } => assert_eq!(subnet, net("10.5.2.0/24")),
        other => panic!("{other:?}"),
    }
    assert!(unreadable(&mut updates).await.contains(&key("10.5.2.0/24")));
}

/// The next update, which must tell of keys that cannot be read.
async fn unreadable(updates: &mut Updates) -> Vec<String> {
    match next(updates).await {
        LeaseUpdate::Unreadable { keys } => keys.into_keys().collect(),
        other => panic!("{other:?}"),
    }
}

async fn changes_that_etcd_dropped_while_away_come_as_a_snapshot(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    let mut way = Way::to(&etcd).await;
    for n in 1..=3 {
        keys.put_leased(&key(&format!("10.5.{n}.0/24")), &value(n)).await;
    }
    let mut updates = store(&way.url(), api).await.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 3);

    way.cut().await;
    let reason = next_break(&mut updates).await;
    assert!(reason.contains(&way.url()), "{reason}");
    keys.put_leased(&key("10.5.1.0/24"), &value(21)).await;
    keys.delete(&key("10.5.2.0/24")).await;
    keys.put_leased(&key("10.5.4.0/24"), &value(4)).await;
    if api == EtcdApi::V3 {
        let client = etcd.client().await;
        let put = client.kv_client().put("x", "y", None).await.unwrap();
        client.kv_client().compact(put.header().unwrap().revision(), None).await.unwrap();
    }
    // Long enough for several tries: they all are one break.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(updates.is_empty());

    way.mend().await;
    let expected = map(&[
        ("10.5.1.0/24", "10.99.0.21"),
        ("10.5.3.0/24", "10.99.0.3"),
        ("10.5.4.0/24", "10.99.0.4"),
    ]);
    assert_eq!(next_snapshot(&mut updates).await, expected);
    keys.put_leased(&key("10.5.5.0/24"), &value(5)).await;
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
}

async fn a_killed_etcd_is_followed_again_after_its_restart(api: EtcdApi) {
    let mut etcd = Etcd::start().await;
    Keys::by(api, &etcd).put_leased(&key("10.5.1.0/24"), &value(1)).await;
    let source = store(&etcd.url(), api).await;
    let mut updates = source.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 1);
    etcd.kill();
    assert!(next_break(&mut updates).await.contains(&etcd.url()));
    assert!(source.list().await.is_err());
    etcd.spawn().await;
    assert_eq!(next_snapshot(&mut updates).await, map(&[("10.5.1.0/24", "10.99.0.1")]));
    assert_eq!(source.list().await.unwrap().0.len(), 1);
    Keys::by(api, &etcd).put(&key("10.5.2.0/24"), &value(2)).await;
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
}

async fn a_stopped_etcd_is_noticed(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let mut updates = store(&etcd.url(), api).await.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 0);
    // It keeps its connections and answers nothing.
    etcd.signal(Signal::SIGSTOP);
    let reason = tokio::time::timeout(Duration::from_secs(30), next_break(&mut updates)).await;
    etcd.signal(Signal::SIGCONT);
    assert!(reason.unwrap().contains(&etcd.url()));
    assert_eq!(next_snapshot(&mut updates).await.len(), 0);
}
