//! [`Etcd2`], [`Store`] and the migration against a real etcd on loopback.

mod acquire;
mod login;
mod migrate;
mod store;
mod watch;

use std::net::Ipv4Addr;
use std::process::Command;

use flannel_agent::source::LeaseSource;
use flannel_agent::source::etcd2::Etcd2;
use flannel_core::config::NetworkConfig;
use flannel_core::mac::MacAddr;
use serde_json::Value;

use super::server::Etcd;
use super::*;

/// As flannel 0.11 writes it.
fn old_value(n: u8) -> String {
    format!(
        r#"{{"PublicIP":"10.99.0.{n}","BackendType":"vxlan","BackendData":{{"VtepMAC":"02:00:00:00:00:{n:02x}"}}}}"#
    )
}

async fn source(etcd: &Etcd) -> Etcd2 {
    Etcd2::connect(options(&etcd.url())).await.unwrap()
}

/// Calls the v2 API by `curl`, as the guides do.
fn curl(etcd: &Etcd, key: &str, arguments: &[&str]) -> Value {
    let url = format!("{}/v2/keys{key}", etcd.url());
    let output = Command::new("curl").args(["-sS", &url]).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Writes the network config and reads it back through the source.
async fn configure(etcd: &Etcd, config: &str) -> NetworkConfig {
    put(etcd, &format!("{PREFIX}/config"), config);
    source(etcd).await.config().await.unwrap()
}

/// Puts without a TTL.
fn put(etcd: &Etcd, key: &str, value: &str) {
    let answer = curl(etcd, key, &["-XPUT", "--data-urlencode", &format!("value={value}")]);
    assert!(answer["node"].is_object(), "{answer}");
}

/// Puts with a TTL, as flannel does.
fn put_leased(etcd: &Etcd, key: &str, value: &str) {
    let value = format!("value={value}");
    let answer = curl(etcd, key, &["-XPUT", "--data-urlencode", &value, "-d", "ttl=86400"]);
    assert!(answer["node"]["ttl"] == 86400, "{answer}");
}

fn delete(etcd: &Etcd, key: &str) {
    let answer = curl(etcd, key, &["-XDELETE"]);
    assert_eq!(answer["action"], "delete", "{answer}");
}

fn get(etcd: &Etcd, key: &str) -> Option<Value> {
    let answer = curl(etcd, key, &[]);
    answer.get("node").cloned()
}

/// All subnet keys.
fn keys(etcd: &Etcd) -> Vec<Value> {
    let node = get(etcd, &format!("{PREFIX}/subnets"));
    node.and_then(|node| node["nodes"].as_array().cloned()).unwrap_or_default()
}
