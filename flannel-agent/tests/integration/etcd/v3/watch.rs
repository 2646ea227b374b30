//! Following the leases.

use flannel_core::lease::update::LeaseUpdate;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::etcd::updates::{map, next, next_snapshot};

#[tokio::test]
async fn our_own_expiry_is_known() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    let source = source(&etcd).await;
    let ours = source.acquire(&config, &claim(11)).await.unwrap();
    keys(&etcd).put_leased(&key("10.5.0.0/24"), &value(12)).await;
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
async fn of_several_keys_of_a_subnet_the_newest_counts_and_the_others_stay_behind_it() {
    let etcd = Etcd::start().await;
    let keys = keys(&etcd);
    let (plain, dual) = (key("10.5.1.0/24"), key("10.5.1.0-24&fd00::-64"));
    keys.put(&dual, &value(1)).await;
    keys.put(&plain, &value(2)).await;
    let source = source(&etcd).await;
    let mut updates = source.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await, map(&[("10.5.1.0/24", "10.99.0.2")]));
    let mut put = async |n: u8| match next(&mut updates).await {
        LeaseUpdate::Put { lease } => assert_eq!(lease.attrs, attrs(n)),
        other => panic!("{other:?}"),
    };
    keys.delete(&plain).await;
    put(1).await;
    keys.put(&plain, &value(3)).await;
    put(3).await;
    // As a node leaves IPv6: its old key ends a day later.
    keys.delete(&dual).await;
    put(3).await;
    keys.delete(&plain).await;
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Removed { .. }));

    // None of it looks like another history.
    keys.put(&dual, &value(4)).await;
    keys.put(&plain, &value(5)).await;
    let (leases, _) = source.list().await.unwrap();
    assert_eq!(leases.iter().map(|lease| &lease.attrs).collect::<Vec<_>>(), [&attrs(5)]);
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
    keys(&etcd).put(&key("10.5.60.0/24"), &value(60)).await;
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
    keys(&etcd).put(&key("10.5.61.0/24"), &value(61)).await;
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
}
