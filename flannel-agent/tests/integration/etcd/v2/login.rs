//! Users.

use flannel_agent::source::LeaseSource;
use flannel_core::lease::update::LeaseUpdate;
use tokio_util::sync::CancellationToken;

use super::*;
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
    options.password = Some(password.parse().unwrap());
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

#[tokio::test]
async fn a_password_that_changed_in_its_file_is_taken_without_a_restart() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    with_users(&etcd);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "over:lay\n").unwrap();
    let mut options = options(&etcd.url());
    options.username = Some("flannel".to_owned());
    options.password_file = Some(file.path().into());
    let ours = Etcd2::connect(options.clone()).await.unwrap();
    let lease = ours.acquire(&config, &claim(11)).await.unwrap();
    auth(&etcd, "/users/flannel", r#"{"user":"flannel","password":"another"}"#);
    let refused = ours.renew(&lease).await.unwrap_err().to_string();
    assert!(refused.contains("Insufficient credentials"), "{refused}");
    std::fs::write(file.path(), "another\n").unwrap();
    ours.renew(&lease).await.unwrap();
    // Without it there is no start.
    drop(file);
    let error = Etcd2::connect(options).await.err().expect("no file").to_string();
    assert!(error.contains("--etcd-password-file"), "{error}");
}
