//! Two nodes with a pod each: what most cases need.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use crate::agent::Options;
use crate::etcd::Etcd;
use crate::lab::Lab;
use crate::load::{BULK, ECHOES, Load, MESSAGES, RunningLoad, SPACED, Whole as _, assert_whole};
use crate::node::Node;
use crate::pod::Pod;
use crate::traffic::client::Spaced;
use crate::wait;
use flannel_ebpf::abi::Outcome;

/// A service of [`Pair::serve_translated`].
pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 80);

/// What runs a node's tunnel.
pub enum Kind {
    /// The agent with these options.
    Agent(Options),
    /// Plain Linux.
    Plain,
}

/// `left` with the pod `client`, `right` with the pod `server`, whose traffic
/// server runs.
pub struct Pair {
    // Declared in the order in which they have to go.
    /// On `left`.
    pub client: Pod,
    /// On `right`; serves.
    pub server: Pod,
    /// Node 1.
    pub left: Node,
    /// Node 2.
    pub right: Node,
    /// The store.
    pub etcd: Etcd,
    /// The underlay.
    pub lab: Lab,
}

impl Pair {
    /// Two agents with the same options.
    pub fn agents(options: &Options) -> Self {
        Self::new(&Kind::Agent(options.clone()), &Kind::Agent(options.clone()))
    }

    /// Agents with these options on `left` and `right`, whose underlay is
    /// `interface`, which `join` makes.
    ///
    /// # Panics
    /// The nodes do not come to know each other.
    #[track_caller]
    pub fn over(
        interface: &str,
        options: [&Options; 2],
        join: impl FnOnce(&Lab, &mut Node, &mut Node),
    ) -> Self {
        let lab = Lab::new();
        let etcd = lab.etcd();
        let (mut left, mut right) = (lab.node(1), lab.node(2));
        join(&lab, &mut left, &mut right);
        let over = |options: &Options| {
            let mut options = options.clone();
            // An empty value takes back what the harness names.
            options.extra.extend(["--iface=".into(), format!("--iface={interface}")]);
            options
        };
        Self::started(lab, etcd, (left, right), options.map(over).each_ref())
    }

    /// Starts agents with these options on `left` and `right`, and waits until pods talk.
    ///
    /// # Panics
    /// They do not.
    #[track_caller]
    pub fn started(lab: Lab, etcd: Etcd, nodes: (Node, Node), options: [&Options; 2]) -> Self {
        Self::acquainted(lab, etcd, nodes, options).talking()
    }

    /// Starts agents with these options on `left` and `right`, each with a pod. Packets
    /// may not come through.
    ///
    /// # Panics
    /// The nodes do not come to know each other.
    #[track_caller]
    pub fn acquainted(
        lab: Lab,
        etcd: Etcd,
        (mut left, mut right): (Node, Node),
        options: [&Options; 2],
    ) -> Self {
        left.start(&etcd, options[0]);
        right.start(&etcd, options[1]);
        left.wait_routes(&[&right]);
        right.wait_routes(&[&left]);
        Self::silent(lab, etcd, left, right)
    }

    /// Starts both nodes and waits until they know each other.
    ///
    /// # Panics
    /// They do not.
    #[track_caller]
    pub fn new(left: &Kind, right: &Kind) -> Self {
        let lab = Lab::new();
        let etcd = lab.etcd();
        let (mut first, mut second) = (lab.node(1), lab.node(2));
        for (node, kind, subnet) in
            [(&mut first, left, "10.244.201.0/24"), (&mut second, right, "10.244.202.0/24")]
        {
            match kind {
                Kind::Agent(options) => node.start(&etcd, options),
                Kind::Plain => node.make_plain(&etcd, subnet),
            }
        }
        for (node, kind, other) in [(&first, left, &second), (&second, right, &first)] {
            match kind {
                Kind::Agent(_) => node.wait_routes(&[other]),
                Kind::Plain => node.sync_plain(&etcd),
            }
        }
        Self::with_pods(lab, etcd, first, second)
    }

