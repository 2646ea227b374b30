//! Whether pods get addresses of the nodes' own network.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnetwork::Ipv4Network;

use super::Underlay;
use crate::link::Link;
use crate::subnet::within;

/// Why the subnets of the network config are in the way of the nodes' own addresses, if
/// they are. A network config may leave the nodes out by `SubnetMin` and `SubnetMax`. An
/// underlay that is wider than `Network` counts only where our own address is in a subnet.
pub fn overlap(
    chosen: &Underlay,
    links: &[Link],
    network: Ipv4Network,
    pods: &RangeInclusive<Ipv4Addr>,
) -> Option<String> {
    let remedy = "choose another Network, or keep the nodes' addresses out of the subnets by \
                  SubnetMin and SubnetMax";
    let given = || format!("the subnets of Network {network}, {} to {}", pods.start(), pods.end());
    let own = [chosen.address, chosen.public_ip].into_iter().find(|own| pods.contains(own));
    if let Some(own) = own {
        return Some(format!("{own} of {} is in {}: {remedy}", chosen.name, given()));
    }
    let link = links.iter().find(|link| link.ifindex == chosen.ifindex)?;
    let mut around = link.addresses.iter().map(|address| address.network);
    let meets = |net: &Ipv4Network| {
        within(network, *net) && net.network() <= *pods.end() && *pods.start() <= net.broadcast()
    };
    let (net, given) = (around.find(meets)?, given());
    Some(format!("the network of {net} on {} overlaps {given}: {remedy}", chosen.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NetworkConfig;
    use crate::link::LinkAddress;

    /// What is told of a node with `address` on eth0.
    fn told(address: &str, config: &str) -> Option<String> {
        let text = format!(r#"{{{config},"Backend":{{"Type":"vxlan"}}}}"#);
        let config = NetworkConfig::parse(&text).unwrap();
        let address: Ipv4Network = address.parse().unwrap();
        let chosen = Underlay {
            ifindex: 2,
            name: "eth0".to_owned(),
            address: address.ip(),
            public_ip: address.ip(),
            mac: None,
            mtu: 1500,
            ethernet: true,
        };
        let address =
            LinkAddress { network: address, permanent: true, deprecated: false, global: true };
        let link = Link { ifindex: 2, addresses: vec![address], ..Link::default() };
        overlap(&chosen, &[link], config.network, &config.pods())
    }

    #[test]
    fn a_network_of_the_nodes_own_is_told() {
        let own = told("192.0.2.200/24", r#""Network":"192.0.2.0/24""#).unwrap();
        assert!(own.starts_with("192.0.2.200 of eth0 is in the subnets of Network 192.0.2.0/24,"));
        let others = told("192.0.2.11/24", r#""Network":"192.0.2.0/24""#).unwrap();
        let start = "the network of 192.0.2.11/24 on eth0 overlaps the subnets of Network \
                     192.0.2.0/24, 192.0.2.64 to 192.0.2.255: choose another Network";
        assert!(others.starts_with(start), "{others}");
        let wide = told("10.5.3.7/8", r#""Network":"10.5.0.0/16""#).unwrap();
        assert!(wide.starts_with("10.5.3.7 of eth0 is in"), "{wide}");
    }

    #[test]
    fn nodes_that_are_left_out_are_well() {
        assert_eq!(told("192.0.2.11/24", r#""Network":"10.5.0.0/16""#), None);
        let bounded = r#""Network":"10.0.0.0/8","SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0""#;
        assert_eq!(told("10.1.2.3/16", bounded), None);
        assert_eq!(told("10.0.0.5/8", r#""Network":"10.244.0.0/16""#), None);
    }
}
