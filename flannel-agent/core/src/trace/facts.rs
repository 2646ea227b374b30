//! What is known of the two ends and of what lies between them.

use std::net::Ipv4Addr;

use crate::check::facts::Known;
use crate::firewall::packet_rules::fate::Fate;
use crate::forwarding::Unforwarded;
use crate::mac::MacAddr;
use crate::status::FlowStatus;

/// Which packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Protocol.
    pub protocol: Protocol,
}

/// The protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP.
    Icmp,
}

/// All facts.
#[derive(Clone, Debug)]
pub struct TraceFacts {
    /// Which packet.
    pub question: Question,
    /// The data path, if the daemon told.
    pub datapath: Option<String>,
    /// The source, if it is a pod of this node.
    pub source: Option<Pod>,
    /// The destination, if it is a pod of this node.
    pub destination: Option<Pod>,
    /// The peer that has the other end.
    pub peer: Option<FarNode>,
    /// `flannel.<VNI>`, if there is one.
    pub overlay: Option<TracedDevice>,
    /// The underlay's device.
    pub underlay: Option<TracedDevice>,
    /// The switches of forwarding that have to be on and are not.
    pub unforwarded: Known<Vec<Unforwarded>>,
    /// What becomes of the packet by the node's rules, and of its answer.
    pub fates: [Known<Fate>; 2],
    /// The same of the tunnel's packets: out and in.
    pub tunnel: [Known<Fate>; 2],
    /// Why the kernel carries the packet, and its answer: rules that judge packet by
    /// packet, and what stands on the devices.
    pub kept: [Known<Vec<String>>; 2],
    /// Entries of the flow table: of the packet, and of its answer.
    pub flows: [Known<Vec<FlowStatus>>; 2],
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its address.
    pub address: Ipv4Addr,
    /// Where the route to it leads: a bridge, or its veth.
    pub device: Option<String>,
    /// Its MAC, as the kernel knows it.
    pub mac: Option<MacAddr>,
    /// The host's side of its veth.
    pub veth: Option<TracedDevice>,
}

/// A device and what of ours is on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TracedDevice {
    /// Its name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Up.
    pub up: bool,
    /// Programs that run on it, by name.
    pub programs: Vec<String>,
}

/// The node that has the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FarNode {
    /// Its PublicIP.
    pub public_ip: Ipv4Addr,
    /// MAC of its VTEP.
    pub vtep_mac: Option<MacAddr>,
    /// The route to the other end.
    pub route: Option<TracedRoute>,
    /// MAC of the route's gateway on the overlay.
    pub neighbour: Option<MacAddr>,
    /// Where frames for that MAC are sent.
    pub fdb: Option<Ipv4Addr>,
    /// What the programs' map says of the other end: PublicIP and MAC.
    pub map: Known<Option<(Ipv4Addr, MacAddr)>>,
    /// The way to its PublicIP.
    pub next_hop: Option<TracedRoute>,
    /// MAC of that next hop.
    pub next_mac: Option<MacAddr>,
}

/// A way, as the routing tables decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracedRoute {
    /// Device that packets leave by.
    pub device: String,
    /// Gateway, if there is one.
    pub gateway: Option<Ipv4Addr>,
}

impl TraceFacts {
    /// The same seen from the other end.
    pub fn reversed(&self) -> Self {
        let Question { source, destination, protocol } = self.question;
        let mut facts = Self {
            question: Question { source: destination, destination: source, protocol },
            source: self.destination.clone(),
            destination: self.source.clone(),
            ..self.clone()
        };
        facts.fates.reverse();
        facts.kept.reverse();
        facts.flows.reverse();
        facts
    }
}
