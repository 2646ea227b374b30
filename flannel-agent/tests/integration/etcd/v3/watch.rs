//! Following the leases.

use std::collections::BTreeMap;
use std::time::Duration;

use flannel_agent::source::LeaseSource;
use flannel_core::lease::update::LeaseUpdate;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::etcd::server::{Etcd, Signal, Way};

type Updates = Receiver<LeaseUpdate>;

async fn next(updates: &mut Updates) -> LeaseUpdate {
    let update = tokio::time::timeout(Duration::from_secs(20), updates.recv()).await;
    update.expect("no update within 20 s").expect("the watch ended")
}

/// The next update, which must be a snapshot: PublicIP by subnet.
async fn next_snapshot(updates: &mut Updates) -> BTreeMap<String, String> {
    match next(updates).await {
        LeaseUpdate::Snapshot { leases, .. } => leases
            .into_iter()
            .map(|lease| (lease.subnet.to_string(), lease.attrs.public_ip.to_string()))
            .collect(),
        other => panic!("no snapshot: {other:?}"),
    }
}

async fn next_break(updates: &mut Updates) -> String {
    match next(updates).await {
        LeaseUpdate::Disconnected { reason } => reason,
        other => panic!("no break: {other:?}"),
    }
}

fn map(leases: &[(&str, &str)]) -> BTreeMap<String, String> {
    leases.iter().map(|(subnet, ip)| ((*subnet).to_owned(), (*ip).to_owned())).collect()
}

