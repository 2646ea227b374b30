//! [`Etcd2`]: leases in etcd, by its v2 API, as flannel up to 0.17 has them.
//!
//! Keys and values are those of v3. A key's own TTL is its lease; one without
//! (a reservation) keeps having none. Every write compares first.

mod acquire;
mod connect;
mod failure;
mod holdings;
mod watch;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use flannel_core::config::NetworkConfig;
use flannel_core::lease::Lease;
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::lease::history::History;
use flannel_core::lease::key::SubnetKey;
use flannel_core::lease::update::LeaseUpdate;
use flannel_core::lease::v2::{EtcdNode, LeaseChange};
use hyper::Method;
use ipnetwork::Ipv4Network;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::connect::{Answered, Endpoints, Request, field};
use self::failure::Refusal;
use super::acquisition::acquire;
use super::claim::{Written, value};
use super::follow::follow;
use super::options::EtcdOptions;
use super::prefix::Keys;
use super::unreadable::Unreadable;
use super::{Claim, Instead, LEASE_TTL, LeaseSource, SourceError};

/// Leases in etcd. Clones share their connections.
#[derive(Clone)]
pub struct Etcd2 {
    inner: Arc<Inner>,
}

struct Inner {
    endpoints: Endpoints,
    keys: Keys,
    /// Keys that cannot be read.
    unreadable: Arc<Mutex<Unreadable>>,
    history: Arc<Mutex<History>>,
    /// Our lease as last written.
    written: Mutex<Option<Written>>,
}

/// All subnet keys at one index.
struct Listing {
    entries: Vec<Lease>,
    /// Subnets whose keys are there but could not be read.
    unreadable: Vec<Ipv4Network>,
    revision: i64,
}

/// What stands where we want to write.
#[derive(Clone, Copy)]
enum Stands {
    Nothing,
    /// A key with this `modifiedIndex`; a reservation has no TTL.
    Key {
        revision: i64,
        reserved: bool,
    },
}

impl Etcd2 {
    /// Checks `options` and reads the files they name. etcd itself is reached
    /// with the first call, and need not be up now.
    ///
    /// # Errors
    /// [`SourceError::Options`] names the unusable setting.
    pub async fn connect(options: EtcdOptions) -> Result<Self, SourceError> {
        let endpoints = Endpoints::new(&options).await?;
        // The API knows no other keys.
        let keys = Keys::below(&format!("/{}", options.prefix));
        Ok(Self {
            inner: Arc::new(Inner {
                endpoints,
                keys,
                unreadable: Arc::default(),
                history: Arc::default(),
                written: Mutex::default(),
            }),
        })
    }

    /// Whether the server is of a release that has no other API than v2.
    /// `None` if it did not say.
    pub(super) async fn is_v2_only(&self) -> Option<bool> {
        let text = self.endpoints().version().await?;
        let version: serde_json::Value = serde_json::from_str(&text).ok()?;
        let server = version.get("etcdserver")?.as_str()?;
        Some(server.starts_with("2.") || server.starts_with("0."))
    }

    /// Seconds that etcd's clock is ahead of ours; `None` if it does not say.
    pub(super) async fn clock_ahead(&self) -> Option<i64> {
        let theirs = self.endpoints().date().await?;
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let (theirs, ours) = (since(theirs)?.as_secs(), since(SystemTime::now())?.as_secs());
        Some(i64::try_from(theirs).ok()? - i64::try_from(ours).ok()?)
    }

    fn endpoints(&self) -> &Endpoints {
        &self.inner.endpoints
    }

    fn written(&self) -> MutexGuard<'_, Option<Written>> {
        self.inner.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    async fn get(&self, key: &str) -> Result<Option<EtcdNode>, SourceError> {
        Ok(self.read_key("get", key, "quorum=true").await?.0)
    }

