//! flannel's `udp` backend: IPv4 packets of the overlay, as they are, in UDP
//! datagrams. A TUN device takes them from and gives them to the kernel.

pub mod coalesce;
pub mod outbox;
pub mod packet;
pub mod routes;
pub mod segment;
