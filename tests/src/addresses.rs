//! Addresses that every lab has.

use std::net::Ipv4Addr;

/// The switch's own address on the underlay; etcd listens there, and it is the
/// nodes' default gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// A host that no node is: behind the gateway.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The overlay network that labs use unless they say otherwise.
pub const NETWORK: &str = "10.244.0.0/16";
