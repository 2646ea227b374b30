//! [`Merged`]: leases in v3, mirrored in v2, and the peers of both. For the
//! time in which a cluster is moved from v2 to v3 node by node.
//!
//! Where the two differ about another node's subnet, v2 is right: every flannel
//! that still runs writes there, and every agent of this kind does too, while
//! what v3 has may be a copy that was made once.

mod view;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::config::NetworkConfig;
use flannel_core::lease::Lease;
use flannel_core::lease::free::fits;
use flannel_core::lease::update::LeaseUpdate;
use ipnetwork::Ipv4Network;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::view::{Api, View};
use super::acquisition::acquire;
use super::choice::{ACQUIRE_ROUNDS, pause};
use super::etcd2::Etcd2;
use super::etcd3::Etcd3;
use super::{Claim, LeaseSource, SourceError};

/// Updates that may wait for the reader.
const UPDATES: usize = 256;

/// Both APIs of one etcd. Clones share everything.
#[derive(Clone)]
pub(super) struct Merged {
    v3: Etcd3,
    v2: Etcd2,
    /// Our lease as v2 has it.
    mirror: Arc<Mutex<Option<Lease>>>,
}

impl Merged {
    pub(super) fn new(v3: Etcd3, v2: Etcd2) -> Self {
        Self { v3, v2, mirror: Arc::default() }
    }

    fn mirror(&self) -> MutexGuard<'_, Option<Lease>> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes our lease to v2.
    ///
    /// # Errors
    /// [`SourceError::LeaseLost`] if another node holds the subnet there.
    async fn write_mirror(&self, lease: &Lease) -> Result<(), SourceError> {
        let revision = self
            .mirror()
            .as_ref()
            .filter(|mirror| mirror.subnet == lease.subnet)
            .map_or(0, |mirror| mirror.revision);
        let written = self.v2.renew_lease(&Lease { revision, ..lease.clone() }).await?;
        *self.mirror() = Some(written);
        Ok(())
    }

    /// One try; `None` if another node was faster.
    async fn try_acquire(
        &self,
        config: &NetworkConfig,
        claim: &Claim,
    ) -> Result<Option<Lease>, SourceError> {
        let (leases, unreadable, _) = self.v2.survey().await?;
        let (own, others) = claim.split(leases, Clone::clone)?;
        let previous = claim.previous_subnet();
        let fitting = || own.iter().filter(|lease| fits(config, lease.subnet));
        let known = fitting()
            .find(|lease| Some(lease.subnet) == previous)
            .or_else(|| fitting().max_by_key(|lease| lease.revision));
        let wanted =
            Claim { previous: known.map(|lease| lease.subnet).or(previous), ..claim.clone() };
        // By its revision the write knows it as ours, with an earlier PublicIP too.
        *self.mirror() = known.cloned();
        let avoid: Vec<Ipv4Network> =
            others.iter().map(|lease| lease.subnet).chain(unreadable).collect();
        let lease = acquire(&self.v3, config, &wanted, &avoid).await?;
        match self.write_mirror(&lease).await {
            Ok(()) => Ok(Some(lease)),
            Err(SourceError::LeaseLost { .. }) => {
                self.v3.release(&lease).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn merge(self, updates: mpsc::Sender<LeaseUpdate>, stop: CancellationToken) {
        let mut v3 = self.v3.watch(stop.clone());
        let mut v2 = self.v2.watch(stop);
        let mut view = View::default();
        loop {
            let (api, update) = tokio::select! {
                update = v3.recv() => (Api::V3, update),
                update = v2.recv() => (Api::V2, update),
            };
            let Some(update) = update else { return };
            let own = self.mirror().as_ref().map(|lease| (lease.subnet, lease.attrs.public_ip));
            for update in view.take(api, update, own) {
                if updates.send(update).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl LeaseSource for Merged {
    async fn config(&self) -> Result<NetworkConfig, SourceError> {
        match self.v3.config().await {
            Err(no_v3 @ SourceError::NoConfig { .. }) => {
                self.v2.config().await.map_err(|no_v2| match no_v2 {
                    SourceError::Config { .. } => no_v2,
                    no_v2 => {
                        SourceError::NoConfigAnywhere { v3: Box::new(no_v3), v2: Box::new(no_v2) }
                    }
                })
            }
            answer => answer,
        }
    }

    async fn list(&self) -> Result<(Vec<Lease>, i64), SourceError> {
        let mut view = View::default();
        let (leases, revision) = self.v3.list().await?;
        view.take(Api::V3, LeaseUpdate::Snapshot { leases, revision }, None);
        let (leases, in_v2) = self.v2.list().await?;
        view.take(Api::V2, LeaseUpdate::Snapshot { leases, revision: in_v2 }, None);
        Ok((view.leases(None), revision))
    }

    async fn acquire(&self, config: &NetworkConfig, claim: &Claim) -> Result<Lease, SourceError> {
        for round in 0..ACQUIRE_ROUNDS {
            pause(round).await;
            if let Some(lease) = self.try_acquire(config, claim).await? {
                return Ok(lease);
            }
        }
        let key = "the subnets in v2 and v3".to_owned();
        Err(SourceError::Contended { call: "acquire", key, rounds: ACQUIRE_ROUNDS })
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, SourceError> {
        let renewed = self.v3.renew(lease).await?;
        self.write_mirror(&renewed).await?;
        Ok(renewed)
    }

    /// Asks by both APIs: the holder may use either.
    async fn ask(&self, lease: &Lease, by: &str) -> Result<Option<Lease>, SourceError> {
        let v3 = self.v3.ask(lease, by).await?;
        let v2 = self.v2.ask(lease, by).await?;
        Ok(v3.or(v2))
    }

    async fn is_unanswered(&self, asked: &Lease) -> Result<bool, SourceError> {
        Ok(self.v3.is_unanswered(asked).await? && self.v2.is_unanswered(asked).await?)
    }

    fn addresses_changed(&self, is_here: &dyn Fn(IpAddr) -> bool) {
        self.v3.addresses_changed(is_here);
        self.v2.addresses_changed(is_here);
    }

    fn watch(&self, stop: CancellationToken) -> mpsc::Receiver<LeaseUpdate> {
        let (updates, receiver) = mpsc::channel(UPDATES);
        tokio::spawn(self.clone().merge(updates, stop));
        receiver
    }
}