#[tokio::test]
async fn changes_come_in_order_after_the_snapshot() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    put_leased(&client, &key("10.5.1.0/24"), &value(1)).await;
    let stop = CancellationToken::new();
    let mut updates = source(&etcd).await.watch(stop.clone());
    assert_eq!(next_snapshot(&mut updates).await, map(&[("10.5.1.0/24", "10.99.0.1")]));

    let id = put_leased(&client, &key("10.5.2.0/24"), &value(2)).await;
    put_leased(&client, &key("10.5.1.0/24"), &value(3)).await;
    delete(&client, &key("10.5.1.0/24")).await;
    client.lease_client().revoke(id).await.unwrap();
    for (subnet, n) in [("10.5.2.0/24", 2), ("10.5.1.0/24", 3)] {
        match next(&mut updates).await {
            LeaseUpdate::Put { lease } => {
                assert_eq!((lease.subnet, &lease.attrs), (net(subnet), &attrs(n)));
                assert_eq!(lease.expires, None, "nobody asked when a peer's lease ends");
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

#[tokio::test]
async fn our_own_expiry_is_known() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    let source = source(&etcd).await;
    let ours = source.acquire(&config, &claim(11)).await.unwrap();
    put_leased(&etcd.client().await, &key("10.5.0.0/24"), &value(12)).await;
    let mut updates = source.watch(CancellationToken::new());
    match next(&mut updates).await {
        LeaseUpdate::Snapshot { leases, .. } => {
            assert_eq!(leases.len(), 2);
            for lease in leases {
                assert_eq!(lease.expires.is_some(), lease.subnet == ours.subnet);
            }
        }
        other => panic!("{other:?}"),
    }
    let renewed = source.renew(&ours).await.unwrap();
    match next(&mut updates).await {
        LeaseUpdate::Put { lease } => {
            assert_eq!((lease.revision, lease.expires.is_some()), (renewed.revision, true));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn foreign_garbage_disturbs_no_other_lease() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    put(&client, &key("nonsense"), &value(9)).await;
    put(&client, &key("10.5.8.0/24"), "{").await;
    put(&client, &key("10.5.1.0/24"), &value(1)).await;
    put(&client, &format!("{PREFIX}/subnets-not-ours/10.5.3.0-24"), &value(3)).await;
    let mut updates = source(&etcd).await.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await, map(&[("10.5.1.0/24", "10.99.0.1")]));
    client
        .kv_client()
        .put(format!("{PREFIX}/subnets/\u{0}"), vec![0xff, 0xfe], None)
        .await
        .unwrap();
    put(&client, &key("10.5.1.0-24&junk"), &value(9)).await;
    delete(&client, &key("10.5.1.0-24&junk")).await;
    put(&client, &key("10.5.2.0/24"), &value(2)).await;
    match next(&mut updates).await {
        LeaseUpdate::Put { lease } => assert_eq!(lease.subnet, net("10.5.2.0/24")),
        other => panic!("{other:?}"),
    }
    // As a list would no longer have it, neither do the updates.
    put(&client, &key("10.5.2.0/24"), "{").await;
    match next(&mut updates).await {
        LeaseUpdate::Removed { subnet, .. } => assert_eq!(subnet, net("10.5.2.0/24")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_was_compacted_while_away_comes_as_a_snapshot() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let mut way = Way::to(&etcd).await;
    for n in 1..=3 {
        put_leased(&client, &key(&format!("10.5.{n}.0/24")), &value(n)).await;
    }
    let source = Etcd3::connect(options(&way.url())).await.unwrap();
    let mut updates = source.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 3);

    way.cut().await;
    let reason = next_break(&mut updates).await;
    assert!(reason.contains(&way.url()), "{reason}");
    put_leased(&client, &key("10.5.1.0/24"), &value(21)).await;
    delete(&client, &key("10.5.2.0/24")).await;
    put_leased(&client, &key("10.5.4.0/24"), &value(4)).await;
    let put = client.kv_client().put("x", "y", None).await.unwrap();
    client.kv_client().compact(put.header().unwrap().revision(), None).await.unwrap();
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
    put_leased(&client, &key("10.5.5.0/24"), &value(5)).await;
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
}

#[tokio::test]
async fn a_reader_that_was_outrun_by_a_compaction_gets_a_snapshot() {
    const CHANGES: usize = 6000;
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let mut updates = source(&etcd).await.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 0);
    // Nobody reads while these come, so that etcd has to hold them back.
    let padding = "x".repeat(4096);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..60 {
        let (mut kv, padding) = (client.kv_client(), padding.clone());
        writers.spawn(async move {
            for n in 0..CHANGES / 60 {
                let value = value(n as u8).replacen('{', &format!(r#"{{"Pad":"{padding}","#), 1);
                kv.put(key(&format!("10.5.{writer}.0/24")), value, None).await.unwrap();
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    put(&client, &key("10.5.60.0/24"), &value(60)).await;
    let revision = client.kv_client().get("x", None).await.unwrap().header().unwrap().revision();
    client.kv_client().compact(revision, None).await.unwrap();
    let mut seen = 0;
    loop {
        match next(&mut updates).await {
            LeaseUpdate::Put { .. } => seen += 1,
            LeaseUpdate::Snapshot { leases, revision: at } => {
                assert_eq!((leases.len(), at), (61, revision));
                break;
            }
            other => panic!("a compaction is no break: {other:?}"),
        }
    }
    assert!(seen < CHANGES, "nothing was left out, so nothing was tested");
    put(&client, &key("10.5.61.0/24"), &value(61)).await;
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
}

#[tokio::test]
async fn a_killed_etcd_is_followed_again_after_its_restart() {
    let mut etcd = Etcd::start().await;
    let client = etcd.client().await;
    put_leased(&client, &key("10.5.1.0/24"), &value(1)).await;
    let source = source(&etcd).await;
    let mut updates = source.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 1);
    etcd.kill();
    assert!(next_break(&mut updates).await.contains(&etcd.url()));
    assert!(source.list().await.is_err());
    etcd.spawn().await;
    assert_eq!(next_snapshot(&mut updates).await, map(&[("10.5.1.0/24", "10.99.0.1")]));
    assert_eq!(source.list().await.unwrap().0.len(), 1);
    put(&etcd.client().await, &key("10.5.2.0/24"), &value(2)).await;
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
}

#[tokio::test]
async fn a_stopped_etcd_is_noticed() {
    let etcd = Etcd::start().await;
    let mut updates = source(&etcd).await.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 0);
    // It keeps its connections and answers nothing.
    etcd.signal(Signal::SIGSTOP);
    let reason = tokio::time::timeout(Duration::from_secs(30), next_break(&mut updates)).await;
    etcd.signal(Signal::SIGCONT);
    assert!(reason.unwrap().contains(&etcd.url()));
    assert_eq!(next_snapshot(&mut updates).await.len(), 0);
}
