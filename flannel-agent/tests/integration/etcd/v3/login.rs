//! Users.

use std::time::Duration;

use etcd_client::{ConnectOptions, GetOptions, Permission};
use flannel_agent::source::LeaseSource;
use flannel_core::lease::update::LeaseUpdate;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::etcd::server::Etcd;

/// Turns users on: `root`, and `flannel` who may use what is below the prefix.
async fn with_users(etcd: &Etcd) {
    let client = etcd.client().await;
    let mut auth = client.auth_client();
    auth.user_add("root", "secret", None).await.unwrap();
    auth.role_add("root").await.unwrap();
    auth.user_grant_role("root", "root").await.unwrap();
    auth.user_add("flannel", "overlay", None).await.unwrap();
    auth.role_add("leases").await.unwrap();
    let below = Permission::read_write(format!("{PREFIX}/")).with_prefix();
    auth.role_grant_permission("leases", below).await.unwrap();
    auth.user_grant_role("flannel", "leases").await.unwrap();
    auth.auth_enable().await.unwrap();
}

async fn as_root(etcd: &Etcd) -> Client {
    let options = ConnectOptions::new().with_user("root", "secret");
    Client::connect([etcd.url()], Some(options)).await.unwrap()
}

/// Fails unless the only etcd lease is the one that the only subnet key carries.
async fn assert_one_etcd_lease(root: &Client) {
    let options = GetOptions::new().with_prefix();
    let subnets = format!("{PREFIX}/subnets/");
    let keys = root.kv_client().get(subnets, Some(options)).await.unwrap().take_kvs();
    let carried: Vec<_> = keys.iter().map(|kv| kv.lease()).collect();
    let answer = root.lease_client().leases().await.unwrap();
    let there: Vec<_> = answer.leases().iter().map(|lease| lease.id()).collect();
    assert_eq!((there.len(), there), (1, carried));
}

async fn logged_in(etcd: &Etcd, user: &str, password: &str) -> Etcd3 {
    let mut options = options(&etcd.url());
    options.username = Some(user.to_owned());
    options.password = Some(password.parse().unwrap());
    Etcd3::connect(options).await.unwrap()
}

#[tokio::test]
async fn a_user_logs_in_and_again_when_the_token_is_void() {
    let mut etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    with_users(&etcd).await;
    let source = logged_in(&etcd, "flannel", "overlay").await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    let lease = source.renew(&lease).await.unwrap();
    assert_one_etcd_lease(&as_root(&etcd).await).await;
    let mut updates = source.watch(CancellationToken::new());
    assert!(matches!(updates.recv().await, Some(LeaseUpdate::Snapshot { .. })));

    // A change of users voids tokens.
    let mut auth = as_root(&etcd).await.auth_client();
    auth.user_add("another", "one", None).await.unwrap();
    auth.user_change_password("flannel", "overlay").await.unwrap();
    let lease = source.renew(&lease).await.unwrap();
    assert!(matches!(updates.recv().await, Some(LeaseUpdate::Put { .. })));

    // So does a restart, which forgets them.
    etcd.kill();
    etcd.spawn().await;
    source.renew(&lease).await.unwrap();
    assert_one_etcd_lease(&as_root(&etcd).await).await;
    assert!(matches!(updates.recv().await, Some(LeaseUpdate::Disconnected { .. })));
    assert!(matches!(updates.recv().await, Some(LeaseUpdate::Snapshot { .. })));
    let root = as_root(&etcd).await;
    root.kv_client().put(key("10.5.0.0/24"), value(12), None).await.unwrap();
    let put = tokio::time::timeout(Duration::from_secs(10), updates.recv()).await.unwrap();
    assert!(matches!(put, Some(LeaseUpdate::Put { .. })), "{put:?}");
}

#[tokio::test]
async fn a_password_that_changed_in_its_file_is_taken_without_a_restart() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    with_users(&etcd).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "overlay\n").unwrap();
    let mut options = options(&etcd.url());
    options.username = Some("flannel".to_owned());
    options.password_file = Some(file.path().into());
    let source = Etcd3::connect(options).await.unwrap();
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    let mut updates = source.watch(CancellationToken::new());
    assert!(matches!(updates.recv().await, Some(LeaseUpdate::Snapshot { .. })));

    let mut auth = as_root(&etcd).await.auth_client();
    auth.user_change_password("flannel", "another").await.unwrap();
    let refused = source.renew(&lease).await.unwrap_err().to_string();
    assert!(refused.contains("authentication failed"), "{refused}");
    assert!(refused.contains("--etcd-password-file"), "{refused}");
    std::fs::write(file.path(), "another\n").unwrap();
    source.renew(&lease).await.unwrap();
    assert_one_etcd_lease(&as_root(&etcd).await).await;
    // Peers' leases go on, too, on whatever connection.
    let root = as_root(&etcd).await;
    root.kv_client().put(key("10.5.0.0/24"), value(12), None).await.unwrap();
    let new = async {
        let subnet = "10.5.0.0/24".parse().unwrap();
        loop {
            match updates.recv().await.expect("an update") {
                LeaseUpdate::Put { lease, .. } if lease.subnet == subnet => return,
                LeaseUpdate::Snapshot { leases, .. }
                    if leases.iter().any(|lease| lease.subnet == subnet) =>
                {
                    return;
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), new).await.unwrap();
}

#[tokio::test]
async fn a_refused_login_says_what_to_look_at() {
    let etcd = Etcd::start().await;
    configure(&etcd, CONFIG).await;
    with_users(&etcd).await;
    let nobody = source(&etcd).await.config().await.unwrap_err().to_string();
    assert!(nobody.contains("user name is empty"), "{nobody}");
    let wrong = logged_in(&etcd, "flannel", "wrong").await.config().await.unwrap_err().to_string();
    assert!(wrong.contains("authentication failed"), "{wrong}");
    for error in [nobody, wrong] {
        for part in ["/coreos.com/network/config", &etcd.url(), "--etcd-username"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("overlay"), "{error}");
    }
    let mut elsewhere = options(&etcd.url());
    elsewhere.prefix = "/elsewhere".to_owned();
    elsewhere.username = Some("flannel".to_owned());
    elsewhere.password = Some("overlay".parse().unwrap());
    let error = Etcd3::connect(elsewhere).await.unwrap().config().await.unwrap_err().to_string();
    assert!(error.contains("permission denied") && error.contains("--etcd-prefix"), "{error}");
}
