//! One case on the kernel path and on ours, one beside the other: the kernel
//! path says what is right.

use std::fmt;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use crate::agent::Options;
use crate::endpoint::Sink;
use crate::etcd::Etcd;
use crate::lab::Lab;
use crate::link::Traffic;
use crate::netns::Netns;
use crate::node::Node;
use crate::packet::Wire;
use crate::pair::Pair;
use crate::told::Outcomes;
use crate::wait;
use flannel_ebpf::abi::Outcome;

/// UDP port of the tunnel.
pub const TUNNEL: u16 = 8472;

/// What carries the packets of a lane's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `--datapath=kernel`: the reference.
    Kernel,
    /// `--datapath=ebpf`.
    Ebpf,
}

impl Way {
    /// The reference first.
    pub const BOTH: [Way; 2] = [Way::Kernel, Way::Ebpf];

    /// These options, with this data path.
    pub fn options(self, options: &Options) -> Options {
        let datapath = match self {
            Self::Kernel => "kernel",
            Self::Ebpf => "ebpf",
        };
        Options { datapath: Some(datapath), ..options.clone() }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel path",
            Self::Ebpf => "eBPF path",
        })
    }
}

/// Says of a case that fails on which path it does.
struct Judged(Way);

impl Drop for Judged {
    fn drop(&mut self) {
        let verdict = if thread::panicking() { "FAILED" } else { "holds" };
        eprintln!("{}: {verdict}", self.0);
    }
}

/// Runs a case on the kernel path, then on ours; what it saw on each.
pub fn beside<T>(mut case: impl FnMut(Way) -> T) -> [T; 2] {
    Way::BOTH.map(|way| {
        let _judged = Judged(way);
        case(way)
    })
}

/// As [`beside`], each time with a new pair of agents.
pub fn pairs<T>(options: &Options, mut case: impl FnMut(&mut Pair, Way) -> T) -> [T; 2] {
    beside(|way| case(&mut Pair::agents(&way.options(options)), way))
}

/// A pair of nodes that `prepare` may change before the agents start.
///
/// # Panics
/// The nodes do not come up.
#[track_caller]
pub fn prepared(options: [&Options; 2], prepare: impl FnOnce(&Lab, &Etcd, [&mut Node; 2])) -> Pair {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    prepare(&lab, &etcd, [&mut left, &mut right]);
    Pair::acquainted(lab, etcd, (left, right), options)
}

/// Waits until pings between the pods are answered.
///
/// # Panics
/// They are not within 15 s.
#[track_caller]
pub fn wait_ping(pair: &Pair) {
    wait::holds("ping between the pods", Duration::from_secs(15), || {
        pair.client.netns.ping(pair.server.address, "-c 2 -i 0.2 -W 1").0
    });
}

/// A second link between two nodes, `eth1` on both, with the addresses
/// 10.98.0.1 and 10.98.0.2.
pub fn second_link(left: &Node, right: &Node) -> [Ipv4Addr; 2] {
    let other = right.netns.name();
    left.netns.ip(&format!("link add eth1 type veth peer name eth1 netns {other}"));
    let addresses = [Ipv4Addr::new(10, 98, 0, 1), Ipv4Addr::new(10, 98, 0, 2)];
    for (netns, address) in [&left.netns, &right.netns].into_iter().zip(addresses) {
        netns.ip_batch(&[
            format!("address add {address}/24 dev eth1"),
            "link set eth1 up".to_owned(),
        ]);
    }
    addresses
}

/// Tunnel packets that were on an interface, both directions, since the last
/// look: their IPv4 lengths.
pub fn tunnel_packets(wire: &Wire) -> Vec<u16> {
    let mut found = Vec::new();
    wire.waiting(|frame| found.extend(tunnel_length(frame)));
    found
}

/// Length of the outer IPv4 packet, if this is a tunnel packet (or its first
/// fragment).
fn tunnel_length(frame: &[u8]) -> Option<u16> {
    let field = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let udp = field(12)? == 0x0800 && *frame.get(14)? == 0x45 && *frame.get(23)? == 17;
    (udp && field(36)? == TUNNEL && field(20)? & 0x1fff == 0).then(|| field(16))?
}

/// What a stream from `client` to `server` brings in Mbit/s: before `limit`
/// is called, and from 0.3 s after it on.
pub fn limited(pair: &Pair, limit: impl FnOnce(&Pair)) -> [f64; 2] {
    let sink = Sink::open(&pair.server.netns, pair.server.address, 7003);
    let _source = sink.source(&pair.client.netns, 0);
    thread::sleep(Duration::from_millis(300));
    let before = sink.rate(Duration::from_millis(400));
    limit(pair);
    thread::sleep(Duration::from_millis(300));
    [before, sink.rate(Duration::from_millis(1500))]
}

/// Asserts that a limit of 5 Mbit/s held, and let something pass.
///
/// # Panics
/// It did not.
#[track_caller]
pub fn assert_five_mbit(rate: f64) {
    // The burst is 32 kB, or 0.2 Mbit/s of such a measurement.
    assert!((1.5..7.0).contains(&rate), "{rate:.1} Mbit/s at a limit of 5");
}

/// How a node's packets to and from its peers' pods went so far.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// By the fast path, from veth to underlay or back.
    fast: u64,
    /// Through the kernel's path, wholly or up to the VXLAN device.
    kernel: u64,
}

impl Carried {
    /// Reads it; the node has the programs.
    ///
    /// # Panics
    /// The agent does not answer.
    #[track_caller]
    pub fn of(node: &Node) -> Self {
        let outcomes = node.outcomes();
        let shortcut = outcomes.get(Outcome::ShortcutEncap) + outcomes.get(Outcome::ShortcutDecap);
        let Traffic { rx, tx } = node.netns.link("flannel.1").traffic;
        let device = rx.packets + tx.packets;
        // Aggregates come through the device and leave the kernel's path there.
        let device = device.saturating_sub(outcomes.get(Outcome::FastAggregate));
        Self { fast: outcomes.fast(), kernel: shortcut + device }
    }

    /// Share (0..=1) of the fast path since `before`.
    pub fn share_since(&self, before: &Self) -> f64 {
        let fast = (self.fast - before.fast) as f64;
        fast / (fast + self.kernel.saturating_sub(before.kernel) as f64).max(1.0)
    }
}

/// Packets that failed the source check, whatever the reason.
pub fn forged(outcomes: &Outcomes) -> u64 {
    let forged = outcomes.by_name().iter().filter(|(name, _)| name.starts_with("forged_"));
    forged.map(|(_, count)| count).sum()
}

/// Bytes that a class of an HTB qdisc has sent.
///
/// # Panics
/// There is no such class.
#[track_caller]
pub fn class_bytes(netns: &Netns, device: &str, class: &str) -> u64 {
    let text = netns.sh(&format!("tc -s class show dev {device}"));
    let mut lines =
        text.lines().skip_while(|line| !line.starts_with(&format!("class htb {class}")));
    let sent = lines.nth(1).and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    sent.unwrap_or_else(|| panic!("no class {class} in {text}"))
}
