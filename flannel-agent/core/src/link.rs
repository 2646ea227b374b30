//! Links, their addresses and the kernel's ways, as choosing an underlay and
//! finding pods needs them.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::mac::MacAddr;

/// A link, reduced to what choosing an underlay and finding pods' veths needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// MAC, if it has one of six bytes.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// It has a carrier (IFF_LOWER_UP).
    pub carrier: bool,
    /// ARPHRD_ETHER.
    pub ethernet: bool,
    /// IFF_LOOPBACK.
    pub loopback: bool,
    /// Kind (`veth`, `bridge`, `vxlan`...), empty for hardware.
    pub kind: String,
    /// Index of the bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// Index of the device that it stands on, or of its other end (IFLA_LINK).
    pub lower: Option<u32>,
    /// Id of the other network namespace that `lower` is in (IFLA_LINK_NETNSID).
    pub lower_netns: Option<i32>,
    /// How a bridge forwards.
    pub bridge: Option<Bridge>,
    /// Name of its root qdisc.
    pub qdisc: String,
    /// IPv4 addresses, host bits kept, in the kernel's order.
    pub addresses: Vec<LinkAddress>,
}

impl Link {
    /// Whether it has this address.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|own| own.network.ip() == address)
    }
}

/// The VRF that a link is in, itself or what it is a port of
/// (l3mdev_master_upper_ifindex_by_index).
pub fn vrf_of(links: &[Link], ifindex: u32) -> Option<u32> {
    let mut next = Some(ifindex);
    // Masters can stand in a circle for a moment, as links are read one by one.
    for _ in 0..links.len() {
        let link = links.iter().find(|link| Some(link.ifindex) == next)?;
        if link.kind == "vrf" {
            return Some(link.ifindex);
        }
        next = link.master;
    }
    None
}

/// Settings of a bridge by which its packets go another way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// It keeps VLANs apart.
    pub vlan_filtering: bool,
    /// The VLAN of untagged frames on new ports.
    pub default_pvid: u16,
    /// Its frames go through iptables (`nf_call_iptables`).
    pub calls_iptables: bool,
}

/// An IPv4 address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// Address with prefix length.
    pub network: Ipv4Network,
    /// IFA_F_PERMANENT: not from DHCP.
    pub permanent: bool,
    /// IFA_F_DEPRECATED.
    pub deprecated: bool,
    /// Scope global (not link or host).
    pub global: bool,
}

/// The way to an address, as the routing tables decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteTo {
    /// Output interface index.
    pub ifindex: u32,
    /// Preferred source address.
    pub source: Option<Ipv4Addr>,
    /// Gateway, if there is one.
    pub gateway: Option<Ipv4Addr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vrf_is_found_above_a_bond() {
        let link = |ifindex, kind: &str, master| Link {
            ifindex,
            kind: kind.to_owned(),
            master,
            ..Link::default()
        };
        let links = [
            link(2, "", Some(3)),
            link(3, "bond", Some(4)),
            link(4, "vrf", None),
            link(5, "", None),
            link(6, "", Some(7)),
            link(7, "bridge", Some(6)),
        ];
        let found = [2, 3, 4, 5, 6, 9].map(|ifindex| vrf_of(&links, ifindex));
        assert_eq!(found, [Some(4), Some(4), Some(4), None, None, None]);
    }
}
