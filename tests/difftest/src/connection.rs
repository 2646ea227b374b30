//! One connection, packet by packet, as both pods would speak it. Pure.

use etherparse::TcpHeader;
use rand::Rng;
use rand::rngs::StdRng;

use super::backend::Backend;
use super::draft::Transport;
use super::kind::Ends;
use super::slots::Slot;
use super::world::{LEFT, RIGHT, Side};

/// Where a connection stands: what it sends next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// SYN, or a client's first datagram.
    Open,
    /// Its answer.
    Answer,
    /// The last packet of a TCP handshake.
    Settle,
    /// Anything, in any direction.
    Data,
    /// FIN of the side that ends it.
    Fin,
    /// FIN of the other.
    Back,
    /// The answer to that.
    Last,
    /// RST.
    Reset,
    /// Nothing.
    Over,
}

/// What a pod says next.
#[derive(Clone, Debug)]
pub struct Word {
    /// By the one that opened the connection.
    pub request: bool,
    /// Ports and what belongs to them.
    pub transport: Transport,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// A connection that lives.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Which one.
    pub slot: Slot,
    /// Who opened it.
    pub client: Side,
    /// Its addresses and ports.
    pub ends: Ends,
    /// TTL of its packets.
    pub ttl: u8,
    phase: Phase,
    /// Data packets that are still to come.
    left: u16,
    /// Next sequence numbers, of the client and of the server.
    seq: [u32; 2],
    /// The client ends it.
    client_ends: bool,
}

impl Connection {
    /// One that the pod opens from this port, with so many data packets.
    pub fn new(slot: Slot, port: u16, left: u16, backend: Backend, rng: &mut StdRng) -> Self {
        let client = if slot.from_left { LEFT } else { RIGHT };
        Self {
            slot,
            client,
            ends: slot.kind.ends(client, port, backend),
            ttl: rng.random_range(16..=200),
            phase: Phase::Open,
            left,
            seq: rng.random(),
            client_ends: rng.random(),
        }
    }

    /// The pod opens it again, from the same port.
    pub fn again(&self, left: u16, backend: Backend, rng: &mut StdRng) -> Self {
        Self::new(self.slot, self.ends.client.1, left, backend, rng)
    }

    /// Whether its order to other packets does not matter.
    pub fn is_loose(&self) -> bool {
        self.phase == Phase::Data
    }

    /// Whether nothing comes any more.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// What is said next.
    pub fn speak(&mut self, rng: &mut StdRng) -> Word {
        if self.slot.tcp { self.segment(rng) } else { self.datagram(rng) }
    }

    fn datagram(&mut self, rng: &mut StdRng) -> Word {
        let request = match self.phase {
            Phase::Open => true,
            Phase::Answer => false,
            _ => rng.random(),
        };
        self.phase = match self.phase {
            Phase::Open => Phase::Answer,
            _ => self.after_data(Phase::Over),
        };
        let (from, to) = self.ports(request);
        Word { request, transport: Transport::Udp(from, to), payload: payload(rng) }
    }

    fn segment(&mut self, rng: &mut StdRng) -> Word {
        let phase = self.phase;
        let request = match phase {
            Phase::Open | Phase::Settle => true,
            Phase::Answer => false,
            Phase::Fin | Phase::Last => self.client_ends,
            Phase::Back => !self.client_ends,
            Phase::Data | Phase::Reset | Phase::Over => rng.random(),
        };
        let payload = if phase == Phase::Data { payload(rng) } else { Vec::new() };
        let (from, to) = self.ports(request);
        let (mine, other) = if request { (0, 1) } else { (1, 0) };
        let mut tcp = TcpHeader::new(from, to, self.seq[mine], u16::MAX);
        tcp.syn = matches!(phase, Phase::Open | Phase::Answer);
        tcp.fin = matches!(phase, Phase::Fin | Phase::Back);
        tcp.rst = phase == Phase::Reset;
        tcp.psh = phase == Phase::Data && rng.random();
        tcp.ack = phase != Phase::Open;
        if tcp.ack {
            tcp.acknowledgment_number = self.seq[other];
        }
        let length = u32::try_from(payload.len()).expect("a short packet");
        // What would follow on is merged by GRO on the kernel path only.
        let gap = u32::from(phase == Phase::Data);
        let taken = length + gap + u32::from(tcp.syn || tcp.fin);
        self.seq[mine] = self.seq[mine].wrapping_add(taken);
        self.phase = match phase {
            Phase::Open => Phase::Answer,
            Phase::Answer => Phase::Settle,
            Phase::Settle => Phase::Data,
            Phase::Data => {
                self.after_data(if rng.random_bool(0.75) { Phase::Fin } else { Phase::Reset })
            }
            Phase::Fin => Phase::Back,
            Phase::Back => Phase::Last,
            Phase::Last | Phase::Reset | Phase::Over => Phase::Over,
        };
        Word { request, transport: Transport::Tcp(tcp), payload }
    }

    fn after_data(&mut self, end: Phase) -> Phase {
        self.left = self.left.saturating_sub(1);
        if self.left > 0 { Phase::Data } else { end }
    }

    /// Source and destination port of what one of the pods sends.
    fn ports(&self, request: bool) -> (u16, u16) {
        if request {
            (self.ends.client.1, self.ends.target.1)
        } else {
            (self.ends.server.1, self.ends.source.1)
        }
    }
}

/// Mostly short, sometimes nearly a full packet.
fn payload(rng: &mut StdRng) -> Vec<u8> {
    let most = if rng.random_bool(0.8) { 100 } else { 1390 };
    let mut payload = vec![0; rng.random_range(0..most)];
    rng.fill(&mut payload[..]);
    payload
}
