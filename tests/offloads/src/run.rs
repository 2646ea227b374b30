//! Runs combinations.

use std::collections::HashMap;
use std::net::SocketAddrV4;

use super::cells::{Cell, Load, Path, Receiver, Underlay, Veth};
use super::device;
use super::receiver::{Behind, Capture, Passing};
use super::wire::{Judge, Rules};
use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::load::{BULK, ECHOES, MESSAGES, Whole as _};
use flannel_tests::netns::Netns;
use flannel_tests::node::Node;
use flannel_tests::packet::Wire;
use flannel_tests::pair::{Kind, Pair};
use flannel_tests::told::Outcomes;
use flannel_tests::traffic::counters;

/// MTU of the underlay, in bytes.
const UNDERLAY_MTU: usize = 1500;
/// How often a combination may send more again than the kernel path before
/// that counts: what two processors reorder differs from run to run.
const TRIES: usize = 3;

/// What was seen of one combination.
#[derive(Debug, Default)]
pub struct Seen {
    /// TCP segments sent again, by both ends.
    pub retransmits: u64,
    /// TCP segments sent, by both ends.
    pub segments: u64,
    /// Tunnel packets on the underlay that were judged.
    pub packets: usize,
    /// Inner checksums among them that were there, and right.
    pub verified: usize,
    /// Largest frame that the pod was seen to get, if somebody looked, in bytes.
    pub largest: usize,
    /// What was wrong.
    pub complaints: Vec<String>,
}

/// Two nodes, and what stands behind the pod of the second.
struct Site {
    // In the order in which they have to go.
    behind: Behind,
    machine: Behind,
    pair: Pair,
    ebpf: Vec<bool>,
    set: Option<(Veth, Veth, Underlay)>,
}

/// The nodes of all paths.
pub struct Matrix {
    kernel: Site,
    sites: HashMap<Path, Site>,
    /// What the kernel path did, by combination without its path.
    before: HashMap<Cell, (u64, u64)>,
}

impl Matrix {
    /// Starts the nodes.
    ///
    /// # Panics
    /// One does not start.
    pub fn new() -> Self {
        let sites = Path::ALL.iter().map(|&path| {
            let ebpf = [path != Path::Right, path != Path::Left];
            (path, Site::new(ebpf))
        });
        Self { kernel: Site::new([false, false]), sites: sites.collect(), before: HashMap::new() }
    }

    /// Runs one combination; what is wrong with it, or what was seen.
    ///
    /// # Panics
    /// A command fails, or the load does not end.
    pub fn run(&mut self, cell: Cell) -> Seen {
        let key = Cell { path: Path::Both, ..cell };
        let kernel = &mut self.kernel;
        let (again, segments) = *self.before.entry(key).or_insert_with(|| {
            let seen = kernel.run(cell);
            // What the kernel path does wrong is a fault of these checks.
            assert!(seen.complaints.is_empty(), "kernel path, {cell}: {:?}", seen.complaints);
            (seen.retransmits, seen.segments)
        });
        let site = self.sites.get_mut(&cell.path).expect("nodes for every path");
        let mut seen = site.run(cell);
        for _ in 1..TRIES {
            if !seen.complaints.is_empty() || seen.retransmits <= allowed(again, seen.segments) {
                return seen;
            }
            seen = site.run(cell);
        }
        if seen.retransmits > allowed(again, seen.segments) {
            seen.complaints.push(format!(
                "{} of {} segments sent again, by the kernel path {again} of {segments}",
                seen.retransmits, seen.segments
            ));
        }
        seen
    }
}

impl Default for Matrix {
    fn default() -> Self {
        Self::new()
    }
}

/// Segments that may be sent again where the kernel path sends `kernel` again:
/// one of a hundred more.
fn allowed(kernel: u64, segments: u64) -> u64 {
    kernel + 10 + segments / 100
}

impl Site {
    fn new(ebpf: [bool; 2]) -> Self {
        let [left, right] =
            ebpf.map(|ebpf| Kind::Agent(if ebpf { Options::ebpf() } else { Options::kernel() }));
        let pair = Pair::new(&left, &right);
        Self {
            behind: Behind::veth(&pair),
            machine: Behind::machine(&pair),
            pair,
            ebpf: ebpf.to_vec(),
            set: None,
        }
    }

    /// The nodes whose tunnel end the programs make.
    fn programmed(&self) -> impl Iterator<Item = &Node> {
        let nodes = [&self.pair.left, &self.pair.right];
        nodes.into_iter().zip(&self.ebpf).filter(|(_, ebpf)| **ebpf).map(|(node, _)| node)
    }

    /// The namespaces that packets pass on their way.
    fn places(&self) -> [&Netns; 6] {
        let pair = &self.pair;
        [
            &pair.client.netns,
            &pair.left.netns,
            &pair.right.netns,
            &pair.server.netns,
            &self.behind.netns,
            &self.machine.netns,
        ]
    }

    fn set(&mut self, cell: Cell) {
        let wanted = (cell.pod, cell.host, cell.underlay);
        if self.set == Some(wanted) {
            return;
        }
        let pair = &self.pair;
        for (node, pod) in [(&pair.left, &pair.client), (&pair.right, &pair.server)] {
            device::set_veth(&pod.netns, "eth0", cell.pod);
            device::set_veth(&node.netns, &pod.veth, cell.host);
            device::set_underlay(&node.netns, "eth0", cell.underlay);
        }
        for port in ["p1", "p2"] {
            device::set_port(pair.lab.underlay(), port, cell.underlay);
        }
        self.set = Some(wanted);
    }

    fn limit(&self, bytes: u32) -> bool {
        let pods = [&self.pair.client, &self.pair.server];
        pods.into_iter().all(|pod| device::limit(&pod.netns, "eth0", bytes))
    }

