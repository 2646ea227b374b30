//! What an etcd with users refuses, and one that has none any more.

use etcd_client::{Client, ConnectOptions, Permission};

use super::*;

/// Turns users on: `root`, and `reader`, who may read what is below the prefix.
async fn with_a_reader(etcd: &Etcd) {
    let mut auth = etcd.client().await.auth_client();
    auth.user_add("root", "secret", None).await.unwrap();
    auth.role_add("root").await.unwrap();
    auth.user_grant_role("root", "root").await.unwrap();
    auth.user_add("reader", "only", None).await.unwrap();
    auth.role_add("reader").await.unwrap();
    let below = Permission::read(format!("{PREFIX}/")).with_prefix();
    auth.role_grant_permission("reader", below).await.unwrap();
    auth.user_grant_role("reader", "reader").await.unwrap();
    auth.auth_enable().await.unwrap();
}

async fn as_root(etcd: &Etcd) -> Client {
    let options = ConnectOptions::new().with_user("root", "secret");
    Client::connect([etcd.url()], Some(options)).await.unwrap()
}

async fn reader(etcd: &Etcd, api: EtcdApi) -> Store {
    let mut options = options(&etcd.url());
    options.username = Some("reader".to_owned());
    options.password = Some("only".parse().unwrap());
    Store::connect(options, api).await.unwrap()
}

#[tokio::test]
async fn refused_writes_leave_no_etcd_lease() {
    let etcd = Etcd::start().await;
    let store = reader(&etcd, EtcdApi::V3).await;
    let config = configure_by(EtcdApi::V3, &etcd, &store).await;
    let ours = store.acquire(&config, &claim(11)).await.unwrap();
    with_a_reader(&etcd).await;
    let root = as_root(&etcd).await;
    let leases = async || root.lease_client().leases().await.unwrap().leases().len();
    let mut troubles = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let error = store.acquire(&config, &claim(12)).await.unwrap_err();
        assert!(error.to_string().contains("permission denied"), "{error}");
        troubles.insert(error.trouble());
        store.renew(&ours).await.unwrap_err();
    }
    assert_eq!(leases().await, 1, "only that of our key");
    assert_eq!(troubles.len(), 1, "one trouble, one word: {troubles:?}");
}

#[tokio::test]
async fn a_user_is_no_hindrance_where_etcd_knows_none() {
    for api in APIS {
        let etcd = Etcd::start().await;
        let store = reader(&etcd, api).await;
        let config = configure_by(api, &etcd, &store).await;
        store.acquire(&config, &claim(11)).await.unwrap();
    }
}

#[tokio::test]
async fn users_may_be_switched_on_and_off_while_running() {
    let mut etcd = Etcd::start().await;
    let store = reader(&etcd, EtcdApi::V3).await;
    configure_by(EtcdApi::V3, &etcd, &store).await;
    with_a_reader(&etcd).await;
    store.list().await.unwrap();
    as_root(&etcd).await.auth_client().auth_disable().await.unwrap();
    store.list().await.unwrap();
    etcd.kill();
    etcd.spawn().await;
    store.list().await.unwrap();
}
