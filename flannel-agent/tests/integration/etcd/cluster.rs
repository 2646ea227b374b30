//! Another cluster than the node's own, by both APIs.

use std::time::Duration;

use flannel_core::lease::update::LeaseUpdate;
use tokio_util::sync::CancellationToken;

use super::*;

const OTHER: &str = "another-cluster";

#[tokio::test]
async fn another_cluster_is_refused_and_the_own_one_is_known_again() {
    for api in APIS {
        let mut etcd = Etcd::start().await;
        let store = store(&etcd.url(), api).await;
        let config = configure_by(api, &etcd, &store).await;
        let lease = store.acquire(&config, &claim(11)).await.unwrap();
        let mut updates = store.watch(CancellationToken::new());
        assert!(matches!(updates.recv().await, Some(LeaseUpdate::Snapshot { .. })));

        let data = etcd.restart_empty(OTHER).await;
        Keys::by(api, &etcd).put(&format!("{PREFIX}/config"), CONFIG).await;
        let refused = store.renew(&lease).await.unwrap_err().to_string();
        let listed = store.list().await.unwrap_err().to_string();
        for text in [refused, listed] {
            for part in ["belongs to cluster", "restart the agent", &etcd.url()] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
        assert!(Keys::by(api, &etcd).subnets().await.is_empty(), "something was written there");
        tokio::time::sleep(Duration::from_secs(1)).await;
        while let Ok(update) = updates.try_recv() {
            assert!(matches!(update, LeaseUpdate::Disconnected { .. }), "{update:?}");
        }

        etcd.restart_with(data, "etcd-cluster").await;
        store.renew(&lease).await.unwrap();
        let back = async {
            loop {
                match updates.recv().await.unwrap() {
                    LeaseUpdate::Snapshot { leases, .. } => return leases.len(),
                    LeaseUpdate::Disconnected { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        let back = tokio::time::timeout(Duration::from_secs(10), back).await;
        assert_eq!(back.unwrap(), 1, "{api:?}");
    }
}

#[tokio::test]
async fn failover_never_leads_to_another_cluster() {
    for api in APIS {
        let mut ours = Etcd::start().await;
        let mut other = Etcd::start().await;
        other.restart_empty(OTHER).await;
        Keys::by(api, &other).put(&format!("{PREFIX}/config"), CONFIG).await;
        let mut both = options(&ours.url());
        both.endpoints.push(other.url());
        let store = Store::connect(both, api).await.unwrap();
        let config = configure_by(api, &ours, &store).await;
        let lease = store.acquire(&config, &claim(11)).await.unwrap();
        ours.kill();
        for _ in 0..3 {
            let text = store.renew(&lease).await.unwrap_err().to_string();
            let refused = format!("{}: it is of cluster", other.url());
            assert!(text.contains(&refused) && text.contains(&ours.url()), "{text}");
        }
        assert!(Keys::by(api, &other).subnets().await.is_empty());
        ours.spawn().await;
        store.renew(&lease).await.unwrap();
        // A new start may go to another cluster.
        let again = Store::connect(options(&other.url()), api).await.unwrap();
        let config = again.config().await.unwrap();
        again.acquire(&config, &claim(11)).await.unwrap();
    }
}

#[tokio::test]
async fn connections_are_left_when_addresses_change() {
    for api in APIS {
        let etcd = Etcd::start().await;
        let way = super::server::Way::to(&etcd).await;
        let store = store(&way.url(), api).await;
        configure_by(api, &etcd, &store).await;
        let mut updates = store.watch(CancellationToken::new());
        assert!(matches!(updates.recv().await, Some(LeaseUpdate::Snapshot { .. })));
        // What is under way hangs, as on a connection whose address has gone.
        etcd.signal(super::server::Signal::SIGSTOP);
        let asking = store.clone();
        let asked = tokio::spawn(async move { asking.list().await.map(|_| ()) });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = way.accepted();
        store.addresses_changed(&|_| true);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(way.accepted(), before, "{api:?}: the address is here");
        store.addresses_changed(&|_| false);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(way.accepted() > before, "{api:?}: nothing was connected anew");
        etcd.signal(super::server::Signal::SIGCONT);
        asked.await.unwrap().unwrap();
        let next = tokio::time::timeout(Duration::from_secs(5), updates.recv()).await;
        assert!(matches!(next.unwrap(), Some(LeaseUpdate::Snapshot { .. })), "{api:?}");
    }
}
