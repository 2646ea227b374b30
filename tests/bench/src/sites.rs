//! The nodes that are measured: two for each setup, one etcd for all of them.

use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use super::columns::To;
use super::lanes::{Build, Lane};
use super::rows::{Beside, Ends, JUDGED_PORT, Setup, packet_rule, untrack};
use super::wire::Wire;
use flannel_core::status::{PeerCounters, PeerStatus};
use flannel_tests::agent::Options;
use flannel_tests::etcd::Etcd;
use flannel_tests::lab::{Lab, NETWORK};
use flannel_tests::netns::Netns;
use flannel_tests::node::Node;
use flannel_tests::pod::{PORT, Pod, serve};
use flannel_tests::process::{Process, output};
use flannel_tests::rules::{Rules, SERVICE};
use flannel_tests::told::{fast_share, programs};

/// The underlay device of nodes: one end of a cable.
const UNDERLAY: &str = "eth1";
/// Many agents start at the same time.
const READY: Duration = Duration::from_secs(120);

/// Two nodes with a pod each, joined by a cable, with servers on both ends.
pub(super) struct Site {
    // Declared in the order in which they have to go: servers before their
    // namespaces.
    _servers: Vec<Process>,
    client: Pod,
    server: Pod,
    left: Node,
    right: Node,
}

/// Counters of a site, to be compared with later ones.
pub(super) struct Counters {
    peers: [Option<PeerCounters>; 2],
    frames: u64,
    bytes: u64,
}

/// Setup and build of a site.
type Key = (Setup, Option<Build>);

/// All sites.
pub(super) struct Sites {
    // Before etcd and underlay: the agents end first.
    sites: Vec<(Key, Site)>,
    _etcd: Etcd,
    _lab: Lab,
}

impl Sites {
    /// Starts two nodes for each key. Each has an etcd prefix of its own: its
    /// nodes know only each other. `other` is the agent of [`Build::Other`].
    ///
    /// # Panics
    /// They do not come up.
    pub(super) fn start(keys: &[Key], other: Option<&Path>, rules: Rules) -> Self {
        let lab = Lab::new();
        let etcd = lab.empty_etcd();
        let mut started = Vec::new();
        for (index, (setup, build)) in keys.iter().enumerate() {
            let number = u8::try_from(2 * index + 1).expect("few setups");
            let mut nodes = [lab.node(number), lab.node(number + 1)];
            if let (Some(Build::Other), Some(other)) = (build, other) {
                nodes.iter_mut().for_each(|node| node.use_build(other));
            }
            launch(&lab, &etcd, &format!("/bench/{index}"), setup, &mut nodes);
            started.push(((*setup, *build), nodes));
        }
        let ready = |(key, nodes): (Key, _)| (key, Site::new(nodes, &key.0, rules, &lab));
        let sites = started.into_iter().map(ready).collect();
        Self { sites, _etcd: etcd, _lab: lab }
    }

    /// The site of a lane.
    ///
    /// # Panics
    /// It was not started.
    pub(super) fn of(&self, lane: &Lane) -> &Site {
        let found = self.sites.iter().find(|(key, _)| *key == (lane.row.setup, lane.build));
        &found.unwrap_or_else(|| panic!("no nodes for {lane:?}")).1
    }

    /// Makes all underlays such a wire.
    pub(super) fn set(&self, wire: Wire) {
        for (_, site) in &self.sites {
            for node in [&site.left, &site.right] {
                wire.set(&node.netns, UNDERLAY);
            }
            // Fills the neighbour caches, and shows that the wire carries.
            site.client.ping(site.server.address, "-c 3 -i 0.2 -W 2");
        }
    }
}