    /// Gives a pod to each of two nodes that know each other, and waits until both talk.
    ///
    /// # Panics
    /// They do not.
    #[track_caller]
    pub fn with_pods(lab: Lab, etcd: Etcd, left: Node, right: Node) -> Self {
        Self::silent(lab, etcd, left, right).talking()
    }

    /// Gives a pod to each of two nodes, which may not reach each other yet.
    ///
    /// # Panics
    /// A node has no subnet.
    pub fn silent(lab: Lab, etcd: Etcd, left: Node, right: Node) -> Self {
        let client = left.pod(2);
        let mut server = right.pod(2);
        server.serve();
        Self { client, server, left, right, etcd, lab }
    }

    #[track_caller]
    fn talking(self) -> Self {
        // Neighbour entries of pods and underlay, veths attached.
        wait::holds("ping between the pods", Duration::from_secs(15), || {
            self.client.netns.ping(self.server.address, "-c 3 -i 0.2 -W 2").0
        });
        self
    }

    /// Runs the traffic client from `client` to `server`.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn traffic<R>(&self, load: Load<R>, options: &str) -> R {
        self.client.traffic(load, self.server.target(), options)
    }

    /// Lets the left node translate [`SERVICE`] to `server`.
    ///
    /// # Panics
    /// nft refuses.
    pub fn serve_translated(&self) {
        self.left.netns.nft(&format!(
            "table ip service {{
                chain prerouting {{
                    type nat hook prerouting priority -100;
                    ip daddr {0} tcp dport {1} dnat to {2}
                    ip daddr {0} udp dport {1} dnat to {2}
                }}
            }}",
            SERVICE.ip(),
            SERVICE.port(),
            self.server.target()
        ));
    }

    /// Random data of many sizes and forms, both ways; all of it has to arrive
    /// as it was.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn check_integrity(&self, megabytes: u32) {
        for (load, options) in [
            (MESSAGES, "--from 1 --upto 1450".to_owned()),
            (ECHOES, "--from 1 --upto 1450".to_owned()),
            (BULK, format!("--megabytes {megabytes}")),
            // Fewer segments than the kernel allows in one packet (64).
            (ECHOES, "--from 20000 --upto 20009 --segment 1000".to_owned()),
        ] {
            let result = self.traffic(load, &options);
            assert!(result.is_whole(), "{load} {options}: {result:?}");
        }
    }

    /// Waits until the fast path carries both directions on both nodes.
    ///
    /// # Panics
    /// A packet is lost, or the fast path does not within five seconds.
    #[track_caller]
    pub fn fast_both_ways(&self) {
        let nodes = [&self.left, &self.right];
        wait::holds("the fast path", Duration::from_secs(5), || {
            let before = nodes.map(Node::outcomes);
            assert_whole(&self.traffic(SPACED, "--seconds 1"));
            nodes.iter().zip(&before).all(|(node, before)| {
                let since = node.outcomes().since(before);
                since.get(Outcome::FastEncap) > 100 && since.get(Outcome::FastDecap) > 100
            })
        });
    }

    /// Acts one second after the begin of a stream ([`Pair::start_spaced`]), which goes on
    /// for `time` in all.
    ///
    /// # Panics
    /// A datagram is lost, or was not sent.
    #[track_caller]
    pub fn nothing_lost(&mut self, time: Duration, act: impl FnOnce(&mut Self)) {
        let running = self.start_spaced(time);
        thread::sleep(Duration::from_secs(1));
        act(self);
        let spaced = running.finish();
        assert_eq!(spaced.lost, 0, "{spaced:?}");
        assert_eq!(u128::from(spaced.sent), time.as_millis(), "{spaced:?}");
    }

    /// A stream of one datagram per millisecond, there and back.
    pub fn start_spaced(&self, time: Duration) -> RunningLoad<Spaced> {
        self.start_spaced_by(time, Duration::from_millis(1))
    }

    /// A stream of one datagram per `interval`, there and back.
    pub fn start_spaced_by(&self, time: Duration, interval: Duration) -> RunningLoad<Spaced> {
        let (seconds, interval) = (time.as_secs_f64(), interval.as_micros());
        let options = format!("--seconds {seconds} --interval-us {interval}");
        self.client.start_traffic(SPACED, self.server.target(), &options)
    }
}
