//! The underlay: a bridge namespace that nodes are joined to.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use crate::addresses::{GATEWAY, NETWORK, OUTSIDE};
use crate::etcd::Etcd;
use crate::netns::{self, Netns};
use crate::node::Node;
use crate::process::run;
use crate::tls::Certificates;

/// Nodes on one underlay. Labs share nothing, so cases can run side by side.
pub struct Lab {
    id: String,
    dir: tempfile::TempDir,
    pins: PathBuf,
    underlay: Netns,
}

impl Lab {
    /// Makes an underlay without nodes: a bridge 192.0.2.1/24 that forwards.
    ///
    /// # Panics
    /// We are not root, or a command is missing (`cargo xtask setup`).
    pub fn new() -> Self {
        let id = netns::lab_id();
        let underlay = Netns::new(&format!("{id}-net"));
        underlay.ip_batch(&[
            // With a MAC of its own: it would take the lowest of its ports', and change it
            // with each node that comes or goes. Nobody reaches the store then for 30 s.
            "link add br0 address 02:00:5e:10:00:01 type bridge forward_delay 0".into(),
            format!("address add {GATEWAY}/24 dev br0"),
            "link set br0 up".into(),
        ]);
        underlay.sysctl("net.ipv4.ip_forward=1");
        let dir = tempfile::Builder::new().prefix(&id).tempdir().expect("a temporary directory");
        let pins = netns::pin_root(&id);
        Self { id, dir, pins, underlay }
    }

    /// Directory for files of this lab.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The namespace of the underlay's switch.
    pub fn underlay(&self) -> &Netns {
        &self.underlay
    }

    /// Makes node `number` (1..=200) with the address 192.0.2.(10+number) on
    /// its `eth0`, forwarding on, default route by the gateway.
    pub fn node(&self, number: u8) -> Node {
        let address = Ipv4Addr::new(192, 0, 2, 10 + number);
        let netns = Netns::new(&format!("{}-n{number}", self.id));
        self.join(&netns, &format!("p{number}"), "br0");
        netns.ip_batch(&[
            format!("address add {address}/24 dev eth0"),
            "link set eth0 up".into(),
            format!("route add default via {GATEWAY}"),
        ]);
        // As every container runtime does.
        netns.sysctl("net.ipv4.ip_forward=1");
        let dir = self.dir().join(format!("n{number}"));
        fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        Node::new(number, netns, address, dir, self.pins.join(format!("n{number}")))
    }

    /// Joins two nodes by a veth of their own, `eth1`, which becomes their
    /// underlay: nothing stands between them. Agents need `--iface=eth1`.
    pub fn cable(&self, left: &mut Node, right: &mut Node) {
        self.wire(left, right, "eth1");
        for node in [left, right] {
            node.underlay_on("eth1");
        }
    }

    /// Joins two nodes by a veth whose ends have this name; they are up and
    /// have no addresses.
    pub fn wire(&self, left: &Node, right: &Node, name: &str) {
        let (one, other) = (left.netns.name(), right.netns.name());
        self.underlay
            .ip(&format!("link add {name} netns {one} type veth peer name {name} netns {other}"));
        for node in [left, right] {
            node.netns.ip(&format!("link set {name} up"));
        }
    }

    /// Gives each of two nodes a network card of this machine, both on one wire,
    /// as its underlay `eth1`. Agents need `--iface=eth1`.
    pub fn cards(&self, left: &mut Node, right: &mut Node, cards: [&str; 2]) {
        for (node, card) in [left, right].into_iter().zip(cards) {
            // In one step: there is an `eth0` already.
            let netns = node.netns.name();
            run(Command::new("ip").args(["link", "set", card, "netns", netns, "name", "eth1"]));
            node.underlay_on("eth1");
        }
    }

    /// Makes the host 198.51.100.2 behind the gateway. It has no route to the
    /// overlay: what is not masqueraded gets no answer.
    pub fn outside(&self) -> Netns {
        let netns = Netns::new(&format!("{}-out", self.id));
        self.join(&netns, "ext", "");
        self.underlay.ip("address add 198.51.100.1/24 dev ext");
        netns.ip_batch(&[
            format!("address add {OUTSIDE}/24 dev eth0"),
            "link set eth0 up".into(),
            "route add 192.0.2.0/24 via 198.51.100.1".into(),
        ]);
        netns
    }

    /// A host on the underlay that is no node, with this address.
    pub fn stranger(&self, address: Ipv4Addr) -> Netns {
        let netns = Netns::new(&format!("{}-x{}", self.id, address.octets()[3]));
        self.join(&netns, &format!("x{}", address.octets()[3]), "br0");
        netns.ip_batch(&[format!("address add {address}/24 dev eth0"), "link set eth0 up".into()]);
        netns
    }

    /// Starts an etcd at the gateway's address, reachable from all nodes, with
    /// a network config for [`NETWORK`]. Agents get subnets up to 10.244.199.0;
    /// those from 10.244.200.0 on are for leases that cases write by hand.
    pub fn etcd(&self) -> Etcd {
        let etcd = self.empty_etcd();
        etcd.put_config(&format!(
            r#"{{"Network":"{NETWORK}","SubnetLen":24,"SubnetMax":"10.244.199.0","Backend":{{"Type":"vxlan","VNI":1}}}}"#
        ));
        etcd
    }

    /// Starts an etcd that holds nothing.
    pub fn empty_etcd(&self) -> Etcd {
        Etcd::start(&self.underlay, self.dir())
    }

    /// Starts an etcd with TLS that holds nothing, and makes certificates for
    /// it and its clients.
    pub fn tls_etcd(&self) -> (Etcd, Certificates) {
        let files = Certificates::new(self.dir());
        (Etcd::start_tls(&self.underlay, self.dir(), files.clone()), files)
    }

    /// An etcd that is not started yet.
    pub fn stopped_etcd(&self) -> Etcd {
        Etcd::new(&self.underlay, self.dir())
    }

    fn join(&self, netns: &Netns, port: &str, bridge: &str) {
        self.underlay
            .ip(&format!("link add {port} type veth peer name eth0 netns {}", netns.name()));
        if bridge.is_empty() {
            self.underlay.ip(&format!("link set {port} up"));
        } else {
            self.underlay.ip(&format!("link set {port} master {bridge} up"));
        }
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Absent when no agent used it.
        let _ = fs::remove_dir_all(&self.pins);
    }
}
