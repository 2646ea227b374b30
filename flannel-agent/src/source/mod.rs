//! Where leases live. Only this module speaks to a store.
//!
//! [`LeaseSource`] holds the verbs, no policy; [`store::Store`] is the real one,
//! over `etcd3` and `etcd2`; `fake` keeps its leases in memory.

mod acquisition;
pub mod certificates;
mod choice;
mod claim;
mod der;
mod dial;
pub mod etcd2;
pub mod etcd3;
pub mod fake;
mod file;
mod follow;
mod hint;
pub mod holdings;
mod identity;
mod login;
mod lookup;
mod merged;
pub mod migration;
pub mod options;
mod pem;
mod prefix;
mod private_key;
pub mod store;
mod tls;
mod unreadable;

pub use self::claim::{Claim, Former};
pub use self::prefix::Instead;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use flannel_core::config::{ConfigError, NetworkConfig};
use flannel_core::lease::Lease;
use flannel_core::lease::update::LeaseUpdate;
use flannel_core::text::counted;
use ipnetwork::Ipv4Network;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Whether the node has this address now: what begins there is sent.
pub fn is_here(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0))
        .map_or_else(|error| error.kind() != std::io::ErrorKind::AddrNotAvailable, |_| true)
}

/// Life of a lease, as flannel has it.
pub const LEASE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// The verbs that the agent needs of a store.
///
/// Every write compares first: a lease of another node is never overwritten.
pub trait LeaseSource: Send + Sync + 'static {
    /// Reads and validates `<prefix>/config` once.
    fn config(&self) -> impl Future<Output = Result<NetworkConfig, SourceError>> + Send;

    /// Lists all leases once, with the store's revision.
    fn list(&self) -> impl Future<Output = Result<(Vec<Lease>, i64), SourceError>> + Send;

    /// Acquires a subnet: the node's own lease, else `claim.previous` if free,
    /// else a random free one. Lost races are tried again.
    ///
    /// # Errors
    /// [`SourceError::Held`] if a lease stands that may be another node's.
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

    /// Asks the holder of `lease` for a sign of life: writes
    /// `AskedBy` into it, and leaves its end and all else as they are. Returns
    /// the lease with the question; `None` if it changed meanwhile.
    fn ask(
        &self,
        lease: &Lease,
        by: &str,
    ) -> impl Future<Output = Result<Option<Lease>, SourceError>> + Send;

    /// Whether nobody wrote the lease that [`ask`](Self::ask) returned.
    fn is_unanswered(
        &self,
        asked: &Lease,
    ) -> impl Future<Output = Result<bool, SourceError>> + Send;

    /// The node's addresses have changed: leaves connections for new ones if one
    /// began at an address that is not here any more.
    fn addresses_changed(&self, is_here: &dyn Fn(IpAddr) -> bool);

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
        holder: Ipv4Addr,
    },
    /// A lease with our PublicIP, or one that we had with another PublicIP, may
    /// be a living node's.
    #[error("lease {} of PublicIP {} may be another node's", lease.subnet, lease.attrs.public_ip)]
    Held {
        /// The lease.
        lease: Box<Lease>,
    },
    /// All subnets of the network are taken.
    #[error(
        "out of subnets: with {} there is none free between {min} and {max} \
         (SubnetMin, SubnetMax){}; widen the range in {key}, or delete leases of nodes that are gone",
        counted(*.leases, "lease"),
        choice::why_none(*.min > *.max, .widest)
    )]
    OutOfSubnets {
        /// Leases in the store.
        leases: usize,
        /// Leases larger than `SubnetLen` says, the largest first: they take many at once.
        widest: Vec<Ipv4Network>,
        /// First subnet that may be given out.
        min: Ipv4Addr,
        /// Last subnet that may be given out.
        max: Ipv4Addr,
        /// Key of the network config.
        key: String,
    },
    /// Others changed the same keys at each of our tries.
    #[error("{call} of {key} lost {rounds} races in a row; does another program write this key?")]
    Contended {
        /// `acquire` or `renew`.
        call: &'static str,
        /// The key, or the prefix of all.
        key: String,
        /// Tries made.
        rounds: u32,
    },
    /// There is no network config.
    #[error(
        "flannel config not found in etcd store. Did you create your config using etcdv3 API? \
         (no key {key} at {endpoints}{instead})"
    )]
    NoConfig {
        /// `<prefix>/config`.
        key: String,
        /// The store's endpoints.
        endpoints: String,
        /// What there is.
        instead: Instead,
    },
    /// There is no network config where the v2 API looks.
    #[error(
        "flannel config not found in etcd by the v2 API (no key {key} at {endpoints}{instead})"
    )]
    NoConfigV2 {
        /// `<prefix>/config`.
        key: String,
        /// The store's endpoints.
        endpoints: String,
        /// What there is.
        instead: Instead,
    },
    /// There is no network config by either API.
    #[error("no network config yet, neither by etcd's v3 API ({v3}) nor by v2 ({v2})")]
    NoConfigAnywhere {
        /// What v3 answered.
        v3: Box<SourceError>,
        /// What v2 answered.
        v2: Box<SourceError>,
    },
    /// The network config cannot be used.
    #[error("the config under {key} is unusable: {error}")]
    Config {
        /// `<prefix>/config`.
        key: String,
        /// What is wrong with it.
        #[source]
        error: ConfigError,
    },
    /// The settings for the connection are unusable.
    #[error("{option}: {cause}")]
    Options {
        /// The setting, with its value unless that is secret.
        option: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A call failed at every endpoint.
    #[error("{call} {key} failed: {cause}; {hint}")]
    Call {
        /// The store's call.
        call: &'static str,
        /// The key or prefix that it was about.
        key: String,
        /// What each endpoint tried answered.
        cause: String,
        /// What to look at.
        hint: &'static str,
        /// The store refused it: nothing of it was done, and it would not be
        /// done at the next try either.
        refused: bool,
    },
}

impl SourceError {
    /// What two failures have in common if it is the same trouble, be it with
    /// another key.
    pub fn trouble(&self) -> String {
        match self {
            Self::Call { call, cause, .. } => format!("{call}: {cause}"),
            other => other.to_string(),
        }
    }

    /// Trying again with the same settings gives the same answer.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::LeaseLost { .. } | Self::OutOfSubnets { .. } | Self::Options { .. })
    }

    /// The store answers, and has no network config that can be used.
    pub fn is_of_config(&self) -> bool {
        use SourceError::{Config, NoConfig, NoConfigAnywhere, NoConfigV2};
        matches!(
            self,
            NoConfig { .. } | NoConfigV2 { .. } | NoConfigAnywhere { .. } | Config { .. }
        )
    }
}