    /// A key, and the index that this is the state of.
    async fn read_key(
        &self,
        call: &'static str,
        key: &str,
        query: &str,
    ) -> Result<(Option<EtcdNode>, i64), SourceError> {
        let request =
            Request { call, method: Method::GET, key, query: query.to_owned(), form: None };
        match self.endpoints().call(&request).await? {
            Ok(answer) => {
                let change = decode(call, key, &answer.body)?;
                Ok((Some(change.node), answer.index))
            }
            Err(Refusal::NoKey { index }) => Ok((None, index)),
            Err(refusal) => Err(unexpected(call, key, refusal)),
        }
    }

    /// The network config as it stands there.
    pub(super) async fn config_text(&self) -> Result<String, SourceError> {
        let key = self.keys().config();
        let node = self.get(&key).await?;
        let is_directory = node.as_ref().is_some_and(|node| node.dir);
        if let Some(text) = node.and_then(|node| node.value) {
            return Ok(text);
        }
        let instead = match is_directory {
            true => Instead::Directory,
            false => self.networks().await.unwrap_or_default(),
        };
        let endpoints = self.endpoints().names();
        Err(SourceError::NoConfigV2 { key, endpoints, instead })
    }

    /// Configs one level below where ours should be.
    async fn networks(&self) -> Result<Instead, SourceError> {
        let prefix = self.keys().prefix();
        let (node, _) = self.read_key("list", prefix, "recursive=true").await?;
        let mut keys = Vec::new();
        let mut nodes: Vec<EtcdNode> = node.into_iter().collect();
        while let Some(node) = nodes.pop() {
            keys.extend((!node.dir).then_some(node.key));
            nodes.extend(node.nodes);
        }
        keys.sort();
        Ok(Instead::networks(prefix, keys))
    }

    /// All leases, the subnets of unreadable keys, and the index.
    pub(super) async fn survey(&self) -> Result<(Vec<Lease>, Vec<Ipv4Network>, i64), SourceError> {
        let Listing { entries, unreadable, revision } = self.listing().await?;
        Ok((entries, unreadable, revision))
    }

    async fn listing(&self) -> Result<Listing, SourceError> {
        let (nodes, revision) = self.nodes().await?;
        let mut listing =
            Listing { entries: Vec::with_capacity(nodes.len()), unreadable: Vec::new(), revision };
        for node in &nodes {
            match self.entry(node) {
                Some(entry) => listing.entries.push(entry),
                None => listing.unreadable.extend(node.claims(&self.keys().subnets())),
            }
        }
        Ok(listing)
    }

    /// All subnet keys as they are, and the index.
    async fn nodes(&self) -> Result<(Vec<EtcdNode>, i64), SourceError> {
        let subnets = self.keys().subnets();
        let key = subnets.trim_end_matches('/');
        let (node, revision) = self.read_key("list", key, "recursive=true&quorum=true").await?;
        Ok((node.map(|node| node.nodes).unwrap_or_default(), revision))
    }

    fn unreadable(&self) -> MutexGuard<'_, Unreadable> {
        self.inner.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a subnet key; notes one that cannot be read.
    fn entry(&self, node: &EtcdNode) -> Option<Lease> {
        match self.decode(node) {
            Ok(entry) => {
                self.unreadable().forget(node.key.as_bytes());
                Some(entry)
            }
            Err(cause) => {
                self.unreadable().note(node.key.as_bytes(), &cause);
                None
            }
        }
    }

    fn decode(&self, node: &EtcdNode) -> Result<Lease, String> {
        node.lease(&self.keys().subnets(), Instant::now())
    }

    /// The subnet that a key of ours names.
    fn subnet_of(&self, node: &EtcdNode) -> Option<Ipv4Network> {
        let subnets = self.keys().subnets();
        let name = node.name(&subnets).filter(|name| !name.contains('&'))?;
        Some(name.parse::<SubnetKey>().ok()?.subnet())
    }

