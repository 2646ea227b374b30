//! A question to the holder of a lease.

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use flannel_core::lease::Lease;
use ipnetwork::Ipv4Network;

use super::acquire::Written;
use super::{Entry, Etcd3};
use crate::source::SourceError;
use crate::source::claim::question;

impl Etcd3 {
    /// What stands for this subnet, in the plain form or the dual-stack one.
    pub(super) async fn at(&self, subnet: Ipv4Network) -> Result<Option<Entry>, SourceError> {
        let options = GetOptions::new().with_prefix();
        let (kvs, _) = self.get(&self.keys().of(subnet), Some(options)).await?;
        Ok(kvs.iter().filter_map(|kv| self.entry(kv)).find(|entry| entry.subnet == subnet))
    }

    pub(super) async fn ask_holder(
        &self,
        lease: &Lease,
        by: &str,
    ) -> Result<Option<Lease>, SourceError> {
        let same = |entry: &Entry| entry.attrs.unasked() == lease.attrs.unasked();
        let Some(entry) = self.at(lease.subnet).await?.filter(same) else { return Ok(None) };
        let (attrs, value) = question(&entry.lease(), by)?;
        let key = entry.key.as_str();
        let options = PutOptions::new().with_lease(entry.etcd_lease);
        let transaction = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, entry.revision)])
            .and_then([TxnOp::put(key, value, Some(options))]);
        match self.transact(key, transaction).await? {
            Written::Done { revision } => Ok(Some(Lease { attrs, revision, ..entry.lease() })),
            Written::Refused { .. } => Ok(None),
        }
    }
}
