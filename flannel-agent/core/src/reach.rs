//! How a node is reached: by which next hop, and in the tunnel or as it is.

use std::fmt;
use std::net::Ipv4Addr;

use crate::link::RouteTo;

/// The kernel's next hop towards an underlay address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NextHop {
    /// Without a gateway, through the underlay: it is on the same link.
    OnLink,
    /// Through a gateway.
    Gateway(Ipv4Addr),
    /// Through another interface, with this index.
    Elsewhere(u32),
    /// There is no route, or it is not known yet.
    #[default]
    None,
}

impl NextHop {
    /// What `route` (an answer of the routing tables) means
    /// for a node whose underlay has this interface index.
    pub fn of(route: Option<RouteTo>, underlay: u32) -> Self {
        match route {
            None => Self::None,
            Some(RouteTo { gateway: Some(gateway), .. }) => Self::Gateway(gateway),
            Some(RouteTo { ifindex, .. }) if ifindex != underlay => Self::Elsewhere(ifindex),
            Some(_) => Self::OnLink,
        }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnLink => f.write_str("it is on the link"),
            Self::Gateway(gateway) => write!(f, "it is reached by the gateway {gateway}"),
            Self::Elsewhere(ifindex) => {
                write!(f, "it is reached through another interface (index {ifindex})")
            }
            Self::None => f.write_str("there is no route to it"),
        }
    }
}

/// How packets get to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerReach {
    /// Encapsulated, through the device.
    Tunnel,
    /// As they are, by a route through the underlay.
    Direct,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_underlays_own_link_counts_as_on_link() {
        let route = |ifindex, gateway: Option<[u8; 4]>| RouteTo {
            ifindex,
            source: None,
            gateway: gateway.map(Ipv4Addr::from),
        };
        assert_eq!(NextHop::of(Some(route(2, None)), 2), NextHop::OnLink);
        assert_eq!(NextHop::of(Some(route(3, None)), 2), NextHop::Elsewhere(3));
        let gateway = [192, 0, 2, 1];
        assert_eq!(NextHop::of(Some(route(2, Some(gateway))), 2), NextHop::Gateway(gateway.into()));
        assert_eq!(NextHop::of(None, 2), NextHop::None);
    }
}