/// Joins two nodes and starts their agents, without waiting for them.
fn launch(lab: &Lab, etcd: &Etcd, prefix: &str, setup: &Setup, nodes: &mut [Node; 2]) {
    let config = format!(r#"{{"Network":"{NETWORK}","SubnetLen":24,"Backend":{}}}"#, setup.backend);
    etcd.ctl(&["put", &format!("{prefix}/config"), &config]);
    let [left, right] = nodes;
    lab.cable(left, right);
    for (node, arguments) in [(left, setup.left), (right, setup.right)] {
        // An empty value takes back what the harness names.
        let common = ["--iface=".into(), format!("--iface={UNDERLAY}")];
        let prefix = format!("--etcd-prefix={prefix}");
        let own = arguments.iter().map(|word| (*word).to_owned());
        let extra = common.into_iter().chain([prefix]).chain(own).collect();
        node.launch(etcd, &Options { extra, ..Options::default() });
    }
}

impl Site {
    fn new(nodes: [Node; 2], setup: &Setup, rules: Rules, lab: &Lab) -> Self {
        let [mut left, mut right] = nodes;
        for node in [&mut left, &mut right] {
            node.wait_ready(READY);
        }
        left.wait_routes(&[&right]);
        right.wait_routes(&[&left]);
        let (client, server) = (left.pod(2), right.pod(2));
        for node in [&left, &right] {
            rules.load_serving(&node.netns, server.target());
            match setup.beside {
                Some(Beside::Judge) => judge(&node.netns, JUDGED_PORT),
                Some(Beside::Untrack) => untrack_tunnel(&node.netns),
                None => {}
            }
        }
        // Without TIME_WAIT: the connections of one round would leave the next
        // without ports.
        for netns in [&client.netns, &left.netns] {
            netns.sysctl("net.ipv4.tcp_max_tw_buckets=0");
        }
        let servers = [&server.netns, &right.netns]
            .map(|netns| {
                let log = lab.dir().join(format!("{}.log", netns.name()));
                serve(netns, &log, &["--cpu", "1"])
            })
            .into();
        Self { _servers: servers, client, server, left, right }
    }

    /// Where the client runs, and what it talks to.
    pub(super) fn ends(&self, ends: Ends, to: To) -> (&Netns, SocketAddrV4) {
        match (ends, to) {
            (Ends::Hosts, _) => (&self.left.netns, SocketAddrV4::new(self.right.address, PORT)),
            (Ends::Pods, To::Server) => (&self.client.netns, self.server.target()),
            (Ends::Pods, To::Service) => (&self.client.netns, SERVICE),
        }
    }

    /// Packets so far.
    ///
    /// # Panics
    /// ip says nothing of the underlay.
    pub(super) fn counters(&self) -> Counters {
        let peers = [(&self.left, &self.right), (&self.right, &self.left)]
            .map(|(node, other)| counted(node, other.address));
        let sent = self.left.netns.link(UNDERLAY).traffic.tx;
        Counters { peers, frames: sent.packets, bytes: sent.bytes }
    }
}

impl Counters {
    /// Share (0..=1) of the overlay's packets that the fast paths of the left
    /// and of the right node carried since `before`; `None` if an agent does
    /// not say it.
    pub(super) fn fast_shares(&self, before: &Self) -> Option<[f64; 2]> {
        let side = |side: usize| {
            Some(fast_share(before.peers[side].as_ref()?, self.peers[side].as_ref()?))
        };
        Some([side(0)?, side(1)?])
    }

    /// Mean length in bytes of the frames that the left node sent since
    /// `before`; a super-packet counts as one.
    pub(super) fn mean_frame(&self, before: &Self) -> f64 {
        (self.bytes - before.bytes) as f64 / ((self.frames - before.frames).max(1) as f64)
    }
}

/// Puts [`packet_rule`] on a node.
///
/// # Panics
/// nft refuses it.
pub fn judge(netns: &Netns, port: u16) {
    netns.nft(&format!(
        "table inet judge {{
            chain forward {{
                type filter hook forward priority filter;
                {}
            }}
        }}",
        packet_rule(port)
    ));
}

/// Puts [`untrack`] on a node, where conntrack has not seen the packet yet.
fn untrack_tunnel(netns: &Netns) {
    let chain = |hook: &str| {
        format!("chain {hook} {{ type filter hook {hook} priority raw; {}; }}\n", untrack())
    };
    netns.nft(&format!("table ip untrack {{ {} {} }}", chain("prerouting"), chain("output")));
}

/// What the programs of a node counted of a peer. Another build may know other members.
fn counted(node: &Node, peer: Ipv4Addr) -> Option<PeerCounters> {
    let output = output(node.agent_command("peers").arg("--json"));
    let peers: Vec<PeerStatus> = serde_json::from_slice(&output.stdout).ok()?;
    programs(peers.iter().find(|known| known.public_ip == peer)?)
}
