//! The far side of a migration.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};

use super::Etcd3;
use super::acquire::Written;
use crate::source::SourceError;
use crate::source::holdings::Item;

impl Etcd3 {
    /// All values below the prefix, by the rest of their keys.
    pub(in crate::source) async fn values(&self) -> Result<BTreeMap<String, String>, SourceError> {
        let prefix = format!("{}/", self.keys().prefix());
        let (kvs, _) = self.get(&prefix, Some(GetOptions::new().with_prefix())).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let named = |kv: &etcd_client::KeyValue| {
            let key = text(kv.key());
            Some((key.strip_prefix(&prefix)?.to_owned(), text(kv.value())))
        };
        Ok(kvs.iter().filter_map(named).collect())
    }

    /// Writes `item` with an etcd lease of what it has left; `false` if the key
    /// is there already.
    pub(in crate::source) async fn create(&self, item: &Item) -> Result<bool, SourceError> {
        let key = format!("{}/{}", self.keys().prefix(), item.key);
        let key = key.as_str();
        let id = match item.seconds_left {
            Some(left) => self.grant(key, Duration::from_secs(left)).await?.0,
            None => 0,
        };
        let put = TxnOp::put(key, item.value.as_str(), Some(PutOptions::new().with_lease(id)));
        let transaction = Txn::new()
            .when([Compare::version(key, CompareOp::Equal, 0)])
            .and_then([put])
            .or_else([TxnOp::get(key, None)]);
        match self.transact(key, transaction).await? {
            Written::Done { .. } => Ok(true),
            // A try whose answer got lost had succeeded.
            Written::Refused { stands: Some((lease, _)) } if id != 0 && lease == id => Ok(true),
            Written::Refused { .. } => {
                self.revoke_unused(id).await;
                Ok(false)
            }
        }
    }
}
