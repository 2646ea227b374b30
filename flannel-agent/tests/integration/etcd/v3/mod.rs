//! [`Etcd3`] against a real etcd on loopback.

mod acquire;
mod login;
mod watch;

use std::net::Ipv4Addr;

use etcd_client::{Client, GetOptions, KeyValue, PutOptions};
use flannel_agent::source::LeaseSource;
use flannel_agent::source::etcd3::Etcd3;
use flannel_core::config::NetworkConfig;

use super::server::Etcd;
use super::*;

async fn source(etcd: &Etcd) -> Etcd3 {
    Etcd3::connect(options(&etcd.url())).await.unwrap()
}

/// Writes the network config and reads it back through the source.
async fn configure(etcd: &Etcd, config: &str) -> NetworkConfig {
    put(&etcd.client().await, &format!("{PREFIX}/config"), config).await;
    source(etcd).await.config().await.unwrap()
}

async fn put(client: &Client, key: &str, value: &str) {
    client.kv_client().put(key, value, None).await.unwrap();
}

/// Puts with an etcd lease, as flannel does; returns the lease's id.
async fn put_leased(client: &Client, key: &str, value: &str) -> i64 {
    let id = client.lease_client().grant(86400, None).await.unwrap().id();
    let options = PutOptions::new().with_lease(id);
    client.kv_client().put(key, value, Some(options)).await.unwrap();
    id
}

async fn delete(client: &Client, key: &str) {
    assert_eq!(client.kv_client().delete(key, None).await.unwrap().deleted(), 1, "{key}");
}

async fn get(client: &Client, key: &str) -> Option<KeyValue> {
    client.kv_client().get(key, None).await.unwrap().take_kvs().pop()
}

/// All subnet keys.
async fn keys(client: &Client) -> Vec<KeyValue> {
    let options = GetOptions::new().with_prefix();
    client.kv_client().get(format!("{PREFIX}/subnets/"), Some(options)).await.unwrap().take_kvs()
}

/// Ids of all etcd leases.
async fn etcd_leases(client: &Client) -> Vec<i64> {
    let answer = client.lease_client().leases().await.unwrap();
    let mut ids: Vec<_> = answer.leases().iter().map(|lease| lease.id()).collect();
    ids.sort_unstable();
    ids
}

/// Fails unless the etcd leases are exactly those that the subnet keys carry.
async fn assert_no_orphans(client: &Client) {
    let mut carried: Vec<_> =
        keys(client).await.iter().map(|kv| kv.lease()).filter(|id| *id != 0).collect();
    carried.sort_unstable();
    assert_eq!(etcd_leases(client).await, carried);
}
