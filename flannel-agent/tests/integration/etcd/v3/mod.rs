//! What v3 alone has: etcd leases as things of their own, compaction, tokens.

mod acquire;
mod login;
mod watch;

use etcd_client::{Client, PutOptions};
use flannel_agent::source::LeaseSource;
use flannel_agent::source::etcd3::Etcd3;
use flannel_core::config::NetworkConfig;

use super::server::Etcd;
use super::*;

async fn source(etcd: &Etcd) -> Etcd3 {
    Etcd3::connect(options(&etcd.url())).await.unwrap()
}

fn keys(etcd: &Etcd) -> Keys<'_> {
    Keys::by(EtcdApi::V3, etcd)
}

/// Writes the network config and reads it back through the source.
async fn configure(etcd: &Etcd, config: &str) -> NetworkConfig {
    keys(etcd).put(&format!("{PREFIX}/config"), config).await;
    source(etcd).await.config().await.unwrap()
}
