//! Users and TLS.

use std::time::Duration;

use flannel_agent::source::{LeaseSource, SourceError};
use flannel_core::lease::update::LeaseUpdate;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::etcd::certificates::{Files, ca, flag};
use crate::etcd::server::Etcd;

/// Calls the v2 API of users.
fn auth(etcd: &Etcd, path: &str, body: &str) {
    let url = format!("{}/v2/auth{path}", etcd.url());
    let output = Command::new("curl")
        .args(["-sSf", "-u", "root:secret", "-XPUT", &url, "-d", body])
        .output()
        .unwrap();
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Turns users on: `root`, and `flannel` who may use what is below the prefix.
fn with_users(etcd: &Etcd) {
    auth(etcd, "/users/root", r#"{"user":"root","password":"secret"}"#);
    let role = format!(
        r#"{{"role":"leases","permissions":{{"kv":{{"read":["{PREFIX}/*"],"write":["{PREFIX}/*"]}}}}}}"#
    );
    auth(etcd, "/roles/leases", &role);
    auth(etcd, "/users/flannel", r#"{"user":"flannel","password":"over:lay","roles":["leases"]}"#);
    auth(etcd, "/enable", "");
    let nothing = r#"{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}"#;
    auth(etcd, "/roles/guest", nothing);
}

async fn logged_in(etcd: &Etcd, password: &str) -> Etcd2 {
    let mut options = options(&etcd.url());
    options.username = Some("flannel".to_owned());
    options.password = Some(password.to_owned());
    Etcd2::connect(options).await.unwrap()
}

#[tokio::test]
async fn a_user_is_known_by_basic_auth() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    with_users(&etcd);
    let ours = logged_in(&etcd, "over:lay").await;
    let mut updates = ours.watch(CancellationToken::new());
    assert!(matches!(updates.recv().await, Some(LeaseUpdate::Snapshot { .. })));
    let lease = ours.acquire(&config, &claim(11)).await.unwrap();
    assert!(matches!(updates.recv().await, Some(LeaseUpdate::Put { .. })));
    ours.renew(&lease).await.unwrap();

    let nobody = source(&etcd).await.config().await.unwrap_err().to_string();
    let wrong = logged_in(&etcd, "wrong").await.config().await.unwrap_err().to_string();
    for error in [nobody, wrong] {
        for part in ["Insufficient credentials", &format!("{PREFIX}/config"), "--etcd-username"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(error.contains(&etcd.url()) && !error.contains("over"), "{error}");
    }
}

/// Waits for the listener that takes connections a bit before it serves.
async fn eventually(source: &Etcd2) {
    let mut last = None;
    for _ in 0..100 {
        match source.list().await {
            Ok(_) => return,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{last:?}");
}

#[tokio::test]
async fn a_ca_alone_is_enough_and_the_wrong_one_is_told() {
    let files = Files::new();
    let (right, wrong) = (ca("right"), ca("wrong"));
    let (cert, key) = files.issue("etcd", &right);
    let etcd = Etcd::start_tls(&[flag("cert-file", &cert), flag("key-file", &key)]).await;
    let mut options = options(&etcd.url());
    options.ca_file = Some(files.write("right.pem", &right.pem()));
    let source = Etcd2::connect(options.clone()).await.unwrap();
    eventually(&source).await;
    let mut updates = source.watch(CancellationToken::new());
    assert!(matches!(updates.recv().await, Some(LeaseUpdate::Snapshot { .. })));

    options.ca_file = Some(files.write("wrong.pem", &wrong.pem()));
    let error = Etcd2::connect(options.clone()).await.unwrap().list().await.unwrap_err();
    let error = error.to_string();
    for part in ["invalid peer certificate", &etcd.url(), "--etcd-cafile"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    options.endpoints = vec![etcd.url().replace("https", "http")];
    let error = Etcd2::connect(options).await.unwrap().list().await.unwrap_err().to_string();
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
    eventually(&Etcd2::connect(shown).await.unwrap()).await;

    let (foreign, foreign_key) = files.issue("foreign", &other);
    let unknown =
        EtcdOptions { cert_file: Some(foreign), key_file: Some(foreign_key), ..options.clone() };
    for refused in [options, unknown] {
        let error = Etcd2::connect(refused).await.unwrap().list().await.unwrap_err().to_string();
        assert!(error.contains("--etcd-certfile"), "{error}");
    }
}

#[tokio::test]
async fn unusable_settings_are_named() {
    let files = Files::new();
    let good = files.write("ca.pem", &ca("any").pem());
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
        (with(&|o| o.ca_file = Some(files.missing("missing.pem"))), "missing.pem"),
        (with(&|o| o.cert_file = Some(good.clone())), "--etcd-certfile"),
        (with(&|o| (o.cert_file, o.key_file) = (Some(good.clone()), Some(good.clone()))), "key"),
    ];
    for (options, named) in cases {
        let error = match Etcd2::connect(options).await {
            Ok(_) => panic!("{named} is accepted"),
            Err(error) => error,
        };
        assert!(matches!(error, SourceError::Options { .. }), "{error}");
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}
