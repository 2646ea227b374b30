//! flannel's `udp` backend: IPv4 packets of the overlay, as they are, in UDP
//! datagrams. A TUN device takes them from and gives them to the kernel.

mod coalesce;
mod counters;
mod inward;
mod outbox;
mod outward;
pub mod overlay;
mod packet;
pub mod proxy;
pub mod routes;
mod segment;
mod shared;
mod socket;
mod tun;

pub use self::overlay::{DEVICE, Overlay, SharedProxy};
pub use self::proxy::Proxy;

/// Names of all that the proxy counts.
#[cfg(test)]
pub(crate) fn outcomes() -> impl Iterator<Item = &'static str> {
    counters::Outcome::ALL.iter().map(|outcome| outcome.name())
}
