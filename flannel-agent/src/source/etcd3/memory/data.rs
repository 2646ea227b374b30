//! Keys, revisions and leases, as etcd has them.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbEvent, PbKeyValue, PbPutRequest, PbRangeResponse,
    PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest,
    PbTxnRequestOp, PbTxnResponse,
};
use tokio::time::Instant;

/// What etcd does not do: gRPC's code, and the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) u16, pub(super) &'static str);

impl Refusal {
    pub(super) const NOT_FOUND: Self = Self(5, "etcdserver: requested lease not found");
    pub(super) const EXISTS: Self = Self(9, "etcdserver: lease already exists");
    pub(super) const AWAY: Self = Self(14, "transport is closing");
}

/// Who is no node.
pub(crate) const OPERATOR: usize = usize::MAX;

/// A write of a key: who it was, and what stood there before and stands now.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// The node, or [`OPERATOR`]; `None`: the lease ended.
    pub(crate) who: Option<usize>,
    pub(crate) before: Option<PbKeyValue>,
    pub(crate) after: Option<PbKeyValue>,
}

/// What a member of the cluster holds.
#[derive(Clone)]
pub(crate) struct Data {
    pub(crate) cluster: u64,
    pub(crate) revision: i64,
    compacted: i64,
    keys: BTreeMap<Vec<u8>, PbKeyValue>,
    /// Their ends.
    leases: BTreeMap<i64, Instant>,
    /// Since the last compaction.
    pub(super) events: Vec<PbEvent>,
    changes: Vec<Change>,
}

impl Data {
    pub(super) fn new(cluster: u64) -> Self {
        Self {
            cluster,
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            events: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// What was written since it was asked last.
    pub(crate) fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// All keys that begin so.
    pub(crate) fn below(&self, prefix: &str) -> Vec<PbKeyValue> {
        let keys = self.keys.range(prefix.as_bytes().to_vec()..);
        keys.take_while(|(key, _)| key.starts_with(prefix.as_bytes()))
            .map(|(_, kv)| kv.clone())
            .collect()
    }

    /// An operator writes a key.
    pub(crate) fn put(&mut self, key: &str, value: &str) {
        self.revision += 1;
        let (key, value) = (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        self.set(Some(OPERATOR), PbPutRequest { key, value, ..PbPutRequest::default() });
    }

    /// An operator deletes a key.
    pub(crate) fn delete(&mut self, key: &[u8]) {
        self.revision += 1;
        self.remove(Some(OPERATOR), key);
    }

    /// Forgets all changes up to now.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.events.clear();
    }

    /// All keys and leases are gone.
    pub(crate) fn empty(&mut self) {
        *self = Self { changes: std::mem::take(&mut self.changes), ..Self::new(self.cluster) };
    }

    /// Those of another cluster, which are empty.
    pub(crate) fn successor(&mut self, cluster: u64) -> Self {
        Self { changes: self.changes(), ..Self::new(cluster) }
    }

    /// With what was written to the other ones besides.
    pub(crate) fn with_changes_of(&self, other: &mut Self) -> Self {
        Self { changes: other.changes(), ..self.clone() }
    }

    /// As it was then, with leases that begin anew.
    pub(crate) fn restore(&mut self, backup: &Self) {
        let ends = Instant::now() + crate::source::LEASE_TTL;
        let leases = backup.leases.keys().map(|id| (*id, ends)).collect();
        let changes = std::mem::take(&mut self.changes);
        *self = Self { leases, changes, ..backup.clone() };
    }

    /// Deletes the keys of leases that have ended.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let ended: Vec<i64> =
            self.leases.iter().filter(|(_, end)| **end <= now).map(|(id, _)| *id).collect();
        for id in ended {
            self.end(None, id);
        }
    }

    pub(super) fn header(&self) -> Option<PbResponseHeader> {
        let Self { cluster, revision, .. } = *self;
        Some(PbResponseHeader { cluster_id: cluster, revision, ..PbResponseHeader::default() })
    }

    /// Whether changes from this revision on are not kept any more.
    pub(super) fn is_compacted(&self, from: i64) -> Option<i64> {
        (from <= self.compacted).then_some(self.compacted)
    }

    pub(super) fn range(&self, key: &[u8], end: &[u8]) -> PbRangeResponse {
        let kvs: Vec<_> = self.within(key, end).cloned().collect();
        let count = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
        PbRangeResponse { header: self.header(), kvs, count, ..PbRangeResponse::default() }
    }

    pub(super) fn transact(
        &mut self,
        who: usize,
        txn: PbTxnRequest,
    ) -> Result<PbTxnResponse, Refusal> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let requests = if succeeded { txn.success } else { txn.failure };
        let leases = requests.iter().filter_map(|request| match &request.request {
            Some(PbTxnOpRequest::RequestPut(put)) if put.lease != 0 => Some(put.lease),
            _ => None,
        });
        if leases.into_iter().any(|lease| !self.leases.contains_key(&lease)) {
            return Err(Refusal::NOT_FOUND);
        }
        let writes = |request: &PbTxnRequestOp| {
            !matches!(request.request, Some(PbTxnOpRequest::RequestRange(_)))
        };
        if requests.iter().any(writes) {
            self.revision += 1;
        }
        let responses = requests.into_iter().map(|request| self.operate(who, request)).collect();
        Ok(PbTxnResponse { header: self.header(), succeeded, responses })
    }

