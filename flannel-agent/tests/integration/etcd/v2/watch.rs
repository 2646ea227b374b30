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

pub(crate) async fn next(updates: &mut Updates) -> LeaseUpdate {
    let update = tokio::time::timeout(Duration::from_secs(30), updates.recv()).await;
    update.expect("no update within 30 s").expect("the watch ended")
}

/// The next update, which must be a snapshot: PublicIP by subnet.
pub(crate) async fn next_snapshot(updates: &mut Updates) -> BTreeMap<String, String> {
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

pub(crate) fn map(leases: &[(&str, &str)]) -> BTreeMap<String, String> {
    leases.iter().map(|(subnet, ip)| ((*subnet).to_owned(), (*ip).to_owned())).collect()
}

#[tokio::test]
async fn changes_come_in_order_after_the_snapshot() {
    let etcd = Etcd::start().await;
    put_leased(&etcd, &key("10.5.1.0/24"), &value(1));
    let stop = CancellationToken::new();
    let mut updates = source(&etcd).await.watch(stop.clone());
    assert_eq!(next_snapshot(&mut updates).await, map(&[("10.5.1.0/24", "10.99.0.1")]));

    // The last one runs out.
    let short = format!("value={}", old_value(2));
    let subnet = key("10.5.2.0/24");
    curl(&etcd, &subnet, &["-XPUT", "--data-urlencode", &short, "-d", "ttl=2"]);
    put_leased(&etcd, &key("10.5.1.0/24"), &value(3));
    delete(&etcd, &key("10.5.1.0/24"));
    for (subnet, n) in [("10.5.2.0/24", 2), ("10.5.1.0/24", 3)] {
        match next(&mut updates).await {
            LeaseUpdate::Put { lease } => {
                assert_eq!(lease.subnet, net(subnet));
                assert_eq!(lease.attrs.public_ip, Ipv4Addr::new(10, 99, 0, n));
                assert!(lease.revision > 0 && lease.expires.is_some());
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
async fn the_first_lease_of_all_is_seen() {
    let etcd = Etcd::start().await;
    let mut updates = source(&etcd).await.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 0);
    put_leased(&etcd, &key("10.5.1.0/24"), &value(1));
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
}

#[tokio::test]
async fn foreign_garbage_disturbs_no_other_lease() {
    let etcd = Etcd::start().await;
    put(&etcd, &key("nonsense"), &value(9));
    put(&etcd, &key("10.5.8.0/24"), "{");
    put(&etcd, &key("10.5.1.0/24"), &value(1));
    put(&etcd, &format!("{PREFIX}/subnets-not-ours/10.5.3.0-24"), &value(3));
    let mut updates = source(&etcd).await.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await, map(&[("10.5.1.0/24", "10.99.0.1")]));
    put(&etcd, &key("10.5.1.0-24&junk"), &value(9));
    delete(&etcd, &key("10.5.1.0-24&junk"));
    put(&etcd, &format!("{}/below", key("10.5.9.0/24")), &value(9));
    put(&etcd, &key("10.5.2.0/24"), &value(2));
    match next(&mut updates).await {
        LeaseUpdate::Put { lease } => assert_eq!(lease.subnet, net("10.5.2.0/24")),
        other => panic!("{other:?}"),
    }
    // As a list would no longer have it, neither do the updates.
    put(&etcd, &key("10.5.2.0/24"), "{");
    match next(&mut updates).await {
        LeaseUpdate::Removed { subnet, .. } => assert_eq!(subnet, net("10.5.2.0/24")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn changes_that_etcd_dropped_while_away_come_as_a_snapshot() {
    let etcd = Etcd::start().await;
    let mut way = Way::to(&etcd).await;
    for n in 1..=3 {
        put_leased(&etcd, &key(&format!("10.5.{n}.0/24")), &value(n));
    }
    let source = Etcd2::connect(options(&way.url())).await.unwrap();
    let mut updates = source.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 3);
    way.cut().await;
    let reason = next_break(&mut updates).await;
    assert!(reason.contains(&way.url()), "{reason}");
    put_leased(&etcd, &key("10.5.1.0/24"), &value(21));
    delete(&etcd, &key("10.5.2.0/24"));
    // Long enough for several tries: they all are one break.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(updates.is_empty());
    way.mend().await;
    let expected = map(&[("10.5.1.0/24", "10.99.0.21"), ("10.5.3.0/24", "10.99.0.3")]);
    assert_eq!(next_snapshot(&mut updates).await, expected);
    put_leased(&etcd, &key("10.5.5.0/24"), &value(5));
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
}

#[tokio::test]
async fn a_reader_that_was_outrun_by_1000_changes_gets_a_snapshot() {
    const CHANGES: usize = 3000;
    let etcd = Etcd::start().await;
    let mut updates = source(&etcd).await.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 0);
    // Nobody reads while these come: 256 updates wait, and no poll goes on.
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let url = format!("{}/v2/keys{}", etcd.url(), key(&format!("10.5.{writer}.0/24")));
            let each = format!("{url}?n=[1-{}]", CHANGES / 4);
            let value = format!("value={}", value(writer));
            std::process::Command::new("curl")
                .args(["-sS", "-o", "/dev/null", &each, "-XPUT", "--data-urlencode", &value])
                .args(["-d", "ttl=86400"])
                .spawn()
                .unwrap()
        })
        .collect();
    tokio::task::spawn_blocking(move || {
        for mut writer in writers {
            assert!(writer.wait().unwrap().success());
        }
    })
    .await
    .unwrap();
    put_leased(&etcd, &key("10.5.60.0/24"), &value(60));
    let mut seen = 0;
    loop {
        match next(&mut updates).await {
            LeaseUpdate::Put { .. } => seen += 1,
            LeaseUpdate::Snapshot { leases, .. } => {
                assert_eq!(leases.len(), 5);
                break;
            }
            other => panic!("a cleared index is no break: {other:?}"),
        }
    }
    assert!(seen < CHANGES, "nothing was left out, so nothing was tested");
    put_leased(&etcd, &key("10.5.61.0/24"), &value(61));
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
}

#[tokio::test]
async fn a_killed_etcd_is_followed_again_after_its_restart() {
    let mut etcd = Etcd::start().await;
    put_leased(&etcd, &key("10.5.1.0/24"), &value(1));
    let source = source(&etcd).await;
    let mut updates = source.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await.len(), 1);
    etcd.kill();
    assert!(next_break(&mut updates).await.contains(&etcd.url()));
    assert!(source.list().await.is_err());
    etcd.spawn().await;
    assert_eq!(next_snapshot(&mut updates).await, map(&[("10.5.1.0/24", "10.99.0.1")]));
    put(&etcd, &key("10.5.2.0/24"), &value(2));
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
