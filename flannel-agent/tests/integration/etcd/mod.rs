//! The sources of leases against a real etcd on loopback.

/// Makes each of these functions a case of v3 and one of v2.
macro_rules! by_either_api {
    ($($case:ident),+ $(,)?) => {
        mod v3 {
            $(#[tokio::test] async fn $case() { super::$case(super::EtcdApi::V3).await; })+
        }
        mod v2 {
            $(#[tokio::test] async fn $case() { super::$case(super::EtcdApi::V2).await; })+
        }
    };
}

mod acquire;
mod certificates;
mod cluster;
mod keys;
mod refusals;
mod server;
mod spellings;
mod tls;
mod updates;
mod v2;
mod v3;
mod watch;

use std::net::Ipv4Addr;

use flannel_agent::source::options::{EtcdApi, EtcdOptions};
use flannel_agent::source::store::Store;
use flannel_agent::source::{Claim, LeaseSource as _};
use flannel_core::config::NetworkConfig;
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::mac::MacAddr;
use ipnetwork::Ipv4Network;

use self::keys::Keys;
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

/// Writes the network config, and reads it back through a source.
async fn configured(api: EtcdApi, etcd: &Etcd, config: &str) -> (Store, NetworkConfig) {
    Keys::by(api, etcd).put(&format!("{PREFIX}/config"), config).await;
    let store = store(&etcd.url(), api).await;
    let config = store.config().await.unwrap();
    (store, config)
}

/// Writes the network config and reads it back through `store`.
async fn configure_by(api: EtcdApi, etcd: &Etcd, store: &Store) -> NetworkConfig {
    Keys::by(api, etcd).put(&format!("{PREFIX}/config"), CONFIG).await;
    store.config().await.unwrap()
}

fn options(url: &str) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![url.to_owned()],
        prefix: PREFIX.to_owned(),
        ..EtcdOptions::default()
    }
}