    fn operate(&mut self, who: usize, request: PbTxnRequestOp) -> PbResponseOp {
        let response = match request.request {
            Some(PbTxnOpRequest::RequestRange(range)) => {
                PbTxnOpResponse::ResponseRange(self.range(&range.key, &range.range_end))
            }
            Some(PbTxnOpRequest::RequestPut(put)) => {
                self.set(Some(who), put);
                PbTxnOpResponse::ResponsePut(Default::default())
            }
            Some(PbTxnOpRequest::RequestDeleteRange(PbDeleteRequest { key, .. })) => {
                self.remove(Some(who), &key);
                PbTxnOpResponse::ResponseDeleteRange(Default::default())
            }
            other => unreachable!("{other:?}"),
        };
        PbResponseOp { response: Some(response) }
    }

    pub(super) fn grant(&mut self, id: i64, ttl: i64) -> Result<(), Refusal> {
        if self.leases.contains_key(&id) {
            return Err(Refusal::EXISTS);
        }
        let life = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
        self.leases.insert(id, Instant::now() + life);
        Ok(())
    }

    pub(super) fn revoke(&mut self, who: usize, id: i64) -> Result<(), Refusal> {
        if !self.leases.contains_key(&id) {
            return Err(Refusal::NOT_FOUND);
        }
        self.end(Some(who), id);
        Ok(())
    }

    /// Seconds that are left of a lease (-1: there is none), and its keys.
    pub(super) fn time_to_live(&self, id: i64) -> (i64, Vec<Vec<u8>>) {
        let Some(end) = self.leases.get(&id) else { return (-1, Vec::new()) };
        let left = end.saturating_duration_since(Instant::now()).as_secs();
        (left.cast_signed(), self.keys_of(id))
    }

    fn keys_of(&self, lease: i64) -> Vec<Vec<u8>> {
        self.keys.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect()
    }

    fn end(&mut self, who: Option<usize>, id: i64) {
        let keys = self.keys_of(id);
        self.leases.remove(&id);
        if !keys.is_empty() {
            self.revision += 1;
        }
        for key in keys {
            self.remove(who, &key);
        }
    }

    fn within<'a>(&'a self, key: &'a [u8], end: &'a [u8]) -> impl Iterator<Item = &'a PbKeyValue> {
        let within = move |kv: &&PbKeyValue| {
            if end.is_empty() { kv.key == key } else { *kv.key >= *key && *kv.key < *end }
        };
        self.keys.values().filter(within)
    }

    fn holds(&self, compare: &PbCompare) -> bool {
        let absent = PbKeyValue::default();
        let found: Vec<_> = self.within(&compare.key, &compare.range_end).collect();
        let found = if found.is_empty() { vec![&absent] } else { found };
        assert_eq!(compare.result, 0, "only equality is known here");
        found.into_iter().all(|kv| match compare.target_union {
            Some(PbTargetUnion::Version(version)) => kv.version == version,
            Some(PbTargetUnion::ModRevision(revision)) => kv.mod_revision == revision,
            ref other => unreachable!("{other:?}"),
        })
    }

    fn set(&mut self, who: Option<usize>, put: PbPutRequest) {
        let before = self.keys.get(&put.key).cloned();
        let (version, create_revision) =
            before.as_ref().map_or((0, self.revision), |kv| (kv.version, kv.create_revision));
        let PbPutRequest { key, value, lease, .. } = put;
        let mod_revision = self.revision;
        let version = version + 1;
        let kv = PbKeyValue { key, value, lease, mod_revision, create_revision, version };
        self.keys.insert(kv.key.clone(), kv.clone());
        self.events.push(PbEvent { r#type: 0, kv: Some(kv.clone()), prev_kv: None });
        self.changes.push(Change { who, before, after: Some(kv) });
    }

    fn remove(&mut self, who: Option<usize>, key: &[u8]) {
        let Some(before) = self.keys.remove(key) else { return };
        let gone =
            PbKeyValue { key: key.to_vec(), mod_revision: self.revision, ..PbKeyValue::default() };
        self.events.push(PbEvent { r#type: 1, kv: Some(gone), prev_kv: None });
        self.changes.push(Change { who, before: Some(before), after: None });
    }
}
