//! The sequence of packets that a seed gives. Pure.

use std::net::Ipv4Addr;

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, TcpHeader};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::backend::Backend;
use super::draft::{Draft, Edit, Transport};
use super::expected::Expected;
use super::kind::Kind;
use super::mode::Mode;
use super::oddity::Oddity;
use super::place::Sender;
use super::pool::Pool;
use super::world::{ABSENT, LEFT, MTU, PORT, RIGHT, Side, VNI};

/// Identifications from here on are not given to packets.
pub const KEYS: u16 = 0xfff0;
/// Conversations that packets belong to, two flows each.
const CONVERSATIONS: u16 = 24;

/// Longest frame that the underlay carries.
const fn wire_most(backend: Backend) -> usize {
    match backend {
        Backend::Vxlan => 14 + 1500,
        Backend::HostGw => 14 + MTU,
    }
}

/// What can be odd about a tunnel packet besides what can be odd about any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TunnelOddity {
    /// Another VNI.
    Vni,
    /// Other flags.
    Flags,
    /// Reserved bits that are set.
    Reserved,
    /// Another port.
    Port,
}

impl TunnelOddity {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Vni, Self::Flags, Self::Reserved, Self::Port];
}

/// What is odd about a packet; nothing: it is plain.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Oddities {
    /// About the pods' packet.
    pub inner: Vec<Oddity>,
    /// About the tunnel packet around it.
    pub outer: Vec<Oddity>,
    /// About the VXLAN header.
    pub tunnel: Vec<TunnelOddity>,
}

impl Oddities {
    /// Whether nothing is odd.
    pub fn none(&self) -> bool {
        self.inner.is_empty() && self.outer.is_empty() && self.tunnel.is_empty()
    }
}

/// Whose packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// What the rules do with the connection.
    pub kind: Kind,
    /// By the pod that opened it, else an answer.
    pub request: bool,
}

/// One packet: the same for both paths.
#[derive(Clone, Debug)]
pub struct Step {
    /// IP identification, by which it is known again; for a tunnel packet the
    /// outer one too.
    pub key: u16,
    /// Who sends it.
    pub sender: Sender,
    /// Part of a connection; else one of the packets that hang together by
    /// addresses and ports only.
    pub part: Option<Part>,
    /// What the kernel path has to make of it, if it is known.
    pub expected: Option<Expected>,
    /// Everything that was sent before has to have arrived.
    pub waits: bool,
    /// What is odd about it.
    pub oddities: Oddities,
    /// The frame, or its fragments.
    pub frames: Vec<Vec<u8>>,
}

impl Step {
    /// One that belongs to no connection.
    pub(super) fn new(key: u16, sender: Sender, oddities: Oddities, frames: Vec<Vec<u8>>) -> Self {
        Self { key, sender, part: None, expected: None, waits: false, oddities, frames }
    }
}

/// An endless sequence of packets.
pub struct Generator {
    pub(super) rng: StdRng,
    next: u16,
    pub(super) mode: Mode,
    pub(super) pool: Pool,
}

impl Generator {
    /// The sequence of this seed.
    pub fn new(mode: Mode, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let pool = Pool::new(mode, &mut rng);
        Self { rng, next: 0, mode, pool }
    }

    pub(super) fn key(&mut self) -> u16 {
        // 0 is what kernels write where they need none.
        self.next = self.next % (KEYS - 1) + 1;
        self.next
    }

    fn inner(&mut self, from: Side, key: u16) -> Draft {
        let rng = &mut self.rng;
        let number = rng.random_range(0..CONVERSATIONS);
        let to = if number % 8 == 7 { ABSENT } else { from.other() };
        // Both directions are one conversation: conntrack looks at it as such.
        let (client, server) = (20_000 + number, 30_000 + number % 5);
        let ports = if from.pod() == LEFT.pod() { (client, server) } else { (server, client) };
        let (transport, protocol) = if number % 2 == 0 {
            (Transport::Udp(ports.0, ports.1), IpNumber::UDP)
        } else {
            let mut tcp = TcpHeader::new(ports.0, ports.1, rng.random(), rng.random());
            (tcp.ack, tcp.psh) = (true, rng.random());
            tcp.acknowledgment_number = rng.random();
            (Transport::Tcp(tcp), IpNumber::TCP)
        };
        let length = if rng.random_bool(0.8) { 100 } else { 1400 };
        let mut payload = vec![0; rng.random_range(0..length)];
        rng.fill(&mut payload[..]);
        let mut ip = Ipv4Header::new(
            0,
            rng.random_range(4..=255),
            protocol,
            from.pod().octets(),
            to.pod().octets(),
        )
        .expect("no payload yet");
        ip.identification = key;
        ip.dont_fragment = rng.random();
        Draft {
            eth: ethernet(from.pod_mac(), from.gateway_mac()),
            tags: Vec::new(),
            ip,
            transport,
            payload,
            edits: Vec::new(),
        }
    }

    /// Zero to three of them, as odd as wanted.
    pub(super) fn oddities<T: Copy + PartialEq>(&mut self, all: &[T]) -> Vec<T> {
        let wanted = [1, 1, 1, 2, 2, 3].choose(&mut self.rng).copied().unwrap_or(1);
        let mut chosen: Vec<T> = Vec::new();
        for _ in 0..wanted {
            let one = *all.choose(&mut self.rng).expect("there are some");
            if !chosen.contains(&one) {
                chosen.push(one);
            }
        }
        chosen
    }

