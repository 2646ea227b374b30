//! A [`LeaseSource`] in memory, for tests of what uses one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use flannel_core::config::NetworkConfig;
use flannel_core::lease::Lease;
use flannel_core::lease::free::{fits, is_free, pick};
use flannel_core::lease::update::LeaseUpdate;
use ipnetwork::Ipv4Network;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::choice::out_of_subnets;
use super::claim::question;
use super::{Claim, Instead, LEASE_TTL, LeaseSource, SourceError};

/// A call of [`LeaseSource`] that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// [`LeaseSource::config`].
    Config,
    /// [`LeaseSource::list`].
    List,
    /// [`LeaseSource::acquire`].
    Acquire,
    /// [`LeaseSource::renew`].
    Renew,
}

/// A write that a source's user caused.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A lease was acquired.
    Acquired(Lease),
    /// A lease was renewed.
    Renewed(Lease),
}

/// Leases in memory. Clones share them.
#[derive(Clone)]
pub struct FakeSource {
    state: Arc<Mutex<State>>,
}

struct State {
    config: Option<NetworkConfig>,
    leases: BTreeMap<Ipv4Network, Lease>,
    revision: i64,
    failures: BTreeMap<Call, u32>,
    writes: Vec<Write>,
    looks: u32,
    watchers: Vec<mpsc::UnboundedSender<LeaseUpdate>>,
    /// Panics at the next of these.
    panics: Option<Call>,
    /// Following the leases ends at once.
    deaf: bool,
}

