//! Looks after the network config while the agent runs with the one that it
//! read at its start.

use std::sync::Arc;
use std::time::Duration;

use flannel_core::config::NetworkConfig;
use flannel_core::health::{Found, Subject};
use tokio::task::JoinHandle;

use crate::source::{LeaseSource, SourceError};
use crate::status::Shared;

/// Longest pause between looks: one read of a small key.
const EVERY: Duration = Duration::from_secs(10);

/// Looks until it is dropped.
pub(super) struct ConfigFollower(JoinHandle<()>);

impl Drop for ConfigFollower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ConfigFollower {
    /// Compares what the store has with `in_force` from now on, and reports it.
    pub(super) fn start<S: LeaseSource>(
        source: Arc<S>,
        in_force: NetworkConfig,
        every: Duration,
        shared: Shared,
    ) -> Self {
        let every = every.min(EVERY);
        Self(shared.clone().spawn("reads the network config", async move {
            loop {
                tokio::time::sleep(every.mul_f64(0.9 + rand::random::<f64>() / 5.0)).await;
                if let Some(found) = judge(source.config().await, &in_force) {
                    shared.report(Subject::NetworkConfig, found);
                }
            }
        }))
    }
}

/// `None` if the store did not tell.
fn judge(told: Result<NetworkConfig, SourceError>, in_force: &NetworkConfig) -> Option<Found> {
    let why = match told {
        Ok(config) if config == *in_force => return Some(Found::well()),
        Ok(config) => format!(
            "it was changed ({}); this node goes on with the earlier one until the agent is \
             restarted",
            config.differences(in_force).join(", ")
        ),
        Err(error @ SourceError::Config { .. }) => format!(
            "it was changed to one that cannot be used: {error}; this node goes on with the \
             earlier one, but could not start again"
        ),
        Err(SourceError::NoConfig { key, .. } | SourceError::NoConfigV2 { key, .. }) => format!(
            "{key} was deleted; this node goes on with what it has, but no node can start: write \
             it again"
        ),
        Err(_) => return None,
    };
    Some(Found::not_well(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::fake::{Call, FakeSource};

    fn config(network: &str) -> NetworkConfig {
        let text = format!(r#"{{"Network":"{network}","Backend":{{"Type":"vxlan"}}}}"#);
        NetworkConfig::parse(&text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_config_that_changes_or_goes_is_told_until_it_is_back() {
        let source = FakeSource::new(config("10.5.0.0/16"));
        let shared = Shared::default();
        let follower = ConfigFollower::start(
            Arc::new(source.clone()),
            config("10.5.0.0/16"),
            6 * EVERY,
            shared.clone(),
        );
        let told = async || {
            tokio::time::sleep(2 * EVERY).await;
            shared.lock().health.reason(Subject::NetworkConfig).map(str::to_owned)
        };
        assert_eq!(told().await, None);
        source.put_config(Some(config("10.6.0.0/16")));
        let changed = told().await.unwrap();
        for part in ["Network 10.6.0.0/16 for 10.5.0.0/16", "restarted"] {
            assert!(changed.contains(part), "{part}: {changed}");
        }
        // A store that is away tells nothing.
        source.fail(Call::Config, 2);
        assert_eq!(told().await.as_ref(), Some(&changed));
        source.put_config(None);
        let deleted = told().await.unwrap();
        assert!(deleted.contains("/fake/config was deleted"), "{deleted}");
        source.put_config(Some(config("10.5.0.0/16")));
        assert_eq!(told().await, None);
        drop(follower);
    }
}
