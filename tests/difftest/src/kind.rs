//! Kinds of connections, by what the nodes' rules do with them. Pure.

use std::net::Ipv4Addr;

use super::backend::Backend;
use super::world::Side;

/// Address and port.
pub type End = (Ipv4Addr, u16);

/// What happens to the packets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nothing.
    Plain,
    /// A service address outside of the overlay network: DNAT to the pod, to
    /// another port.
    Service,
    /// A service address inside of the overlay network that nobody has a lease
    /// for: DNAT, the port stays.
    ServiceInside,
    /// A service address inside of the other node's subnet: DNAT to its pod.
    ServiceOfPeer,
    /// The same, but the other node translates.
    PublishedByPeer,
    /// Another source address, the port stays.
    Masquerade,
    /// Another source address and port.
    SourceNat,
    /// The node of the pod that answers masquerades.
    MasqueradeByPeer,
    /// DNAT and masquerade at once.
    ServiceMasquerade,
    /// Another DSCP in each direction.
    Dscp,
    /// DNAT and another DSCP.
    ServiceDscp,
    /// Another TTL.
    Ttl,
    /// A mark.
    Mark,
    /// A priority.
    Priority,
    /// DNAT, masquerade, DSCP, mark and priority.
    Everything,
}

/// All of them.
pub const ALL: [Kind; 15] = [
    Kind::Plain,
    Kind::Service,
    Kind::ServiceInside,
    Kind::ServiceOfPeer,
    Kind::PublishedByPeer,
    Kind::Masquerade,
    Kind::SourceNat,
    Kind::MasqueradeByPeer,
    Kind::ServiceMasquerade,
    Kind::Dscp,
    Kind::ServiceDscp,
    Kind::Ttl,
    Kind::Mark,
    Kind::Priority,
    Kind::Everything,
];

/// First port on which the pods answer; each kind has one.
const FIRST_PORT: u16 = 31_000;
/// Port of service addresses.
const SERVICE_PORT: u16 = 80;
/// Client ports of [`Kind::SourceNat`], each with a rule of its own.
pub const MAPPED: std::ops::Range<u16> = 1_000..1_032;
/// What is added to them.
const MAPPED_BY: u16 = 60_000;

/// Which node changes packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// None.
    Nobody,
    /// Each that sends them.
    Sender,
    /// The node of the pod that opens the connection.
    Client,
    /// The node of the pod that answers.
    Server,
}

/// A connection as its ends see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Who opens it.
    pub client: End,
    /// What it sends to.
    pub target: End,
    /// Where this comes from, as the server sees it.
    pub source: End,
    /// Who answers.
    pub server: End,
}

impl Kind {
    /// The port on which the pods answer.
    pub fn port(self) -> u16 {
        let index = ALL.iter().position(|kind| *kind == self).expect("it is one of all");
        FIRST_PORT + u16::try_from(index).expect("few kinds")
    }

    /// Whether this is a port on which pods answer, of whatever kind.
    pub fn has_port(port: u16) -> bool {
        usize::from(port).checked_sub(usize::from(FIRST_PORT)).is_some_and(|at| at < ALL.len())
    }

    /// The service address that a client of this side uses, if there is one.
    pub fn service(self, client: Side) -> Option<End> {
        Some(match self {
            Self::Service => (Ipv4Addr::new(10, 96, 0, 10), SERVICE_PORT),
            Self::ServiceInside => (Ipv4Addr::new(10, 244, 240, 10), self.port()),
            Self::ServiceOfPeer => (client.other().address(200), SERVICE_PORT),
            Self::PublishedByPeer => (client.other().address(201), SERVICE_PORT),
            Self::ServiceMasquerade => (Ipv4Addr::new(10, 96, 0, 11), SERVICE_PORT),
            Self::ServiceDscp => (Ipv4Addr::new(10, 96, 0, 12), SERVICE_PORT),
            Self::Everything => (Ipv4Addr::new(10, 96, 0, 13), SERVICE_PORT),
            _ => return None,
        })
    }

    /// Whether an address is a service's, or one that sources are translated to.
    pub fn is_virtual(address: Ipv4Addr) -> bool {
        let [a, b, c, d] = address.octets();
        match (a, b, c) {
            (10, 96, 0) => true,
            (10, 244, 240) => d == 10,
            (10, 244, 101 | 102) => matches!(d, 200 | 201 | 250),
            _ => false,
        }
    }

    /// Which node changes the packets.
    pub const fn by(self) -> By {
        match self {
            Self::Plain => By::Nobody,
            Self::Mark | Self::Priority => By::Sender,
            Self::PublishedByPeer | Self::MasqueradeByPeer => By::Server,
            _ => By::Client,
        }
    }

    /// Whether addresses or ports change.
    pub const fn translates(self) -> bool {
        !matches!(self, Self::Plain | Self::Dscp | Self::Ttl | Self::Mark | Self::Priority)
    }

    /// Whether the source becomes an address of the node.
    pub const fn masquerades(self) -> bool {
        matches!(
            self,
            Self::Masquerade | Self::MasqueradeByPeer | Self::ServiceMasquerade | Self::Everything
        )
    }

    /// Whether DSCP changes.
    pub const fn marks_dscp(self) -> bool {
        matches!(self, Self::Dscp | Self::ServiceDscp | Self::Everything)
    }

    /// The ends of a connection that the pod of `client` opens from `port`.
    pub fn ends(self, client: Side, port: u16, backend: Backend) -> Ends {
        let server = (client.other().pod(), self.port());
        let source = match self {
            Self::SourceNat => (client.address(250), port.wrapping_add(MAPPED_BY)),
            Self::MasqueradeByPeer => (client.other().address(1), port),
            _ if self.masquerades() && backend == Backend::HostGw => (client.node(), port),
            // The address of `flannel.1`.
            _ if self.masquerades() => (client.address(0), port),
            _ => (client.pod(), port),
        };
        Ends {
            client: (client.pod(), port),
            target: self.service(client).unwrap_or(server),
            source,
            server,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{LEFT, RIGHT};

    #[test]
    fn an_end_changes_where_a_kind_translates_and_nowhere_else() {
        for kind in ALL {
            for (client, backend) in [
                (LEFT, Backend::Vxlan),
                (RIGHT, Backend::Vxlan),
                (LEFT, Backend::HostGw),
                (RIGHT, Backend::HostGw),
            ] {
                let ends = kind.ends(client, MAPPED.start, backend);
                assert_eq!((ends.client.0, ends.server.0), (client.pod(), client.other().pod()));
                assert_eq!(ends.target != ends.server, kind.service(client).is_some());
                let source_changes = kind.masquerades() || kind == Kind::SourceNat;
                assert_eq!(ends.source != ends.client, source_changes, "{kind:?}");
                let changes = ends.target != ends.server || ends.source != ends.client;
                assert_eq!(changes, kind.translates(), "{kind:?}");
                assert!(Kind::has_port(ends.server.1));
            }
        }
        assert!(!Kind::has_port(30_999) && !Kind::has_port(31_015) && !Kind::has_port(80));
    }

    #[test]
    fn no_two_kinds_share_a_service() {
        for client in [LEFT, RIGHT] {
            let mut services: Vec<_> = ALL.iter().filter_map(|kind| kind.service(client)).collect();
            let all = services.len();
            services.sort();
            services.dedup();
            assert_eq!(services.len(), all);
            assert!(services.iter().all(|(address, _)| Kind::is_virtual(*address)));
        }
        assert!(!Kind::is_virtual(LEFT.pod()) && !Kind::is_virtual(LEFT.address(0)));
    }
}
