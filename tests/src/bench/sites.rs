//! The nodes that are measured: two for each setup, one etcd for all of them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use serde_json::Value;

use super::rows::{Ends, Setup};
use super::wire::Wire;
use crate::agent::Options;
use crate::etcd::Etcd;
use crate::lab::{Lab, NETWORK};
use crate::netns::Netns;
use crate::node::Node;
use crate::pair::fast_share;
use crate::pod::{PORT, Pod, serve};
use crate::process::Process;
use crate::rules::Rules;

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
    peers: [Value; 2],
    frames: u64,
    bytes: u64,
}

/// All sites.
pub(super) struct Sites {
    // Before etcd and underlay: the agents end first.
    sites: Vec<(Setup, Site)>,
    _etcd: Etcd,
    _lab: Lab,
}

impl Sites {
    /// Starts two nodes for each setup. Each setup has an etcd prefix of its
    /// own: its nodes know only each other.
    ///
    /// # Panics
    /// They do not come up.
    pub(super) fn start(setups: &[Setup], rules: Rules) -> Self {
        let lab = Lab::new();
        let etcd = lab.empty_etcd();
        let mut started = Vec::new();
        for (index, setup) in setups.iter().enumerate() {
            let prefix = format!("/bench/{index}");
            let config =
                format!(r#"{{"Network":"{NETWORK}","SubnetLen":24,"Backend":{}}}"#, setup.backend);
            etcd.ctl(&["put", &format!("{prefix}/config"), &config]);
            let number = u8::try_from(2 * index + 1).expect("few setups");
            let (mut left, mut right) = (lab.node(number), lab.node(number + 1));
            lab.cable(&mut left, &mut right);
            for (node, arguments) in [(&mut left, setup.left), (&mut right, setup.right)] {
                // An empty value takes back what the harness names.
                let common = ["--iface=".into(), format!("--iface={UNDERLAY}")];
                let prefix = format!("--etcd-prefix={prefix}");
                let own = arguments.iter().map(|word| (*word).to_owned());
                let extra = common.into_iter().chain([prefix]).chain(own).collect();
                node.launch(&etcd, &Options { extra, ..Options::default() });
            }
            started.push((*setup, left, right));
        }
        let ready = |(setup, left, right)| (setup, Site::new(left, right, rules, &lab));
        let sites = started.into_iter().map(ready).collect();
        Self { sites, _etcd: etcd, _lab: lab }
    }

    /// The site of a setup.
    ///
    /// # Panics
    /// It was not started.
    pub(super) fn of(&self, setup: &Setup) -> &Site {
        let found = self.sites.iter().find(|(other, _)| other == setup);
        &found.unwrap_or_else(|| panic!("no nodes for {setup:?}")).1
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

impl Site {
    fn new(mut left: Node, mut right: Node, rules: Rules, lab: &Lab) -> Self {
        for node in [&mut left, &mut right] {
            node.wait_ready(READY);
        }
        left.wait_routes(&[&right]);
        right.wait_routes(&[&left]);
        let (client, server) = (left.pod(2), right.pod(2));
        for node in [&left, &right] {
            rules.load(&node.netns);
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
    pub(super) fn ends(&self, ends: Ends) -> (&Netns, SocketAddrV4) {
        let (netns, address): (&Netns, Ipv4Addr) = match ends {
            Ends::Hosts => (&self.left.netns, self.right.address),
            Ends::Pods => (&self.client.netns, self.server.address),
        };
        (netns, SocketAddrV4::new(address, PORT))
    }

    /// Packets so far.
    ///
    /// # Panics
    /// An agent does not answer.
    pub(super) fn counters(&self) -> Counters {
        let peers = [self.left.peer(&self.right), self.right.peer(&self.left)];
        let text = self.left.netns.ip(&format!("-json -stats link show {UNDERLAY}"));
        let links: Value = serde_json::from_str(&text).expect("JSON of ip");
        let sent = &links[0]["stats64"]["tx"];
        let number = |name: &str| sent[name].as_u64().unwrap_or_else(|| panic!("{name}: {text}"));
        Counters { peers, frames: number("packets"), bytes: number("bytes") }
    }
}

impl Counters {
    /// Share (0..=1) of the overlay's packets that the fast paths of the left
    /// and of the right node carried since `before`.
    pub(super) fn fast_shares(&self, before: &Self) -> [f64; 2] {
        [0, 1].map(|side| fast_share(&before.peers[side], &self.peers[side]))
    }

    /// Mean length in bytes of the frames that the left node sent since
    /// `before`; a super-packet counts as one.
    pub(super) fn mean_frame(&self, before: &Self) -> f64 {
        (self.bytes - before.bytes) as f64 / ((self.frames - before.frames).max(1) as f64)
    }
}