    /// Puts `attrs` under the subnet's key if that still is what `stands`
    /// tells; `None` if not.
    async fn write(
        &self,
        subnet: Ipv4Network,
        attrs: &LeaseAttrs,
        stands: Stands,
    ) -> Result<Option<Lease>, SourceError> {
        let key = self.keys().of(subnet);
        let value = value(subnet, attrs)?;
        let (query, reserved) = match stands {
            Stands::Nothing => ("prevExist=false".to_owned(), false),
            Stands::Key { revision, reserved } => (format!("prevIndex={revision}"), reserved),
        };
        let mut form = field("value", &value);
        if !reserved {
            form.push_str(&format!("&ttl={}", LEASE_TTL.as_secs()));
        }
        let asked = Instant::now();
        let answer = match self.change("write of", Method::PUT, &key, query, Some(form)).await? {
            Ok(answer) => answer,
            Err(Refusal::Differs | Refusal::NoKey { .. }) => return Ok(None),
            Err(refusal) => return Err(unexpected("write of", &key, refusal)),
        };
        let written = decode("write of", &key, &answer.body)?;
        let mut history = self.inner.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.wrote(subnet, written.node.revision());
        drop(history);
        *self.written() = Some((subnet, attrs.clone()));
        Ok(Some(Lease {
            subnet,
            attrs: attrs.clone(),
            expires: (!reserved).then(|| asked + LEASE_TTL),
            revision: written.node.revision(),
        }))
    }

    /// Deletes a key if nobody wrote it since it had this index.
    async fn delete(&self, key: &str, revision: i64) -> Result<bool, SourceError> {
        let query = format!("prevIndex={revision}");
        match self.change("deletion of", Method::DELETE, key, query, None).await? {
            Ok(_) => Ok(true),
            Err(Refusal::Differs | Refusal::NoKey { .. }) => Ok(false),
            Err(refusal) => Err(unexpected("deletion of", key, refusal)),
        }
    }

    async fn change(
        &self,
        call: &'static str,
        method: Method,
        key: &str,
        query: String,
        form: Option<String>,
    ) -> Result<Answered, SourceError> {
        self.endpoints().call(&Request { call, method, key, query, form }).await
    }
}

fn decode(call: &'static str, key: &str, body: &[u8]) -> Result<LeaseChange, SourceError> {
    serde_json::from_slice(body).map_err(|error| SourceError::Call {
        call,
        key: key.to_owned(),
        cause: format!("the answer is none of etcd's: {error}"),
        hint: "is it an etcd with the v2 API that listens at --etcd-endpoints?",
        refused: false,
    })
}

fn unexpected(call: &'static str, key: &str, refusal: Refusal) -> SourceError {
    SourceError::Call {
        call,
        key: key.to_owned(),
        cause: format!("etcd answered {refusal:?}"),
        hint: "does a proxy answer at --etcd-endpoints?",
        refused: false,
    }
}

impl LeaseSource for Etcd2 {
    async fn config(&self) -> Result<NetworkConfig, SourceError> {
        let text = self.config_text().await?;
        self.endpoints().identity().settle();
        NetworkConfig::parse(&text)
            .map_err(|error| SourceError::Config { key: self.keys().config(), error })
    }

    async fn list(&self) -> Result<(Vec<Lease>, i64), SourceError> {
        let listing = self.listing().await?;
        Ok((listing.entries, listing.revision))
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
        let node = self.get(&self.keys().of(asked.subnet)).await?;
        let stands = node.and_then(|node| self.entry(&node));
        Ok(stands.is_none_or(|lease| lease.attrs == asked.attrs))
    }

    fn addresses_changed(&self, is_here: &dyn Fn(IpAddr) -> bool) {
        self.endpoints().addresses_changed(is_here);
    }

    fn watch(&self, stop: CancellationToken) -> mpsc::Receiver<LeaseUpdate> {
        follow(self.clone(), stop)
    }
}