    fn run(&mut self, cell: Cell) -> Seen {
        self.set(cell);
        let big = cell.load == Load::BigTcp;
        if big {
            assert!(self.limit(device::BIG), "this kernel has no BIG TCP of IPv4");
        }
        let passing =
            (cell.receiver == Receiver::Xdp).then(|| Passing::attach(&self.pair.server.netns));
        let capture =
            (cell.receiver == Receiver::Capture).then(|| Capture::open(&self.pair.server.netns));
        let pod = &self.pair.server;
        let (target, far) = match cell.receiver {
            Receiver::Forwards => (self.behind.target, &self.behind.netns),
            Receiver::Machine => (self.machine.target, &self.machine.netns),
            _ => (pod.target(), &pod.netns),
        };
        let ends = [&self.pair.client.netns, far];
        let outcomes: Vec<_> = self.programmed().map(Node::outcomes).collect();
        // Between the nodes: what a node gets, it may merge before it is captured.
        let wire = Wire::open(self.pair.lab.underlay(), "p1");
        let tcp = |name| ends.iter().map(|end| tcp(end, name)).sum::<u64>();
        let drops = || self.places().map(device::transmit_drops).iter().sum::<u64>();
        let before = (tcp("RetransSegs"), tcp("OutSegs"), drops());

        let mut seen = Seen { complaints: self.load(cell.load, target), ..Seen::default() };

        seen.retransmits = tcp("RetransSegs") - before.0;
        seen.segments = tcp("OutSegs") - before.1;
        let dropped = drops() - before.2;
        // TCP fills queues until they drop; that shows as segments sent again.
        if dropped > 0 && !matches!(cell.load, Load::Tcp | Load::BigTcp) {
            seen.complaints.push(format!("{dropped} packets dropped by devices"));
        }
        self.judge(cell, &wire, &mut seen);
        for (node, before) in self.programmed().zip(&outcomes) {
            let since = node.outcomes().since(before);
            if let Some(wrong) = unexpected(cell, &since) {
                seen.complaints.push(format!("{}: {wrong}: {since:?}", node.address));
            }
        }
        if let Some(capture) = capture {
            let (largest, wrong) = capture.end();
            seen.largest = largest;
            seen.complaints.extend(wrong);
        }
        drop(passing);
        if big {
            self.limit(device::PLAIN);
        }
        seen
    }

    /// Sends; what did not arrive as it was.
    fn load(&self, load: Load, target: SocketAddrV4) -> Vec<String> {
        let parts: &[_] = match load {
            Load::Tcp => &[(MESSAGES, "--from 1300 --upto 1500"), (BULK, "--megabytes 6")],
            Load::Udp => &[(ECHOES, "--from 1 --upto 400")],
            // The last ones would be longer than 64 KiB with the outer headers.
            Load::UdpGso => &[
                (ECHOES, "--from 20000 --upto 20019 --segment 1000"),
                (ECHOES, "--from 65420 --upto 65440 --segment 1400"),
            ],
            Load::NearMtu => &[(ECHOES, "--from 1415 --upto 1435")],
            Load::BigTcp => &[(BULK, "--megabytes 12")],
        };
        let mut complaints = Vec::new();
        for (load, options) in parts {
            let result = self.pair.client.traffic(*load, target, options);
            if !result.is_whole() {
                complaints.push(format!("{load} {options}: {result:?}"));
            }
        }
        complaints
    }

    fn judge(&self, cell: Cell, wire: &Wire, seen: &mut Seen) {
        let whole = cell.underlay == Underlay::On;
        let mtu = |mtu| if whole { usize::from(u16::MAX) } else { mtu };
        let mut judge = Judge::new(Rules {
            mtu: mtu(UNDERLAY_MTU),
            overlay_mtu: mtu(UNDERLAY_MTU - 50),
            checksums: cell.underlay == Underlay::Off,
        });
        wire.waiting(|frame| judge.see(frame));
        seen.packets = judge.packets;
        seen.verified = judge.verified;
        seen.complaints.extend(judge.complaint());
        if judge.packets == 0 || (cell.underlay == Underlay::Off && judge.verified == 0) {
            seen.complaints.push(format!("{} packets captured", judge.packets));
        }
    }
}

/// What is wrong with the outcomes that a node counted.
fn unexpected(cell: Cell, since: &Outcomes) -> Option<&'static str> {
    let streams = matches!(cell.load, Load::Tcp | Load::BigTcp);
    let aggregates = since.get(Outcome::KernelAggregate);
    let inwards = since.get(Outcome::FastDecap) + since.get(Outcome::FastAggregate);
    if since.get(Outcome::KernelNoRoom) + since.get(Outcome::DropBroken) > 0 {
        return Some("packets could not be resized");
    }
    if since.get(Outcome::FastEncap) == 0 || inwards == 0 {
        return Some("not on the fast path both ways");
    }
    if cell.underlay == Underlay::Off && aggregates > 0 {
        return Some("aggregates, of a wire without them");
    }
    // GRO over a veth does not merge what has an outer UDP checksum, as the
    // kernel's device sends it: nobody has checked that before. Nor does it
    // wait for packets that come one by one.
    let merged = streams
        && cell.path == Path::Both
        && cell.pod == Veth::On
        && cell.underlay != Underlay::Off
        && cell.receiver != Receiver::Forwards;
    let handed = since.get(Outcome::FastAggregate) > 0 && aggregates > 0;
    (merged && !handed).then_some("no aggregate was handed on by the device")
}

fn tcp(netns: &Netns, name: &str) -> u64 {
    let text = netns.sh("cat /proc/net/snmp");
    counters::tcp(&text, name).unwrap_or_else(|| panic!("no {name} in {text}"))
}
