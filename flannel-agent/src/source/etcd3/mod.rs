//! [`Etcd3`]: leases in etcd, by its v3 API, in flannel's keys and values.
//!
//! Every write is a transaction that compares first. Each subnet key carries
//! an etcd lease of its own, which is replaced at every renewal; a key that an
//! operator put without one (a reservation) keeps having none.

mod acquire;
mod aliases;
mod ask;
mod connect;
mod create;
mod failure;
#[cfg(test)]
pub(crate) mod memory;
mod watch;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use etcd_client::{GetOptions, KeyValue};
use flannel_core::config::NetworkConfig;
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::lease::history::History;
use flannel_core::lease::key::SubnetKey;
use flannel_core::lease::update::LeaseUpdate;
use flannel_core::lease::{self, Lease};
use ipnetwork::Ipv4Network;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::aliases::{Aliases, newest};
use self::connect::Endpoints;
use super::acquisition::acquire;
use super::claim::Written;
use super::follow::follow;
use super::hint::hint;
use super::options::EtcdOptions;
use super::prefix::{Keys, other_spelling};
use super::unreadable::Unreadable;
use super::{Claim, Instead, LeaseSource, SourceError};

/// Most bytes that a list of leases may have; 250 bytes are one lease.
const LIST_LIMIT: usize = 64 << 20;

/// Keys that are looked through for what is meant, where there is no config.
const KEYS: i64 = 1000;

/// Leases in etcd. Clones share their connections.
#[derive(Clone)]
pub struct Etcd3 {
    inner: Arc<Inner>,
}

struct Inner {
    endpoints: Endpoints,
    keys: Keys,
    memory: Mutex<Memory>,
    history: Arc<Mutex<History>>,
    /// Keys that cannot be read.
    unreadable: Arc<Mutex<Unreadable>>,
}

/// What must be known across calls.
#[derive(Default)]
struct Memory {
    /// Our lease as last written: of no other the expiry is asked for.
    own: Option<Written>,
    /// etcd leases of ours whose use or revocation got no answer.
    unsettled: Vec<i64>,
    aliases: Aliases,
}

/// A subnet key that could be read.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The whole key.
    key: String,
    subnet: Ipv4Network,
    attrs: LeaseAttrs,
    /// Id of the etcd lease; 0: none.
    etcd_lease: i64,
    /// `mod_revision`.
    revision: i64,
}

impl Entry {
    /// As a lease whose end was not asked for.
    fn lease(&self) -> Lease {
        let Self { subnet, attrs, revision, .. } = self;
        Lease { subnet: *subnet, attrs: attrs.clone(), expires: None, revision: *revision }
    }
}

/// All subnet keys at one revision.
struct Listing {
    entries: Vec<Entry>,
    /// Subnets whose keys are there but could not be read.
    unreadable: Vec<Ipv4Network>,
    revision: i64,
}

impl Etcd3 {
    /// The network config as it stands there.
    pub(super) async fn config_text(&self) -> Result<String, SourceError> {
        let key = self.keys().config();
        let (kvs, _) = self.get(&key, None).await?;
        let Some(kv) = kvs.first() else {
            let (endpoints, instead) = (self.endpoints().names(), self.instead(&key).await);
            return Err(SourceError::NoConfig { key, endpoints, instead });
        };
        Ok(String::from_utf8_lossy(kv.value()).into_owned())
    }

    /// Checks `options` and reads the files they name. etcd itself is reached
    /// with the first call, and need not be up now.
    ///
    /// # Errors
    /// [`SourceError::Options`] names the unusable setting.
    pub async fn connect(options: EtcdOptions) -> Result<Self, SourceError> {
        let endpoints = Endpoints::new(&options).await?;
        Ok(Self::with(endpoints, &options))
    }

    /// The same for stores in memory, each of which is an endpoint.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    #[cfg(test)]
    pub(crate) fn over(
        options: &EtcdOptions,
        stores: Vec<etcd_client::Channel>,
    ) -> Result<Self, SourceError> {
        Ok(Self::with(Endpoints::over(options, stores)?, options))
    }

