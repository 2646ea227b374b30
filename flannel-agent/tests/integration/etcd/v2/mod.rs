//! What v2 alone has, [`Store`]'s choice of an API, and the migration from v2.

mod acquire;
mod login;
mod migrate;
mod store;
mod watch;

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

fn keys(etcd: &Etcd) -> Keys<'_> {
    Keys::by(EtcdApi::V2, etcd)
}

/// Writes the network config and reads it back through the source.
async fn configure(etcd: &Etcd, config: &str) -> NetworkConfig {
    keys(etcd).put(&format!("{PREFIX}/config"), config).await;
    source(etcd).await.config().await.unwrap()
}
