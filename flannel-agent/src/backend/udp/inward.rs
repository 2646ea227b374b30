//! From the peers to the TUN device: one worker for each socket.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::Arc;

use quinn_udp::RecvMeta;

use super::coalesce::{self, MOST};
use super::counters::Outcome;
use super::outward::refuse;
use super::packet::{self, Header, IcmpError};
use super::receiver::Receiver;
use super::routes::{PeerRoutes, Sender};
use super::segment::Vnet;
use super::shared::{SharedByWorkers, View};
use super::socket::{BATCH, Socket, TRAIN};
use super::tun::Queue;
use crate::bpf::VerifySource;

/// Takes datagrams from a socket and gives the packets to the kernel.
pub(super) struct Inward {
    queue: Arc<Queue>,
    receiver: Receiver,
    shared: Arc<SharedByWorkers>,
    view: View,
    buffer: Vec<u8>,
    metas: [RecvMeta; BATCH],
    /// Packets of the buffer that may pass, in order.
    passed: Vec<Range<usize>>,
}

impl Inward {
    pub(super) fn new(
        queue: Arc<Queue>,
        socket: Arc<Socket>,
        shared: Arc<SharedByWorkers>,
    ) -> Self {
        Self {
            queue,
            receiver: Receiver::new(socket),
            view: View::of(&shared),
            shared,
            buffer: vec![0; BATCH * TRAIN],
            metas: [RecvMeta::default(); BATCH],
            passed: Vec::with_capacity(BATCH * MOST),
        }
    }

    /// Works until the proxy stops, the device is gone, or nothing can be received.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            let Self { receiver, buffer, metas, shared, .. } = &mut self;
            let Some(count) = receiver.receive(buffer, metas, shared)? else { return Ok(()) };
            self.view.refresh(&self.shared);
            self.check(count);
            self.deliver()?;
        }
    }

    fn check(&mut self, count: usize) {
        self.passed.clear();
        let parts = self.buffer.chunks_exact_mut(TRAIN).enumerate();
        for ((index, part), meta) in parts.zip(&self.metas).take(count) {
            let IpAddr::V4(from) = meta.addr.ip() else { continue };
            let train = part.get_mut(..meta.len).unwrap_or_default();
            if train.is_empty() {
                self.shared.counters.add(Outcome::Malformed, 1);
            }
            let stride = meta.stride.max(1);
            let mut at = index * TRAIN;
            for packet in train.chunks_mut(stride) {
                if let Some(len) = admit(&self.shared, self.view.routes(), from, packet) {
                    self.passed.push(at..at + len);
                }
                at += stride;
            }
        }
    }

    /// Writes what has passed, joined where it can be.
    fn deliver(&mut self) -> io::Result<()> {
        let mut rest = self.passed.as_slice();
        let bytes = |range: &Range<usize>| self.buffer.get(range.clone()).unwrap_or_default();
        let uso = self.queue.takes_udp();
        let (mut delivered, mut lost) = (0, 0);
        while !rest.is_empty() {
            let count = coalesce::joined(rest.iter().map(bytes), uso).max(1);
            let (now, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            let written = match write_joined(&self.queue, now, bytes) {
                Err(error) if now.len() > 1 && !is_gone(&error) => {
                    write_singly(&self.queue, now, bytes)
                }
                written => written,
            };
            match written {
                Ok(()) => delivered += now.len() as u64,
                Err(error) if is_gone(&error) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "packet refused by the TUN device");
                    lost += now.len() as u64;
                }
            }
            rest = later;
        }
        self.shared.counters.add(Outcome::Decapsulated, delivered);
        if lost > 0 {
            self.shared.counters.add(Outcome::DeliveryFailed, lost);
        }
        Ok(())
    }
}

fn write_joined<'a>(
    queue: &Queue,
    packets: &[Range<usize>],
    bytes: impl Fn(&Range<usize>) -> &'a [u8],
) -> io::Result<()> {
    let [first, .., last] = packets else { return write_singly(queue, packets, bytes) };
    let all = packets.iter().map(ExactSizeIterator::len).sum();
    let head = coalesce::head(bytes(first), bytes(last), packets.len(), all);
    let Some(head) = head else { return write_singly(queue, packets, bytes) };
    let mut parts = [IoSlice::new(&[]); MOST + 1];
    parts[0] = IoSlice::new(head.bytes());
    for (part, range) in parts.iter_mut().skip(1).zip(packets) {
        *part = IoSlice::new(bytes(range).get(head.payload_at..).unwrap_or_default());
    }
    queue.write(parts.get(..=packets.len()).unwrap_or_default())
}

fn write_singly<'a>(
    queue: &Queue,
    packets: &[Range<usize>],
    bytes: impl Fn(&Range<usize>) -> &'a [u8],
) -> io::Result<()> {
    let vnet = Vnet::default().bytes();
    packets
        .iter()
        .try_for_each(|range| queue.write(&[IoSlice::new(&vnet), IoSlice::new(bytes(range))]))
}

/// The device was deleted (EBADFD), as opposed to being down (EIO).
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

/// Whether a packet from `from` may pass: its length, with its hops counted
/// down.
fn admit(
    shared: &SharedByWorkers,
    routes: &PeerRoutes,
    from: Ipv4Addr,
    packet: &mut [u8],
) -> Option<usize> {
    let Ok(header) = Header::read(packet) else {
        shared.counters.add(Outcome::Malformed, 1);
        return None;
    };
    let settings = &shared.settings;
    let verify = settings.verify_source;
    let (route, wrong) = match routes.judge(settings.network, from, header.source) {
        Sender::Right(route) => (Some(route), None),
        Sender::Forged(route) => (Some(route), Some(Outcome::ForgedSource)),
        Sender::Foreign => (None, Some(Outcome::ForeignSender)),
    };
    if let Some(wrong) = wrong.filter(|_| verify != VerifySource::Off) {
        shared.counters.add(wrong, 1);
        if verify == VerifySource::Drop {
            return None;
        }
    }
    if !packet::decrement_ttl(packet) {
        refuse(shared, IcmpError::TimeExceeded, &header, packet);
        return None;
    }
    if let Some(route) = route {
        route.stats.received(1, header.total_len as u64);
    }
    Some(header.total_len)
}
