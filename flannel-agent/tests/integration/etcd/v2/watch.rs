//! Following the leases.

use flannel_core::lease::update::LeaseUpdate;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::etcd::keys::curl;
use crate::etcd::updates::{map, next, next_snapshot};

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
            Command::new("curl")
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
    keys(&etcd).put_leased(&key("10.5.60.0/24"), &value(60)).await;
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
    keys(&etcd).put_leased(&key("10.5.61.0/24"), &value(61)).await;
    assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
}

#[tokio::test]
async fn leases_that_go_with_their_directory_have_gone() {
    let etcd = Etcd::start().await;
    let mut updates = source(&etcd).await.watch(CancellationToken::new());
    assert_eq!(next_snapshot(&mut updates).await, map(&[]));
    // The directory itself, one above it, and one that is another.
    for directory in [key(""), PREFIX.to_owned(), "/coreos.com".to_owned()] {
        keys(&etcd).put(&key("10.5.1.0/24"), &value(1)).await;
        assert!(matches!(next(&mut updates).await, LeaseUpdate::Put { .. }));
        keys(&etcd).put(&format!("{PREFIX}/other/subnets/10.5.1.0-24"), &value(2)).await;
        curl(&etcd, &format!("{PREFIX}/other?recursive=true"), &["-XDELETE"]);
        curl(&etcd, &format!("{}?recursive=true", directory.trim_end_matches('/')), &["-XDELETE"]);
        assert_eq!(next_snapshot(&mut updates).await, map(&[]), "{directory}");
    }
}
