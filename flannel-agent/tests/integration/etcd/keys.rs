//! The keys of an etcd as an operator writes and reads them, by one of its APIs.

use std::process::Command;

use etcd_client::{GetOptions, KeyValue, PutOptions};
use flannel_agent::source::options::EtcdApi;
use serde_json::Value;

use super::PREFIX;
use super::server::Etcd;

/// Seconds for which flannel's leases hold.
const DAY: i64 = 86400;

/// One key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) revision: i64,
    /// Seconds left; `None` if it does not end.
    pub(crate) left: Option<i64>,
    /// Id of the etcd lease that it carries; v2 has none.
    pub(crate) lease: Option<i64>,
}

/// All keys of an etcd by one API, which is v3 or v2.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    api: EtcdApi,
    etcd: &'a Etcd,
}

impl<'a> Keys<'a> {
    pub(crate) fn by(api: EtcdApi, etcd: &'a Etcd) -> Self {
        Self { api, etcd }
    }

    /// Writes a key that does not end.
    pub(crate) async fn put(self, key: &str, value: &str) {
        self.write(key, value, None).await;
    }

    /// Writes a key that ends after a day, as flannel does.
    pub(crate) async fn put_leased(self, key: &str, value: &str) {
        self.write(key, value, Some(DAY)).await;
    }

    /// Writes a key that ends after some seconds, if it ends.
    pub(crate) async fn write(self, key: &str, value: &str, seconds: Option<i64>) {
        if self.api == EtcdApi::V2 {
            let ttl = seconds.map_or("ttl=".to_owned(), |seconds| format!("ttl={seconds}"));
            let value = format!("value={value}");
            let answer = curl(self.etcd, key, &["-XPUT", "--data-urlencode", &value, "-d", &ttl]);
            assert_eq!(answer["node"]["ttl"].as_i64(), seconds, "{answer}");
            return;
        }
        let client = self.etcd.client().await;
        let mut options = PutOptions::new();
        if let Some(seconds) = seconds {
            let id = client.lease_client().grant(seconds, None).await.unwrap().id();
            options = options.with_lease(id);
        }
        client.kv_client().put(key, value, Some(options)).await.unwrap();
    }

    /// Deletes a key that is there.
    pub(crate) async fn delete(self, key: &str) {
        if self.api == EtcdApi::V2 {
            let answer = curl(self.etcd, key, &["-XDELETE"]);
            assert_eq!(answer["action"], "delete", "{answer}");
            return;
        }
        let client = self.etcd.client().await;
        assert_eq!(client.kv_client().delete(key, None).await.unwrap().deleted(), 1, "{key}");
    }

    pub(crate) async fn get(self, key: &str) -> Option<Key> {
        if self.api == EtcdApi::V2 {
            return curl(self.etcd, key, &[]).get("node").map(by_v2);
        }
        self.by_v3(key, None).await.pop()
    }

    /// All subnet keys.
    pub(crate) async fn subnets(self) -> Vec<Key> {
        if self.api == EtcdApi::V2 {
            let answer = curl(self.etcd, &format!("{PREFIX}/subnets"), &[]);
            return answer["node"]["nodes"].as_array().into_iter().flatten().map(by_v2).collect();
        }
        self.by_v3(&format!("{PREFIX}/subnets/"), Some(GetOptions::new().with_prefix())).await
    }

    /// Fails unless the etcd leases are exactly those that the subnet keys carry.
    pub(crate) async fn assert_no_orphans(self) {
        if self.api == EtcdApi::V2 {
            return;
        }
        let answer = self.etcd.client().await.lease_client().leases().await.unwrap();
        let mut there: Vec<_> = answer.leases().iter().map(|lease| lease.id()).collect();
        there.sort_unstable();
        let mut carried: Vec<_> =
            self.subnets().await.into_iter().filter_map(|key| key.lease).collect();
        carried.sort_unstable();
        assert_eq!(there, carried);
    }

    async fn by_v3(self, key: &str, options: Option<GetOptions>) -> Vec<Key> {
        let client = self.etcd.client().await;
        let mut keys = Vec::new();
        for kv in client.kv_client().get(key, options).await.unwrap().take_kvs() {
            let lease = Some(kv.lease()).filter(|id| *id != 0);
            let left = match lease {
                None => None,
                Some(id) => Some(client.lease_client().time_to_live(id, None).await.unwrap().ttl()),
            };
            let text = |of: fn(&KeyValue) -> &[u8]| String::from_utf8_lossy(of(&kv)).into_owned();
            let (name, value) = (text(KeyValue::key), text(KeyValue::value));
            keys.push(Key { name, value, revision: kv.mod_revision(), left, lease });
        }
        keys
    }
}

fn by_v2(node: &Value) -> Key {
    let text = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
    let revision = node["modifiedIndex"].as_i64().unwrap();
    let left = node["ttl"].as_i64();
    Key { name: text("key"), value: text("value"), revision, left, lease: None }
}

/// Calls the v2 API by `curl`, as the guides do.
pub(crate) fn curl(etcd: &Etcd, key: &str, arguments: &[&str]) -> Value {
    let url = format!("{}/v2/keys{key}", etcd.url());
    let output = Command::new("curl").args(["-sS", &url]).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
