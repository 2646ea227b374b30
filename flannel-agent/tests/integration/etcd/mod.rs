//! The sources of leases against a real etcd on loopback.

mod certificates;
mod cluster;
mod refusals;
mod server;
mod spellings;
mod tls;
mod v2;
mod v3;

use std::net::Ipv4Addr;
use std::process::Command;

use flannel_agent::source::options::{EtcdApi, EtcdOptions};
use flannel_agent::source::store::Store;
use flannel_agent::source::{Claim, LeaseSource as _};
use flannel_core::config::NetworkConfig;
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::mac::MacAddr;
use ipnetwork::Ipv4Network;

use self::server::Etcd;

const PREFIX: &str = "/coreos.com/network";

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn key(subnet: &str) -> String {
    format!("{PREFIX}/subnets/{}", subnet.replace('/', "-"))
}

/// What node `n` says of itself.
fn attrs(n: u8) -> LeaseAttrs {
    LeaseAttrs::vxlan(Ipv4Addr::new(10, 99, 0, n), 1, MacAddr([2, 0, 0, 0, 0, n]))
}

fn value(n: u8) -> String {
    serde_json::to_string(&attrs(n)).unwrap()
}

fn claim(n: u8) -> Claim {
    Claim::new(attrs(n), None)
}

/// Both APIs, for what holds by either.
const APIS: [EtcdApi; 2] = [EtcdApi::V3, EtcdApi::V2];

async fn store(url: &str, api: EtcdApi) -> Store {
    Store::connect(options(url), api).await.unwrap()
}

/// Writes a key by this API, as an operator does.
async fn put_by(api: EtcdApi, etcd: &Etcd, key: &str, value: &str) {
    match api {
        EtcdApi::V2 => {
            let url = format!("{}/v2/keys{key}", etcd.url());
            let value = format!("value={value}");
            let put = Command::new("curl")
                .args(["-sSf", "-XPUT", &url, "--data-urlencode", &value])
                .output()
                .unwrap();
            assert!(put.status.success(), "{key}: {}", String::from_utf8_lossy(&put.stderr));
        }
        _ => {
            etcd.client().await.kv_client().put(key, value, None).await.unwrap();
        }
    }
}

/// Names of the subnet keys that this API has.
async fn subnets_by(api: EtcdApi, etcd: &Etcd) -> Vec<String> {
    // One that knows no cluster yet.
    let leases = store(&etcd.url(), api).await.list().await.unwrap().0;
    leases.iter().map(|lease| lease.subnet.to_string()).collect()
}

/// Writes the network config and reads it back through `store`.
async fn configure_by(api: EtcdApi, etcd: &Etcd, store: &Store) -> NetworkConfig {
    put_by(api, etcd, &format!("{PREFIX}/config"), CONFIG).await;
    store.config().await.unwrap()
}

fn options(url: &str) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![url.to_owned()],
        prefix: PREFIX.to_owned(),
        ..EtcdOptions::default()
    }
}