    fn with(endpoints: Endpoints, options: &EtcdOptions) -> Self {
        let inner = Inner {
            endpoints,
            keys: Keys::below(&options.prefix),
            memory: Mutex::default(),
            history: Arc::default(),
            unreadable: Arc::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    fn endpoints(&self) -> &Endpoints {
        &self.inner.endpoints
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing that holds the lock can leave it half changed.
        self.inner.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreadable(&self) -> MutexGuard<'_, Unreadable> {
        self.inner.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.inner.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    async fn get(
        &self,
        key: &str,
        options: Option<GetOptions>,
    ) -> Result<(Vec<KeyValue>, i64), SourceError> {
        let options = &options;
        let mut answer = self
            .endpoints()
            .call("get", key, |client| {
                let mut kv = client.kv_client().max_decoding_message_size(LIST_LIMIT);
                let options = options.clone();
                async move { kv.get(key, options).await }
            })
            .await?;
        let (revision, cluster) =
            answer.header().map_or((0, 0), |header| (header.revision(), header.cluster_id()));
        self.check_cluster("get", key, cluster)?;
        Ok((answer.take_kvs(), revision))
    }

    /// Whether there is such a key, as far as we may look.
    async fn has(&self, key: &str) -> bool {
        let found = self.get(key, Some(GetOptions::new().with_keys_only())).await;
        found.is_ok_and(|(kvs, _)| !kvs.is_empty())
    }

    /// What there is in place of the network config, as far as we may look.
    async fn instead(&self, key: &str) -> Instead {
        let other = other_spelling(key);
        if self.has(&other).await {
            return Instead::Key(other);
        }
        if self.has(self.keys().prefix()).await {
            return Instead::Prefix(self.keys().prefix().to_owned());
        }
        let below = format!("{}/", self.keys().prefix());
        let options = GetOptions::new().with_prefix().with_keys_only().with_limit(KEYS);
        let Ok((kvs, _)) = self.get(&below, Some(options)).await else { return Instead::Nothing };
        let keys = kvs.iter().map(|kv| String::from_utf8_lossy(kv.key()).into_owned());
        Instead::networks(self.keys().prefix(), keys)
    }

    /// A proxy may lead elsewhere within one connection.
    fn check_cluster(
        &self,
        call: &'static str,
        key: &str,
        cluster: u64,
    ) -> Result<(), SourceError> {
        let endpoints = self.endpoints();
        endpoints.identity().check(&endpoints.names(), cluster).map_err(|cause| {
            let cause = format!("{}: {cause}", endpoints.names());
            let hint = hint(&cause);
            SourceError::Call { call, key: key.to_owned(), cause, hint, refused: false }
        })
    }

    async fn listing(&self) -> Result<Listing, SourceError> {
        let options = GetOptions::new().with_prefix();
        let (kvs, revision) = self.get(&self.keys().subnets(), Some(options)).await?;
        let mut listing =
            Listing { entries: Vec::with_capacity(kvs.len()), unreadable: Vec::new(), revision };
        for kv in &kvs {
            match self.entry(kv) {
                Some(entry) => listing.entries.push(entry),
                None => listing.unreadable.extend(self.claimed_by(kv)),
            }
        }
        Ok(listing)
    }

    /// Reads a subnet key; notes one that cannot be read.
    fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        match self.decode(kv) {
            Ok(entry) => {
                self.unreadable().forget(kv.key());
                Some(entry)
            }
            Err(cause) => {
                self.unreadable().note(kv.key(), &cause);
                None
            }
        }
    }

    fn decode(&self, kv: &KeyValue) -> Result<Entry, String> {
        let key = kv.key_str().map_err(|_| "the key is no UTF-8".to_owned())?;
        let name =
            key.strip_prefix(&self.keys().subnets()).ok_or("the key is not below the prefix")?;
        let of = name.parse::<SubnetKey>().map_err(|error| error.to_string())?;
        let subnet = of.subnet();
        // As Go, which takes bytes that are no UTF-8 for U+FFFD.
        let value = String::from_utf8_lossy(kv.value());
        let attrs = LeaseAttrs::parse(&value).map_err(|error| error.to_string())?;
        let (etcd_lease, revision) = (kv.lease(), kv.mod_revision());
        self.memory().aliases.note(of, name);
        Ok(Entry { key: key.to_owned(), subnet, attrs, etcd_lease, revision })
    }

    /// The subnet that a whole key names.
    fn subnet_of(&self, kv: &KeyValue) -> Option<Ipv4Network> {
        let name = kv.key_str().ok()?.strip_prefix(&self.keys().subnets())?;
        Some(name.parse::<SubnetKey>().ok()?.subnet())
    }

    /// The subnet that a key claims, be its IPv6 part as it may.
    fn claimed_by(&self, kv: &KeyValue) -> Option<Ipv4Network> {
        let name = kv.key_str().ok()?.strip_prefix(&self.keys().subnets())?;
        Some(name.split('&').next()?.parse::<SubnetKey>().ok()?.subnet())
    }

    /// `entry` as a lease; asks when it ends if it is ours.
    async fn lease(&self, entry: Entry) -> Result<Lease, SourceError> {
        let ours = self.memory().own.as_ref().is_some_and(|(own, _)| *own == entry.subnet);
        let expires = match entry.etcd_lease {
            id if ours && id != 0 => self.expiry(id, &entry.key).await?,
            _ => None,
        };
        Ok(Lease { expires, ..entry.lease() })
    }

    async fn leases(&self, listing: Listing) -> Result<(Vec<Lease>, i64), SourceError> {
        let mut leases = Vec::with_capacity(listing.entries.len());
        for entry in listing.entries {
            leases.push(self.lease(entry).await?);
        }
        if !self.memory().aliases.is_empty() {
            newest(&mut leases);
        }
        Ok((leases, listing.revision))
    }

    /// When the etcd lease `id` ends, as [`lease::end`] has it; now, if it is gone.
    async fn expiry(&self, id: i64, key: &str) -> Result<Option<Instant>, SourceError> {
        let asked = Instant::now();
        let answer = self
            .endpoints()
            .call("lease time-to-live of", key, |client| async move {
                client.lease_client().time_to_live(id, None).await
            })
            .await?;
        Ok(lease::end(asked, answer.ttl()))
    }
}

impl LeaseSource for Etcd3 {
    async fn config(&self) -> Result<NetworkConfig, SourceError> {
        let text = self.config_text().await?;
        self.endpoints().identity().settle();
        NetworkConfig::parse(&text)
            .map_err(|error| SourceError::Config { key: self.keys().config(), error })
    }

    async fn list(&self) -> Result<(Vec<Lease>, i64), SourceError> {
        let listing = self.listing().await?;
        self.leases(listing).await
    }

    async fn acquire(&self, config: &NetworkConfig, claim: &Claim) -> Result<Lease, SourceError> {
        acquire(self, config, claim, &[]).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, SourceError> {
        self.renew_lease(lease).await
    }

    async fn ask(&self, lease: &Lease, by: &str) -> Result<Option<Lease>, SourceError> {
        self.ask_holder(lease, by).await
    }

    async fn is_unanswered(&self, asked: &Lease) -> Result<bool, SourceError> {
        let stands = self.at(asked.subnet).await?;
        Ok(stands.is_none_or(|entry| entry.attrs == asked.attrs))
    }

    fn addresses_changed(&self, is_here: &dyn Fn(IpAddr) -> bool) {
        self.endpoints().addresses_changed(is_here);
    }

    fn watch(&self, stop: CancellationToken) -> mpsc::Receiver<LeaseUpdate> {
        follow(self.clone(), stop)
    }
}
