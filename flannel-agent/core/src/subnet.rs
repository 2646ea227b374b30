//! What subnets have to do with each other.

use ipnetwork::Ipv4Network;

/// Whether `inner` lies within `outer`.
pub fn within(outer: Ipv4Network, inner: Ipv4Network) -> bool {
    inner.prefix() >= outer.prefix() && outer.contains(inner.network())
}
