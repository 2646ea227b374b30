//! Which cluster a store is: by its id, which every member tells.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The cluster that this agent belongs to since it has read a network config
/// there. What members of another one say is not taken.
#[derive(Debug, Default)]
pub(super) struct ClusterIdentity(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The cluster that answered last.
    last: Option<u64>,
    /// The one that is ours.
    ours: Option<u64>,
    /// The one whose refusal was logged.
    refused: Option<u64>,
}

impl ClusterIdentity {
    /// Takes in that `endpoint` is of `cluster`.
    ///
    /// # Errors
    /// It is not ours; in words, without the endpoint.
    pub(super) fn check(&self, endpoint: &str, cluster: u64) -> Result<(), String> {
        let mut known = self.known();
        match known.ours {
            Some(ours) if ours != cluster => {
                let why = format!(
                    "it is of cluster {cluster:x}, while this agent belongs to cluster {ours:x}: \
                     refused; if the cluster was replaced on purpose, restart the agent"
                );
                if known.refused.replace(cluster) != Some(cluster) {
                    tracing::error!(
                        endpoint,
                        why,
                        "etcd endpoint refused: it belongs to another cluster"
                    );
                }
                Err(why)
            }
            Some(_) => Ok(()),
            None => {
                known.last = Some(cluster);
                Ok(())
            }
        }
    }

    /// The cluster that answered last has our network config: it is ours until
    /// the agent ends.
    pub(super) fn settle(&self) {
        let mut known = self.known();
        known.ours = known.ours.or(known.last);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_ours_from_the_config_on() {
        let identity = ClusterIdentity::default();
        assert_eq!(identity.check("a", 1), Ok(()));
        assert_eq!(identity.check("b", 2), Ok(()), "nothing is at stake yet");
        identity.settle();
        let refused = identity.check("a", 1).unwrap_err();
        for word in ["cluster 1,", "cluster 2:", "restart the agent"] {
            assert!(refused.contains(word), "{word}: {refused}");
        }
        identity.settle();
        assert_eq!(identity.check("b", 2), Ok(()));
    }
}
