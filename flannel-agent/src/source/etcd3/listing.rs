//! All leases at one revision, page by page: in one answer, those of thousands of nodes
//! would be in memory three times at once: as bytes, as keys and values, and as leases.

use etcd_client::{GetOptions, GetResponse, KeyValue, ResponseHeader};
use ipnetwork::Ipv4Network;

use super::{Entry, Etcd3};
use crate::source::SourceError;

/// Keys of a page. The tests of the protocol have some ten nodes.
const PAGE: i64 = if cfg!(test) { 4 } else { 1000 };
/// No list has many more pages, however long it is: with each, etcd counts the keys that
/// are left.
const PAGES: i64 = 16;

/// All subnet keys at one revision.
pub(super) struct Listing {
    pub(super) entries: Vec<Entry>,
    /// Subnets whose keys are there but could not be read.
    pub(super) unreadable: Vec<Ipv4Network>,
    pub(super) revision: i64,
}

impl Etcd3 {
    pub(super) async fn listing(&self) -> Result<Listing, SourceError> {
        let first = self.page(GetOptions::new(), self.subnets().as_bytes(), PAGE).await?;
        match self.with_further_pages(first).await {
            Ok(listing) => Ok(listing),
            // Its revision may be compacted by now; the next one is not.
            Err(error) => {
                tracing::debug!(%error, "list of leases begun again");
                let first = self.page(GetOptions::new(), self.subnets().as_bytes(), PAGE).await?;
                self.with_further_pages(first).await
            }
        }
    }

    async fn page(
        &self,
        options: GetOptions,
        from: &[u8],
        keys: i64,
    ) -> Result<GetResponse, SourceError> {
        let options = options.with_range(self.behind_subnets()).with_limit(keys);
        self.range(&self.subnets(), from, Some(options)).await
    }

    /// The first key behind all those of subnets.
    fn behind_subnets(&self) -> Vec<u8> {
        let mut end = self.subnets().into_bytes();
        // It is the slash, which has a successor.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        end
    }

    async fn with_further_pages(&self, first: GetResponse) -> Result<Listing, SourceError> {
        let revision = first.header().map_or(0, ResponseHeader::revision);
        let keys = PAGE.max(first.count().div_euclid(PAGES));
        let room = usize::try_from(first.count()).unwrap_or(0);
        let mut listing =
            Listing { entries: Vec::with_capacity(room), unreadable: Vec::new(), revision };
        let mut page = first;
        loop {
            let kvs = page.take_kvs();
            self.take_in(&kvs, &mut listing);
            let Some(last) = kvs.last().filter(|_| page.more()) else { return Ok(listing) };
            let from = [last.key(), &[0]].concat();
            drop(kvs);
            page = self.page(GetOptions::new().with_revision(revision), &from, keys).await?;
        }
    }

    fn take_in(&self, kvs: &[KeyValue], listing: &mut Listing) {
        for kv in kvs {
            match self.entry(kv) {
                Some(entry) => listing.entries.push(entry),
                None => listing.unreadable.extend(self.claimed_by(kv)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::source::etcd3::memory::{Fault, Memory};
    use crate::source::options::EtcdOptions;

    /// Keys of five pages and one more.
    const KEYS: u8 = 21;

    fn value(node: u8) -> String {
        format!(r#"{{"PublicIP":"192.0.2.{node}","BackendType":"host-gw"}}"#)
    }

    fn filled() -> (Memory, Etcd3) {
        let store = Memory::new(7);
        let alive = Arc::new(AtomicBool::new(true));
        let prefix = "/coreos.com/network".to_owned();
        let options = EtcdOptions { prefix, ..EtcdOptions::default() };
        let etcd = Etcd3::over(&options, vec![store.channel(0, alive)]).unwrap();
        store.with(|data| {
            data.put("/coreos.com/network/config", "{}");
            data.put("/coreos.com/network/subnets0", "behind them");
            for node in 0..KEYS {
                data.put(&format!("/coreos.com/network/subnets/10.5.{node}.0-24"), &value(node));
            }
        });
        (store, etcd)
    }

    fn nodes(listing: &Listing) -> Vec<u8> {
        let mut nodes: Vec<_> =
            listing.entries.iter().map(|entry| entry.attrs.public_ip.octets()[3]).collect();
        nodes.sort_unstable();
        nodes
    }

    #[tokio::test(start_paused = true)]
    async fn all_keys_of_all_pages_are_there_once() {
        let (store, etcd) = filled();
        let listing = etcd.listing().await.unwrap();
        assert_eq!(nodes(&listing), (0..KEYS).collect::<Vec<_>>());
        assert_eq!(listing.revision, store.with(|data| data.revision));
        store.with(|data| data.put("/coreos.com/network/subnets/10.5.0.0-99", "{}"));
        assert_eq!(etcd.listing().await.unwrap().entries.len(), usize::from(KEYS));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_whose_revision_is_compacted_begins_again() {
        let (store, etcd) = filled();
        let first = etcd.page(GetOptions::new(), etcd.subnets().as_bytes(), PAGE).await.unwrap();
        assert!(first.more() && first.count() == i64::from(KEYS));
        store.with(|data| {
            data.put("/coreos.com/network/subnets/10.5.99.0-24", &value(99));
            data.compact();
        });
        let error = etcd.with_further_pages(first).await.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("compacted"), "{error}");

        // The second page gets lost.
        store.fail([Fault::None, Fault::Lost]);
        let listing = etcd.listing().await.unwrap();
        assert_eq!(listing.entries.len(), usize::from(KEYS) + 1);
    }
}
