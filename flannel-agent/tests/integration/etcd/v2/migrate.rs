//! `flannel-agent migrate`.

use std::process::Output;

use super::*;
use crate::etcd::server::Etcd;

fn migrate(etcd: &Etcd, more: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_flannel-agent"))
        .args(["migrate", "--from", "v2", "--to", "v3", "--etcd-endpoints", &etcd.url()])
        .args(more)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output, text)
}

/// Keys below the prefix in v3: value, and seconds that its etcd lease has left.
async fn in_v3(etcd: &Etcd) -> Vec<(String, String, Option<i64>)> {
    let client = etcd.client().await;
    let options = etcd_client::GetOptions::new().with_prefix();
    let mut found = Vec::new();
    for kv in client.kv_client().get(PREFIX, Some(options)).await.unwrap().take_kvs() {
        let left = match kv.lease() {
            0 => None,
            id => Some(client.lease_client().time_to_live(id, None).await.unwrap().ttl()),
        };
        let (key, value) = (kv.key_str().unwrap(), kv.value_str().unwrap());
        found.push((key.to_owned(), value.to_owned(), left));
    }
    found
}

#[tokio::test]
async fn config_and_leases_are_copied_once() {
    let etcd = Etcd::start().await;
    let (output, _) = migrate(&etcd, &[]);
    assert_eq!(output.status.code(), Some(1), "there is no config");
    assert!(String::from_utf8_lossy(&output.stderr).contains("v2 API"));

    keys(&etcd).put(&format!("{PREFIX}/config"), CONFIG).await;
    keys(&etcd).put(&key("10.5.1.0/24"), &old_value(1)).await;
    keys(&etcd).write(&key("10.5.2.0/24"), &value(2), Some(5000)).await;
    keys(&etcd).put(&key("garbage"), "x").await;

    let (output, text) = migrate(&etcd, &["--dry-run"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text.contains("would copy  subnets/10.5.2.0-24 (") && text.contains("dry run"),
        "{text}"
    );
    assert_eq!(in_v3(&etcd).await, []);

    let (output, text) = migrate(&etcd, &[]);
    assert_eq!(output.status.code(), Some(0));
    for line in [
        "copied      config",
        "copied      subnets/10.5.1.0-24 (reserved)",
        "skipped     subnets/garbage: ",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let found = in_v3(&etcd).await;
    assert_eq!(found[0], (format!("{PREFIX}/config"), CONFIG.to_owned(), None));
    assert_eq!(found[1], (key("10.5.1.0/24"), old_value(1), None));
    assert_eq!((&found[2].0, &found[2].1), (&key("10.5.2.0/24"), &value(2)));
    assert!((4900..=5000).contains(&found[2].2.unwrap()), "{found:?}");
    assert_eq!(found.len(), 3);

    let (output, text) = migrate(&etcd, &["--json"]);
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["result"], "nothing to do");
    assert_eq!(report["keys"][1]["action"], "same");
}

#[tokio::test]
async fn a_difference_is_refused_and_nothing_is_written() {
    let etcd = Etcd::start().await;
    keys(&etcd).put(&format!("{PREFIX}/config"), CONFIG).await;
    keys(&etcd).put(&key("10.5.1.0/24"), &value(1)).await;
    keys(&etcd).put(&key("10.5.2.0/24"), &value(2)).await;
    let client = etcd.client().await;
    client.kv_client().put(key("10.5.2.0/24"), value(9), None).await.unwrap();
    let before = in_v3(&etcd).await;
    for flags in [&["--dry-run"][..], &[]] {
        let (output, text) = migrate(&etcd, flags);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("differs     subnets/10.5.2.0-24"), "{text}");
        assert!(text.contains("10.99.0.9") && text.contains("nothing was written"), "{text}");
        assert_eq!(in_v3(&etcd).await, before);
    }
}
