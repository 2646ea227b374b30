//! Addresses of the nodes that are compared: the same ones on both paths.

use std::net::Ipv4Addr;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// MTU of the overlay, in bytes.
pub const MTU: usize = 1450;
/// UDP port of the tunnel.
pub const PORT: u16 = 8472;
/// VXLAN network identifier.
pub const VNI: u32 = 1;

/// One node with its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Side {
    number: u8,
}

/// The node whose cable end is watched.
pub const LEFT: Side = Side { number: 1 };
/// The other node.
pub const RIGHT: Side = Side { number: 2 };
/// A peer that has a lease and a neighbour entry, but does not run.
pub const ABSENT: Side = Side { number: 99 };

impl Side {
    /// Address number `host` of its subnet, a /24.
    pub const fn address(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, 100 + self.number, host)
    }

    /// The pod's address.
    pub const fn pod(self) -> Ipv4Addr {
        self.address(2)
    }

    /// The node's underlay address.
    pub const fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 0, 10 + self.number)
    }

    /// The pod's MAC.
    pub const fn pod_mac(self) -> Mac {
        [2, 0, 0x5e, 1, 0, self.number]
    }

    /// The MAC of the bridge, the pod's gateway.
    pub const fn gateway_mac(self) -> Mac {
        [2, 0, 0x5e, 2, 0, self.number]
    }

    /// The MAC of `flannel.1`.
    pub const fn vtep_mac(self) -> Mac {
        [2, 0, 0x5e, 3, 0, self.number]
    }

    /// The MAC of the underlay device.
    pub const fn node_mac(self) -> Mac {
        [2, 0, 0x5e, 4, 0, self.number]
    }

    /// The other one of the two nodes that run.
    pub const fn other(self) -> Self {
        if self.number == LEFT.number { RIGHT } else { LEFT }
    }
}

/// Whether one of the nodes, not a pod, has this address.
pub fn is_node(address: Ipv4Addr) -> bool {
    let own = |side: Side| [side.address(0), side.address(1), side.node()];
    [LEFT, RIGHT].into_iter().any(|side| own(side).contains(&address))
}

/// Whether a pod sends under this address.
pub fn is_pod(address: Ipv4Addr) -> bool {
    [LEFT, RIGHT, ABSENT].iter().any(|side| side.pod() == address)
}

/// A MAC as iproute2 writes it.
pub fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
