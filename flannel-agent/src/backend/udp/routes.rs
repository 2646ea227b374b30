//! Which peer has an address: what the workers look up for each packet.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnetwork::Ipv4Network;

use flannel_core::status::UdpCounters;

/// Packets and bytes (of IPv4 packets, headers included) of one peer.
#[derive(Debug, Default)]
pub struct PeerTraffic {
    /// Packets sent to it.
    pub tx_packets: AtomicU64,
    /// Bytes sent to it.
    pub tx_bytes: AtomicU64,
    /// Packets received from it.
    pub rx_packets: AtomicU64,
    /// Bytes received from it.
    pub rx_bytes: AtomicU64,
}

impl PeerTraffic {
    pub(super) fn read(&self) -> UdpCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        UdpCounters {
            tx_udp_packets: read(&self.tx_packets),
            tx_udp_bytes: read(&self.tx_bytes),
            rx_udp_packets: read(&self.rx_packets),
            rx_udp_bytes: read(&self.rx_bytes),
        }
    }

    pub(super) fn sent(&self, packets: u64, bytes: u64) {
        self.tx_packets.fetch_add(packets, Ordering::Relaxed);
        self.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn received(&self, packets: u64, bytes: u64) {
        self.rx_packets.fetch_add(packets, Ordering::Relaxed);
        self.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A subnet and the node that has it.
#[derive(Clone, Debug)]
pub struct PeerRoute {
    /// The overlay subnet.
    pub subnet: Ipv4Network,
    /// The node's underlay address.
    pub public_ip: Ipv4Addr,
    /// Its counters.
    pub stats: Arc<PeerTraffic>,
}

/// All peers, for look-ups by overlay address.
///
/// One hash table for each prefix length that occurs, the longest first: in a
/// cluster they all have one length, so that a look-up is one probe.
#[derive(Clone, Debug, Default)]
pub struct PeerRoutes {
    routes: Vec<PeerRoute>,
    by_length: Vec<(u32, HashMap<u32, usize>)>,
    by_node: HashMap<Ipv4Addr, usize>,
}

/// Whether a packet from a node may have its overlay source.
#[derive(Clone, Copy, Debug)]
pub enum Sender<'a> {
    /// It may: counted for this peer.
    Right(&'a PeerRoute),
    /// The source is another node's, or nobody's.
    Forged(&'a PeerRoute),
    /// The node is no peer.
    Foreign,
}

impl PeerRoutes {
    /// Peers by subnet; counters of those in `before` go on if neither subnet
    /// nor address changed.
    pub fn new(peers: &BTreeMap<Ipv4Network, Ipv4Addr>, before: &Self) -> Self {
        let mut routes = Vec::with_capacity(peers.len());
        let mut by_length: BTreeMap<u32, HashMap<u32, usize>> = BTreeMap::new();
        let mut by_node = HashMap::with_capacity(peers.len());
        for (subnet, public_ip) in peers {
            let known = before.exact(*subnet).filter(|known| known.public_ip == *public_ip);
            let stats = known.map(|known| Arc::clone(&known.stats)).unwrap_or_default();
            let mask = u32::from(subnet.mask());
            by_length
                .entry(mask)
                .or_default()
                .insert(u32::from(subnet.network()) & mask, routes.len());
            by_node.entry(*public_ip).or_insert(routes.len());
            routes.push(PeerRoute { subnet: *subnet, public_ip: *public_ip, stats });
        }
        Self { routes, by_length: by_length.into_iter().rev().collect(), by_node }
    }

    /// The peer with the longest subnet that contains `address`.
    pub fn find(&self, address: Ipv4Addr) -> Option<&PeerRoute> {
        let address = u32::from(address);
        self.by_length
            .iter()
            .find_map(|(mask, table)| table.get(&(address & mask)))
            .and_then(|index| self.routes.get(*index))
    }

    /// Judges a packet from the node `public_ip` with the overlay source
    /// `source`: an address outside the overlay network may be anybody's, one
    /// inside only that node's.
    pub fn judge(&self, network: Ipv4Network, public_ip: Ipv4Addr, source: Ipv4Addr) -> Sender<'_> {
        if let Some(route) = self.find(source).filter(|route| route.public_ip == public_ip) {
            return Sender::Right(route);
        }
        match self.by_node.get(&public_ip).and_then(|index| self.routes.get(*index)) {
            None => Sender::Foreign,
            Some(route) if network.contains(source) => Sender::Forged(route),
            Some(route) => Sender::Right(route),
        }
    }

    /// All peers, by subnet.
    pub fn iter(&self) -> impl Iterator<Item = &PeerRoute> {
        self.routes.iter()
    }

    fn exact(&self, subnet: Ipv4Network) -> Option<&PeerRoute> {
        let found = self.routes.binary_search_by_key(&subnet, |route| route.subnet).ok()?;
        self.routes.get(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes(peers: &[(&str, u8)]) -> PeerRoutes {
        PeerRoutes::new(&parse(peers), &PeerRoutes::default())
    }

    fn parse(peers: &[(&str, u8)]) -> BTreeMap<Ipv4Network, Ipv4Addr> {
        let parse = |(subnet, node): &(&str, u8)| (subnet.parse().unwrap(), ip([10, 99, 0, *node]));
        peers.iter().map(parse).collect()
    }

    fn ip(octets: [u8; 4]) -> Ipv4Addr {
        octets.into()
    }

    #[test]
    fn the_longest_prefix_wins() {
        let routes = routes(&[("10.2.0.0/20", 1), ("10.2.3.0/24", 2), ("10.2.3.128/25", 3)]);
        let node = |last: [u8; 2]| {
            routes.find(ip([10, 2, last[0], last[1]])).map(|route| route.public_ip.octets()[3])
        };
        assert_eq!(node([3, 200]), Some(3));
        assert_eq!(node([3, 5]), Some(2));
        assert_eq!(node([4, 5]), Some(1));
        assert_eq!(node([77, 5]), None);
    }

    #[test]
    fn an_overlay_source_is_its_nodes_alone() {
        let network = "10.2.0.0/16".parse().unwrap();
        let routes = routes(&[("10.2.1.0/24", 1), ("10.2.2.0/24", 2)]);
        let judged = |node: u8, source: [u8; 4]| match routes.judge(
            network,
            ip([10, 99, 0, node]),
            ip(source),
        ) {
            Sender::Right(_) => "right",
            Sender::Forged(_) => "forged",
            Sender::Foreign => "foreign",
        };
        assert_eq!(judged(1, [10, 2, 1, 5]), "right");
        assert_eq!(judged(1, [10, 2, 2, 5]), "forged");
        assert_eq!(judged(1, [10, 2, 9, 5]), "forged", "nobody's");
        assert_eq!(judged(1, [192, 0, 2, 1]), "right", "from outside the overlay");
        assert_eq!(judged(9, [10, 2, 1, 5]), "foreign");
        assert_eq!(judged(9, [192, 0, 2, 1]), "foreign");
    }

    #[test]
    fn counters_go_on_while_the_peer_is_the_same() {
        let before = routes(&[("10.2.1.0/24", 1), ("10.2.2.0/24", 2)]);
        before.iter().for_each(|route| route.stats.sent(1, 100));
        let after = PeerRoutes::new(&parse(&[("10.2.1.0/24", 1), ("10.2.2.0/24", 3)]), &before);
        let counts: Vec<u64> =
            after.iter().map(|route| route.stats.tx_packets.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [1, 0]);
    }

    proptest! {
        #[test]
        fn finds_what_a_linear_search_finds(
            subnets in proptest::collection::btree_map((0u32..64, 20u8..=32), 0u8.., 0..20),
            address in 0u32..0x1_0000,
        ) {
            let address = Ipv4Addr::from(0x0a02_0000 | address);
            let peers: BTreeMap<Ipv4Network, Ipv4Addr> = subnets
                .into_iter()
                .map(|((third, prefix), node)| {
                    let any = Ipv4Addr::from(0x0a02_0000 | (third << 8));
                    let subnet = Ipv4Network::new(any, prefix).unwrap();
                    (Ipv4Network::new(subnet.network(), prefix).unwrap(), ip([10, 99, 0, node]))
                })
                .collect();
            let routes = PeerRoutes::new(&peers, &PeerRoutes::default());
            let linear = peers
                .iter()
                .filter(|(subnet, _)| subnet.contains(address))
                .max_by_key(|(subnet, _)| subnet.prefix())
                .map(|(subnet, ip)| (*subnet, *ip));
            let found = routes.find(address).map(|route| (route.subnet, route.public_ip));
            prop_assert_eq!(found, linear);
        }
    }
}
