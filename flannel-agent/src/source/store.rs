//! [`Store`]: etcd by the API that was asked for, or that has the config.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flannel_core::config::NetworkConfig;
use flannel_core::lease::Lease;
use flannel_core::lease::update::LeaseUpdate;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::etcd2::Etcd2;
use super::etcd3::Etcd3;
use super::merged::Merged;
use super::options::{EtcdApi, EtcdOptions};
use super::{Claim, LeaseSource, SourceError};
use crate::backoff::Backoff;

/// Leases in etcd, by one of its APIs or by both. Clones share everything.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    v3: Etcd3,
    v2: Etcd2,
    chosen: OnceLock<Chosen>,
}

struct Chosen {
    source: Source,
    /// For log and status.
    why: String,
}

enum Source {
    V3(Etcd3),
    V2(Etcd2),
    Both(Merged),
}

/// Calls the same verb of whichever it is.
macro_rules! each {
    ($source:expr, $it:ident => $call:expr) => {
        match $source {
            Source::V3($it) => $call,
            Source::V2($it) => $call,
            Source::Both($it) => $call,
        }
    };
}

impl Store {
    /// Checks `options` and reads the files they name. etcd itself is reached
    /// with the first call; with [`EtcdApi::Auto`] that one decides.
    ///
    /// # Errors
    /// [`SourceError::Options`] names the unusable setting.
    pub async fn connect(options: EtcdOptions, api: EtcdApi) -> Result<Self, SourceError> {
        let v3 = Etcd3::connect(options.clone()).await?;
        let v2 = Etcd2::connect(options).await?;
        let store = Self { inner: Arc::new(Inner { v3, v2, chosen: OnceLock::new() }) };
        let Inner { v3, v2, .. } = &*store.inner;
        match api {
            EtcdApi::Auto => {}
            EtcdApi::V2 => store.choose(Source::V2(v2.clone()), "v2"),
            EtcdApi::V3 => store.choose(Source::V3(v3.clone()), "v3"),
            EtcdApi::Both => {
                let both = Merged::new(v3.clone(), v2.clone());
                store.choose(Source::Both(both), "v3, mirrored in v2");
            }
        }
        Ok(store)
    }

    /// By which API, and why if it was not asked for; `None` before the first
    /// answer.
    pub fn api(&self) -> Option<String> {
        self.inner.chosen.get().map(|chosen| chosen.why.clone())
    }

    /// The network config as it stands in etcd, also if it cannot be used. Where both APIs
    /// may be asked, it is v3's, if that has one.
    ///
    /// # Errors
    /// etcd does not answer, or has none.
    pub async fn config_text(&self) -> Result<String, SourceError> {
        let Inner { v3, v2, chosen } = &*self.inner;
        match chosen.get().map(|chosen| &chosen.source) {
            Some(Source::V3(v3)) => v3.config_text().await,
            Some(Source::V2(v2)) => v2.config_text().await,
            Some(Source::Both(_)) | None => match v3.config_text().await {
                Ok(text) => Ok(text),
                Err(no_v3) => v2.config_text().await.map_err(|_| no_v3),
            },
        }
    }

    /// Seconds that etcd's clock is ahead of ours, as far as whole seconds tell; `None`
    /// if it does not say.
    pub async fn clock_ahead(&self) -> Option<i64> {
        self.inner.v2.clock_ahead().await
    }

    fn choose(&self, source: Source, why: &str) {
        let chosen = Chosen { source, why: why.to_owned() };
        if self.inner.chosen.set(chosen).is_ok() {
            tracing::info!(api = why, "etcd API chosen");
        }
    }

    /// Asks both APIs for the network config, and chooses.
    async fn ask(&self) -> Result<NetworkConfig, SourceError> {
        let Inner { v3, v2, .. } = &*self.inner;
        let no_v3 = match v3.config().await {
            Ok(config) => {
                let why = match v2.config().await {
                    Ok(_) => "v3 (v2 has a network config too, which is not used)",
                    Err(_) => "v3",
                };
                self.choose(Source::V3(v3.clone()), why);
                return Ok(config);
            }
            Err(error @ SourceError::NoConfig { .. }) => error,
            // A v3 that is away for a moment must not make it v2.
            Err(error @ SourceError::Call { .. }) if v2.is_v2_only().await == Some(true) => error,
            Err(error) => return Err(error),
        };
        match v2.config().await {
            Ok(config) => {
                self.choose(Source::V2(v2.clone()), "v2 (v3 has no network config)");
                Ok(config)
            }
            Err(error @ SourceError::Config { .. }) => Err(error),
            Err(no_v2) => {
                Err(SourceError::NoConfigAnywhere { v3: Box::new(no_v3), v2: Box::new(no_v2) })
            }
        }
    }

    /// The chosen one, by asking if need be.
    async fn source(&self) -> Result<&Source, SourceError> {
        loop {
            if let Some(chosen) = self.inner.chosen.get() {
                return Ok(&chosen.source);
            }
            self.ask().await?;
        }
    }

    /// Hands on what the chosen one tells, once it is chosen.
    async fn watch_later(self, updates: mpsc::Sender<LeaseUpdate>, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
        let source = loop {
            match self.source().await {
                Ok(source) => break source,
                Err(error) => {
                    let reason = error.to_string();
                    if updates.send(LeaseUpdate::Disconnected { reason }).await.is_err() {
                        return;
                    }
                }
            }
            tokio::time::sleep(backoff.fail()).await;
        };
        let mut following = each!(source, it => it.watch(stop));
        while let Some(update) = following.recv().await {
            if updates.send(update).await.is_err() {
                return;
            }
        }
    }
}

impl LeaseSource for Store {
    async fn config(&self) -> Result<NetworkConfig, SourceError> {
        match self.inner.chosen.get() {
            Some(chosen) => each!(&chosen.source, it => it.config().await),
            None => self.ask().await,
        }
    }

    async fn list(&self) -> Result<(Vec<Lease>, i64), SourceError> {
        each!(self.source().await?, it => it.list().await)
    }

    async fn acquire(&self, config: &NetworkConfig, claim: &Claim) -> Result<Lease, SourceError> {
        each!(self.source().await?, it => it.acquire(config, claim).await)
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, SourceError> {
        each!(self.source().await?, it => it.renew(lease).await)
    }

    async fn ask(&self, lease: &Lease, by: &str) -> Result<Option<Lease>, SourceError> {
        each!(self.source().await?, it => it.ask(lease, by).await)
    }

    async fn is_unanswered(&self, asked: &Lease) -> Result<bool, SourceError> {
        each!(self.source().await?, it => it.is_unanswered(asked).await)
    }

    fn addresses_changed(&self, is_here: &dyn Fn(IpAddr) -> bool) {
        self.inner.v3.addresses_changed(is_here);
        self.inner.v2.addresses_changed(is_here);
    }

    fn watch(&self, stop: CancellationToken) -> mpsc::Receiver<LeaseUpdate> {
        if let Some(chosen) = self.inner.chosen.get() {
            return each!(&chosen.source, it => it.watch(stop));
        }
        let (updates, receiver) = mpsc::channel(1);
        let store = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = store.watch_later(updates, stop.clone()) => {}
            }
        });
        receiver
    }
}
