//! Acquires the node's lease, and nobody else's.
//!
//! A lease that may be ours and of which we have no memory (a node that was
//! installed anew), or that we had at another address, may as well be that of a
//! living node with the same PublicIP, or of the machine that ours is a copy
//! of. What the network could tell of that is not to be relied on (NAT, the same
//! private address on two links), so its holder is asked in the store itself.

use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::config::{Backend, NetworkConfig};
use flannel_core::lease::Lease;
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::mac::MacAddr;
use flannel_core::status::What;

use super::StartError;
use super::start::{Before, Waiting};
use crate::source::{Claim, LeaseSource, SourceError};
use crate::status::Shared;

/// A living holder answers within this many looks with this pause before each.
const LOOKS: u32 = 15;
const PAUSE: Duration = Duration::from_millis(100);

/// Where the kernel has the node's name.
const HOSTNAME: &str = "/proc/sys/kernel/hostname";

/// Acquires our lease, waiting for a store that is away. Returns it with the
/// MAC of our VTEP.
pub(super) async fn acquire<S: LeaseSource>(
    source: &S,
    shared: &Shared,
    config: &NetworkConfig,
    public_ip: Ipv4Addr,
    before: &Before,
) -> Result<(Lease, MacAddr), StartError> {
    let mut waiting = Waiting::new(shared, "the lease");
    let me = myself();
    let mut memory = Memory::of(before);
    let mut unanswered: Vec<Lease> = Vec::new();
    loop {
        let acquired = async {
            let (leases, _) = source.list().await?;
            let mac = memory.mac(&leases, public_ip);
            let mut claim = Claim::new(attrs(&config.backend, public_ip, mac), memory.subnet());
            claim.former = memory.before.and_then(Before::former);
            claim.unanswered.clone_from(&unanswered);
            source.acquire(config, &claim).await.map(|lease| (lease, mac))
        };
        let error = match acquired.await {
            Ok(acquired) => {
                waiting.over();
                tell(shared, &acquired);
                return Ok(acquired);
            }
            Err(SourceError::Held { lease }) => match ask(source, &lease, &me).await {
                Ok(Answer::Changed) => continue,
                Ok(Answer::None(asked)) => {
                    tracing::info!(
                        subnet = %asked.subnet,
                        public_ip = %asked.attrs.public_ip,
                        "lease taken: it was ours, and nobody uses it"
                    );
                    unanswered.push(asked);
                    continue;
                }
                Ok(Answer::Lives) if lease.attrs.public_ip == public_ip => {
                    return Err(StartError::Duplicate { public_ip, holder: describe(&lease) });
                }
                Ok(Answer::Lives) => {
                    tracing::warn!(
                        holder = describe(&lease),
                        "the state file is a copy of a running node's (a cloned machine?); this \
                         node gets a subnet and a VTEP MAC of its own"
                    );
                    memory.forget();
                    continue;
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        if error.is_final() {
            return Err(StartError::Source { call: "acquire a lease", source: error });
        }
        waiting.because(&error).await;
    }
}

/// Tells of the lease that we have got.
fn tell(shared: &Shared, (lease, vtep_mac): &(Lease, MacAddr)) {
    let (subnet, public_ip) = (lease.subnet, lease.attrs.public_ip);
    tracing::info!(%subnet, %public_ip, mac = %vtep_mac, "lease acquired");
    let mut state = shared.lock();
    state.note(What::LeaseAcquired { subnet, public_ip });
    state.lease = Some(lease.clone());
}

/// What the node knows of itself.
struct Memory<'a> {
    before: Option<&'a Before>,
    /// The MAC that it takes if it remembers none.
    new: MacAddr,
}

impl<'a> Memory<'a> {
    fn of(before: &'a Before) -> Self {
        Self { before: Some(before), new: MacAddr::local(rand::random()) }
    }

    fn mac(&self, leases: &[Lease], public_ip: Ipv4Addr) -> MacAddr {
        self.before.and_then(|before| before.mac(leases, public_ip)).unwrap_or(self.new)
    }

    fn subnet(&self) -> Option<ipnetwork::Ipv4Network> {
        self.before.and_then(|before| before.subnet)
    }

    /// What is remembered is another node's.
    fn forget(&mut self) {
        self.before = None;
    }
}

enum Answer {
    /// Nobody wrote the lease, which has our question now.
    None(Lease),
    /// Its holder wrote it.
    Lives,
    /// It was not as we thought: look again.
    Changed,
}

async fn ask<S: LeaseSource>(source: &S, lease: &Lease, me: &str) -> Result<Answer, SourceError> {
    let Some(asked) = source.ask(lease, me).await? else { return Ok(Answer::Changed) };
    for _ in 0..LOOKS {
        tokio::time::sleep(PAUSE).await;
        if !source.is_unanswered(&asked).await? {
            return Ok(Answer::Lives);
        }
    }
    Ok(Answer::None(asked))
}

fn attrs(backend: &Backend, public_ip: Ipv4Addr, mac: MacAddr) -> LeaseAttrs {
    LeaseAttrs::new(public_ip, backend.facts().publishes(mac))
}

/// The node's name, and which of its starts.
fn myself() -> String {
    let name = std::fs::read_to_string(HOSTNAME).unwrap_or_default();
    format!("{} {:08x}", name.trim(), rand::random::<u32>())
}

fn describe(lease: &Lease) -> String {
    let attrs = &lease.attrs;
    let backend = match attrs.backend_type.as_str() {
        "" => "no backend type",
        other => other,
    };
    let data = attrs.backend_data.as_deref().map_or("none", |data| data.get());
    format!(
        "subnet {}, PublicIP {}, backend {backend}, backend data {data}",
        lease.subnet, attrs.public_ip
    )
}
