//! flannel's `udp` backend: IPv4 packets of the overlay, as they are, in UDP
//! datagrams. A TUN device takes them from and gives them to the kernel.

mod coalesce;
mod counters;
mod inward;
mod outbox;
mod outward;
mod packet;
pub mod proxy;
mod receiver;
pub mod routes;
mod segment;
mod shared;
mod socket;
mod tun;
pub mod upkeep;

pub use self::proxy::Proxy;
pub use self::upkeep::{DEVICE, SharedProxy, UdpBackend};

/// Names of all that the proxy counts.
#[cfg(test)]
pub(crate) fn outcomes() -> impl Iterator<Item = &'static str> {
    counters::Outcome::ALL.iter().map(|outcome| outcome.name())
}