impl FakeSource {
    /// A store with this config and no leases.
    pub fn new(config: NetworkConfig) -> Self {
        let state = State {
            config: Some(config),
            leases: BTreeMap::new(),
            revision: 0,
            failures: BTreeMap::new(),
            writes: Vec::new(),
            looks: 0,
            watchers: Vec::new(),
            panics: None,
            deaf: false,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Replaces or deletes the network config.
    pub fn put_config(&self, config: Option<NetworkConfig>) {
        self.state().config = config;
    }

    /// Another node's write (or an operator's): stores the lease, with the
    /// next revision, and tells watchers.
    pub fn put(&self, lease: Lease) {
        self.state().put(lease);
    }

    /// A deletion by another: removes the lease and tells watchers.
    pub fn remove(&self, subnet: Ipv4Network) {
        self.state().remove(subnet);
    }

    /// Tells watchers this, and changes nothing in the store.
    pub fn push(&self, update: LeaseUpdate) {
        self.state().tell(&update);
    }

    /// Tells watchers of all leases, as after a reconnect.
    pub fn push_snapshot(&self) {
        let mut state = self.state();
        let snapshot = state.snapshot();
        state.tell(&snapshot);
    }

    /// Makes the next `times` calls of this kind fail, as an unreachable
    /// store does; 0 ends that.
    pub fn fail(&self, call: Call, times: u32) {
        self.state().failures.insert(call, times);
    }

    /// Makes the next call of this kind panic.
    pub fn panic_at(&self, call: Call) {
        self.state().panics = Some(call);
    }

    /// Ends all that follow the leases or will, as a panic there does.
    pub fn end_watches(&self) {
        let mut state = self.state();
        state.watchers.clear();
        state.deaf = true;
    }

    /// What was written through [`LeaseSource`], the oldest first.
    pub fn writes(&self) -> Vec<Write> {
        self.state().writes.clone()
    }

    /// How often it was told that addresses have changed.
    pub fn looks(&self) -> u32 {
        self.state().looks
    }

    /// What stands under a subnet's key.
    pub fn lease(&self, subnet: Ipv4Network) -> Option<Lease> {
        self.state().leases.get(&subnet).cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, unless `call` is to fail.
    fn enter(&self, call: Call) -> Result<MutexGuard<'_, State>, SourceError> {
        let mut state = self.state();
        if state.panics == Some(call) {
            state.panics = None;
            panic!("told to, at {call:?}");
        }
        if let Some(left) = state.failures.get_mut(&call).filter(|left| **left > 0) {
            *left -= 1;
            return Err(SourceError::Call {
                call: match call {
                    Call::Config => "config",
                    Call::List => "list",
                    Call::Acquire => "acquire",
                    Call::Renew => "renew",
                },
                key: "/fake".to_owned(),
                cause: "made to fail".to_owned(),
                hint: "this store is in memory",
                refused: false,
            });
        }
        Ok(state)
    }
}

impl State {
    fn put(&mut self, lease: Lease) -> Lease {
        self.revision += 1;
        let lease = Lease { revision: self.revision, ..lease };
        self.leases.insert(lease.subnet, lease.clone());
        self.tell(&LeaseUpdate::Put { lease: lease.clone() });
        lease
    }

    fn remove(&mut self, subnet: Ipv4Network) {
        if self.leases.remove(&subnet).is_some() {
            self.revision += 1;
            let revision = self.revision;
            self.tell(&LeaseUpdate::Removed { subnet, revision });
        }
    }

    fn tell(&mut self, update: &LeaseUpdate) {
        self.watchers.retain(|watcher| watcher.send(update.clone()).is_ok());
    }

    fn snapshot(&self) -> LeaseUpdate {
        let leases = self.leases.values().cloned().collect();
        LeaseUpdate::Snapshot { leases, revision: self.revision }
    }
}

impl LeaseSource for FakeSource {
    async fn config(&self) -> Result<NetworkConfig, SourceError> {
        let config = self.enter(Call::Config)?.config.clone();
        let key = "/fake/config".to_owned();
        config.ok_or(SourceError::NoConfig {
            key,
            endpoints: "memory".to_owned(),
            instead: Instead::default(),
        })
    }

    async fn list(&self) -> Result<(Vec<Lease>, i64), SourceError> {
        let state = self.enter(Call::List)?;
        Ok((state.leases.values().cloned().collect(), state.revision))
    }

    /// As the real ones, but it takes the first free subnet, not a random one.
    async fn acquire(&self, config: &NetworkConfig, claim: &Claim) -> Result<Lease, SourceError> {
        let mut state = self.enter(Call::Acquire)?;
        let (own, _) = claim.split(state.leases.values().cloned().collect(), Lease::clone)?;
        let own = own.first().map(|lease| lease.subnet);
        if let Some(unfit) = own.filter(|subnet| !fits(config, *subnet)) {
            state.remove(unfit);
        }
        let taken: Vec<_> = state.leases.keys().copied().collect();
        let previous = claim.previous_subnet();
        let subnet = own
            .filter(|subnet| fits(config, *subnet))
            .or(previous
                .filter(|subnet| fits(config, *subnet) && is_free(*subnet, taken.iter().copied())))
            .or_else(|| pick(config, taken.iter().copied(), |_| 0))
            .ok_or_else(|| out_of_subnets(config, &taken, "/fake/config".to_owned()))?;
        let expires = Some(Instant::now() + LEASE_TTL);
        let lease = state.put(Lease { subnet, attrs: claim.attrs.clone(), expires, revision: 0 });
        state.writes.push(Write::Acquired(lease.clone()));
        Ok(lease)
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, SourceError> {
        let mut state = self.enter(Call::Renew)?;
        let mut expires = Some(Instant::now() + LEASE_TTL);
        if let Some(stands) = state.leases.get(&lease.subnet) {
            let holder = stands.attrs.public_ip;
            if stands.revision != lease.revision && holder != lease.attrs.public_ip {
                return Err(SourceError::LeaseLost { subnet: lease.subnet, holder });
            }
            // A reservation stays one.
            expires = stands.expires.and(expires);
        }
        let lease = state.put(Lease { expires, ..lease.clone() });
        state.writes.push(Write::Renewed(lease.clone()));
        Ok(lease)
    }

    async fn ask(&self, lease: &Lease, by: &str) -> Result<Option<Lease>, SourceError> {
        let mut state = self.state();
        let Some(stands) = state.leases.get(&lease.subnet).cloned() else { return Ok(None) };
        let attrs = question(&stands, by)?.0;
        Ok(Some(state.put(Lease { attrs, ..stands })))
    }

    async fn is_unanswered(&self, asked: &Lease) -> Result<bool, SourceError> {
        let stands = self.lease(asked.subnet);
        Ok(stands.is_none_or(|lease| lease.attrs == asked.attrs))
    }

    fn addresses_changed(&self, _: &dyn Fn(IpAddr) -> bool) {
        self.state().looks += 1;
    }

    fn watch(&self, stop: CancellationToken) -> mpsc::Receiver<LeaseUpdate> {
        let (updates, mut queue) = mpsc::unbounded_channel();
        let (sender, receiver) = mpsc::channel(16);
        let mut state = self.state();
        if state.deaf {
            return receiver;
        }
        // The receiving end is at hand, so this cannot fail.
        let _ = updates.send(state.snapshot());
        state.watchers.push(updates);
        drop(state);
        tokio::spawn(async move {
            let pass_on = async {
                while let Some(update) = queue.recv().await {
                    if sender.send(update).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = sender.closed() => {}
                () = pass_on => {}
            }
        });
        receiver
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use flannel_core::lease::attrs::LeaseAttrs;
    use flannel_core::mac::MacAddr;

    fn fake() -> FakeSource {
        FakeSource::new(NetworkConfig::parse(CONFIG).unwrap())
    }

    const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

    fn claim(n: u8) -> Claim {
        let attrs = LeaseAttrs::vxlan(Ipv4Addr::new(10, 99, 0, n), 1, MacAddr([2, 0, 0, 0, 0, n]));
        Claim::new(attrs, None)
    }

    #[tokio::test]
    async fn it_acquires_renews_and_tells_watchers() {
        let fake = fake();
        let config = fake.config().await.unwrap();
        let mut updates = fake.watch(CancellationToken::new());
        let first = fake.acquire(&config, &claim(1)).await.unwrap();
        let second = fake.acquire(&config, &claim(2)).await.unwrap();
        assert_eq!(first.subnet.to_string(), "10.5.1.0/24");
        assert_eq!(second.subnet.to_string(), "10.5.2.0/24");
        assert_eq!(fake.acquire(&config, &claim(1)).await.unwrap().subnet, first.subnet);
        let renewed = fake.renew(&second).await.unwrap();
        assert_eq!(fake.writes().len(), 4);
        assert_eq!(fake.writes().last(), Some(&Write::Renewed(renewed.clone())));
        fake.remove(first.subnet);
        let snapshot = LeaseUpdate::Snapshot { leases: Vec::new(), revision: 0 };
        assert_eq!(updates.recv().await, Some(snapshot));
        for subnet in [first.subnet, second.subnet, first.subnet, second.subnet] {
            match updates.recv().await {
                Some(LeaseUpdate::Put { lease }) => assert_eq!(lease.subnet, subnet),
                other => panic!("{other:?}"),
            }
        }
        let removed = LeaseUpdate::Removed { subnet: first.subnet, revision: 5 };
        assert_eq!(updates.recv().await, Some(removed));
        assert_eq!(fake.list().await.unwrap(), (vec![renewed], 5));
    }

    #[tokio::test]
    async fn it_fails_as_told_and_keeps_others_leases() {
        let fake = fake();
        let config = fake.config().await.unwrap();
        fake.fail(Call::Acquire, 1);
        assert!(fake.acquire(&config, &claim(1)).await.is_err());
        let ours = fake.acquire(&config, &claim(1)).await.unwrap();
        fake.put(Lease { attrs: claim(2).attrs, ..ours.clone() });
        let error = fake.renew(&ours).await.unwrap_err();
        assert!(matches!(error, SourceError::LeaseLost { .. }), "{error}");
        assert_eq!(fake.lease(ours.subnet).unwrap().attrs, claim(2).attrs);
    }
}
