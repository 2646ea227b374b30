//! Where leases live. Only this module speaks to a store.
//!
//! [`LeaseSource`] holds the verbs, no policy; `etcd3` is the real one,
//! `fake` keeps its leases in memory.

use std::future::Future;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::NetworkConfig;
use crate::lease::attrs::LeaseAttrs;
use crate::lease::table::Lease;

/// Life of a lease, as flannel has it.
pub const LEASE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// What a node asks for.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What will stand under the key.
    pub attrs: LeaseAttrs,
    /// The subnet that the node had (state file or subnet.env), if any.
    pub previous: Option<Ipv4Network>,
}

/// A change of the leases, in the order of the store.
#[derive(Clone, Debug, PartialEq)]
pub enum LeaseUpdate {
    /// All leases as of `revision`: replaces everything known.
    Snapshot {
        /// Every lease that could be read, our own too.
        leases: Vec<Lease>,
        /// Revision of the store.
        revision: i64,
    },
    /// A lease was written.
    Put {
        /// The lease as it is now.
        lease: Lease,
    },
    /// A lease was deleted or ran out.
    Removed {
        /// Its subnet.
        subnet: Ipv4Network,
        /// Revision of the store.
        revision: i64,
    },
    /// The store cannot be followed at the moment. Nothing changes for the
    /// data plane; status shows the reason. A `Snapshot` follows once it can.
    Disconnected {
        /// What failed, with the endpoint.
        reason: String,
    },
}

/// The verbs that the agent needs of a store.
///
/// Every write compares first: a lease of another node is never overwritten.
pub trait LeaseSource: Send + Sync + 'static {
    /// Reads and validates `<prefix>/config` once.
    fn config(&self) -> impl Future<Output = Result<NetworkConfig, SourceError>> + Send;

    /// Lists all leases once, with the store's revision.
    fn list(&self) -> impl Future<Output = Result<(Vec<Lease>, i64), SourceError>> + Send;

    /// Acquires a subnet: own PublicIP's lease, else `claim.previous` if free,
    /// else a random free one. Lost races are tried again.
    fn acquire(
        &self,
        config: &NetworkConfig,
        claim: &Claim,
    ) -> impl Future<Output = Result<Lease, SourceError>> + Send;

    /// Extends our lease to [`LEASE_TTL`] from now and writes `lease.attrs`, if
    /// the key still is what `lease.revision` says (or has gone: then the same
    /// subnet is claimed again). Returns the lease as it now is.
    ///
    /// # Errors
    /// [`SourceError::LeaseLost`] if another node holds the subnet now.
    fn renew(&self, lease: &Lease) -> impl Future<Output = Result<Lease, SourceError>> + Send;

    /// Follows the leases until `stop`: first a snapshot, then each change.
    fn watch(&self, stop: CancellationToken) -> mpsc::Receiver<LeaseUpdate>;
}

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Another node holds our subnet.
    #[error("lease {subnet} is held by {holder} now; this node must stop using it")]
    LeaseLost {
        /// Our subnet.
        subnet: Ipv4Network,
        /// PublicIP of the node that holds it.
        holder: std::net::Ipv4Addr,
    },
}
