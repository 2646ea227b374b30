//! Users and TLS.

use std::time::Duration;

use etcd_client::{ConnectOptions, Permission};
use flannel_agent::source::{LeaseSource, SourceError};
use flannel_core::lease::update::LeaseUpdate;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::etcd::certificates::{Files, ca, flag};
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

async fn logged_in(etcd: &Etcd, user: &str, password: &str) -> Etcd3 {
    let mut options = options(&etcd.url());
    options.username = Some(user.to_owned());
    options.password = Some(password.to_owned());
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
    assert_no_orphans(&as_root(&etcd).await).await;
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
    assert_no_orphans(&as_root(&etcd).await).await;
    assert!(matches!(updates.recv().await, Some(LeaseUpdate::Disconnected { .. })));
    assert!(matches!(updates.recv().await, Some(LeaseUpdate::Snapshot { .. })));
    put(&as_root(&etcd).await, &key("10.5.0.0/24"), &value(12)).await;
    let put = tokio::time::timeout(Duration::from_secs(10), updates.recv()).await.unwrap();
    assert!(matches!(put, Some(LeaseUpdate::Put { .. })), "{put:?}");
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
    elsewhere.password = Some("overlay".to_owned());
    let error = Etcd3::connect(elsewhere).await.unwrap().config().await.unwrap_err().to_string();
    assert!(error.contains("permission denied") && error.contains("--etcd-prefix"), "{error}");
}

/// Waits for the listener that takes connections a bit before it serves.
async fn eventually(source: &Etcd3) {
    for _ in 0..100 {
        match source.list().await {
            Ok(_) => return,
            Err(error) if error.to_string().contains("no leader") => {}
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("etcd has no leader");
}

#[tokio::test]
async fn a_ca_alone_is_enough_and_the_wrong_one_is_told() {
    let files = Files::new();
    let (right, wrong) = (ca("right"), ca("wrong"));
    let (cert, key) = files.issue("etcd", &right);
    let etcd = Etcd::start_tls(&[flag("cert-file", &cert), flag("key-file", &key)]).await;
    let mut options = options(&etcd.url());
    options.ca_file = Some(files.write("right.pem", &right.pem()));
    let source = Etcd3::connect(options.clone()).await.unwrap();
    eventually(&source).await;
    let mut updates = source.watch(CancellationToken::new());
    assert!(matches!(updates.recv().await, Some(LeaseUpdate::Snapshot { .. })));

    options.ca_file = Some(files.write("wrong.pem", &wrong.pem()));
    let error = Etcd3::connect(options.clone()).await.unwrap().list().await.unwrap_err();
    let error = error.to_string();
    for part in ["invalid peer certificate", &etcd.url(), "--etcd-cafile"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // Without one it is the system's CAs, which do not know ours.
    options.ca_file = None;
    if let Ok(source) = Etcd3::connect(options.clone()).await {
        let error = source.list().await.unwrap_err().to_string();
        assert!(error.contains("--etcd-cafile"), "{error}");
    }
    options.endpoints = vec![etcd.url().replace("https", "http")];
    let error = Etcd3::connect(options).await.unwrap().list().await.unwrap_err().to_string();
    assert!(error.contains("https://"), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let files = Files::new();
    let (authority, other) = (ca("authority"), ca("other"));
    let (cert, key) = files.issue("etcd", &authority);
    let ca_file = files.write("ca.pem", &authority.pem());
    let etcd = Etcd::start_tls(&[
        flag("cert-file", &cert),
        flag("key-file", &key),
        flag("trusted-ca-file", &ca_file),
        "--client-cert-auth".to_owned(),
    ])
    .await;
    let mut options = options(&etcd.url());
    options.ca_file = Some(ca_file);
    let (ours, our_key) = files.issue("node", &authority);
    let shown = EtcdOptions { cert_file: Some(ours), key_file: Some(our_key), ..options.clone() };
    eventually(&Etcd3::connect(shown).await.unwrap()).await;

    let (foreign, foreign_key) = files.issue("foreign", &other);
    let unknown =
        EtcdOptions { cert_file: Some(foreign), key_file: Some(foreign_key), ..options.clone() };
    for refused in [options, unknown] {
        let error = Etcd3::connect(refused).await.unwrap().list().await.unwrap_err().to_string();
        assert!(error.contains("--etcd-certfile"), "{error}");
    }
}

#[tokio::test]
async fn unusable_settings_are_named() {
    let files = Files::new();
    let empty = files.write("empty.pem", "");
    let good = files.write("ca.pem", &ca("any").pem());
    let missing = files.missing("missing.pem");
    let with = |edit: &dyn Fn(&mut EtcdOptions)| {
        let mut options = options("https://127.0.0.1:1");
        options.ca_file = Some(good.clone());
        edit(&mut options);
        options
    };
    let cases = [
        (with(&|o| o.endpoints = vec![" ".to_owned()]), "--etcd-endpoints"),
        (with(&|o| o.endpoints = vec!["ftp://x".to_owned()]), "--etcd-endpoints ftp://x"),
        (with(&|o| o.endpoints = vec!["http://a b".to_owned()]), "--etcd-endpoints http://a b"),
        (with(&|o| o.ca_file = Some(missing.clone())), "missing.pem"),
        (with(&|o| o.ca_file = Some(empty.clone())), "empty.pem"),
        (with(&|o| o.cert_file = Some(good.clone())), "--etcd-certfile"),
        (with(&|o| o.key_file = Some(good.clone())), "--etcd-keyfile"),
        (with(&|o| (o.cert_file, o.key_file) = (Some(good.clone()), Some(good.clone()))), "key"),
    ];
    for (options, named) in cases {
        let error = match Etcd3::connect(options).await {
            Ok(_) => panic!("{named} is accepted"),
            Err(error) => error,
        };
        assert!(matches!(error, SourceError::Options { .. }), "{error}");
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}