    fn of_pod(&mut self, from: Side, odd: bool) -> Step {
        let key = self.key();
        let mut draft = self.inner(from, key);
        let mut oddities = Oddities::default();
        if odd {
            oddities.inner = self.oddities(Oddity::ALL);
        }
        self.make_odd(&mut draft, &oddities.inner);
        let frames = draft.frames();
        Step::new(key, Sender::Pod(from), oddities, frames)
    }

    fn of_wire(&mut self, from: Side, odd: bool) -> Step {
        let key = self.key();
        let mut inner = self.inner(from, key);
        inner.ip.destination = from.other().pod().octets();
        let mut oddities = Oddities::default();
        if odd {
            match self.rng.random_range(0..6) {
                0 => oddities.inner = self.oddities(Oddity::ALL),
                1 => oddities.tunnel = self.oddities(TunnelOddity::ALL),
                // All ECN bits within all ECN bits.
                2 => (oddities.inner, oddities.outer) = (vec![Oddity::Tos], vec![Oddity::Tos]),
                _ => oddities.outer = self.oddities(Oddity::ALL),
            }
        }
        if self.mode.backend() == Backend::HostGw {
            // There is one header only.
            oddities.inner.append(&mut oddities.outer);
            oddities.tunnel.clear();
        }
        self.forward(from, &mut inner);
        self.make_odd(&mut inner, &oddities.inner);
        self.on_wire(from, key, &inner, oddities)
    }

    /// Makes a pod's packet what its node would make of it.
    pub(super) fn forward(&self, from: Side, inner: &mut Draft) {
        inner.ip.time_to_live -= 1;
        inner.eth = match self.mode.backend() {
            Backend::Vxlan => ethernet(from.vtep_mac(), from.other().vtep_mac()),
            Backend::HostGw => ethernet(from.node_mac(), from.other().node_mac()),
        };
    }

    /// A packet that was forwarded, on the underlay.
    pub(super) fn on_wire(
        &mut self,
        from: Side,
        key: u16,
        inner: &Draft,
        oddities: Oddities,
    ) -> Step {
        let frames = match self.mode.backend() {
            Backend::Vxlan => self.tunnelled(from, key, inner, &oddities),
            Backend::HostGw => inner.frames(),
        };
        let most = wire_most(self.mode.backend());
        let cut = |mut frame: Vec<u8>| {
            frame.truncate(most);
            frame
        };
        let frames = frames.into_iter().map(cut).collect();
        Step::new(key, Sender::Wire(from), oddities, frames)
    }

    pub(super) fn make_odd(&mut self, draft: &mut Draft, oddities: &[Oddity]) {
        for oddity in oddities {
            oddity.apply(draft, &mut self.rng);
        }
    }

    fn tunnelled(
        &mut self,
        from: Side,
        key: u16,
        inner: &Draft,
        oddities: &Oddities,
    ) -> Vec<Vec<u8>> {
        let inner = inner.frames().swap_remove(0);
        let mut outer = self.outer(from, key, &inner);
        // What it carries is its length.
        let fit = oddities.outer.iter().copied().filter(|odd| *odd != Oddity::Length);
        self.make_odd(&mut outer, &fit.collect::<Vec<_>>());
        for oddity in &oddities.tunnel {
            self.tunnel(*oddity, &mut outer);
        }
        outer.frames()
    }

    fn outer(&mut self, from: Side, key: u16, inner: &[u8]) -> Draft {
        let (source, destination): (Ipv4Addr, Ipv4Addr) = (from.node(), from.other().node());
        let mut ip = Ipv4Header::new(0, 64, IpNumber::UDP, source.octets(), destination.octets())
            .expect("no payload yet");
        ip.identification = key;
        let mut payload = vec![8, 0, 0, 0];
        payload.extend((VNI << 8).to_be_bytes());
        payload.extend(inner);
        let edits = if self.rng.random() {
            vec![Edit::Transport { at: 6, bytes: vec![0, 0] }]
        } else {
            Vec::new()
        };
        Draft {
            eth: ethernet(from.node_mac(), from.other().node_mac()),
            tags: Vec::new(),
            ip,
            transport: Transport::Udp(self.rng.random_range(0..=u16::MAX), PORT),
            payload,
            edits,
        }
    }

    fn tunnel(&mut self, oddity: TunnelOddity, outer: &mut Draft) {
        let rng = &mut self.rng;
        match oddity {
            TunnelOddity::Vni => outer.payload[4 + rng.random_range(0..3)] ^= 1,
            TunnelOddity::Flags => outer.payload[0] = rng.random(),
            TunnelOddity::Reserved => {
                let at = *[1, 2, 3, 7].choose(rng).expect("four bytes");
                outer.payload[at] = 1 << rng.random_range(0..8);
            }
            TunnelOddity::Port => {
                let to = *[0, 4789, 8473, 9].choose(rng).expect("four ports");
                outer.transport = Transport::Udp(54_321, to);
            }
        }
    }
}

pub(super) fn ethernet(source: [u8; 6], destination: [u8; 6]) -> Ethernet2Header {
    Ethernet2Header { source, destination, ether_type: EtherType::IPV4 }
}

impl Iterator for Generator {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.rng.random_range(0..100) < self.mode.share_of_connections()
            && let Some(next) = self.pool.next(&mut self.rng)
        {
            return Some(self.of_connection(next));
        }
        let from = if self.rng.random() { LEFT } else { RIGHT };
        // Plain packets keep flows confirmed, so that odd ones meet the fast
        // path.
        Some(match self.rng.random_range(0..100) {
            0..50 => self.of_pod(from, false),
            50..80 => self.of_pod(from, true),
            80..84 => self.of_wire(from, false),
            _ => self.of_wire(from, true),
        })
    }
}
