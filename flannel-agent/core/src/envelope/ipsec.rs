//! IPsec policies on what the node sends. What the programs send goes around them.

use crate::firewall::packet_rules::ranges::{Addresses, Ports};

/// A policy of `ip xfrm policy` for the direction out that does not let packets
/// pass as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpsecPolicy {
    /// Destinations.
    pub destination: Addresses,
    /// Destination ports; all for protocols without ports.
    pub ports: Ports,
    /// UDP is among its protocols.
    pub udp: bool,
    /// It is about packets with a firewall mark only.
    pub marked: bool,
    /// `block`, or the IPsec protocol.
    pub does: String,
    /// Its selector, as `ip xfrm policy` shows it.
    pub text: String,
}

impl IpsecPolicy {
    /// One that may be about any packet: what stands for policies that cannot be read.
    pub fn anything() -> Self {
        Self {
            destination: Addresses::ALL,
            ports: Ports::ALL,
            udp: true,
            marked: false,
            does: "unknown".to_owned(),
            text: "policies cannot be read".to_owned(),
        }
    }

    /// Whether it may be about tunnel packets to a peer.
    pub fn is_about_tunnel(&self, port: u16, has_peer: impl Fn(&Addresses) -> bool) -> bool {
        let port = Ports::of([(port.into(), port.into())]);
        self.udp && !self.ports.and(&port).is_empty() && has_peer(&self.destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_policies_for_tunnel_packets_to_a_peer_matter() {
        let policy = IpsecPolicy {
            destination: Addresses::prefix(0xc000_0200, 24),
            ports: Ports::ALL,
            udp: true,
            marked: false,
            does: "esp".to_owned(),
            text: "src 0.0.0.0/0 dst 192.0.2.0/24".to_owned(),
        };
        let is_about = |policy: &IpsecPolicy, peer: u32| {
            let peer = Addresses::prefix(peer, 32);
            policy.is_about_tunnel(8472, |addresses| !addresses.and(&peer).is_empty())
        };
        assert!(is_about(&policy, 0xc000_0207));
        assert!(!is_about(&policy, 0xc000_0307));
        let port = |port| IpsecPolicy { ports: Ports::of([(port, port)]), ..policy.clone() };
        assert!(is_about(&port(8472), 0xc000_0207) && !is_about(&port(4500), 0xc000_0207));
        assert!(!is_about(&IpsecPolicy { udp: false, ..policy }, 0xc000_0207));
    }
}
