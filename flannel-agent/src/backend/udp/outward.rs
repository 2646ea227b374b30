//! From the TUN device to the peers: one worker for each queue.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::counters::Outcome;
use super::outbox::Outbox;
use super::packet::{self, Header, ICMP_ERROR_MAX, IcmpError};
use super::routes::PeerRoutes;
use super::segment::Segments;
use super::shared::{SharedByWorkers, View};
use super::socket::Socket;
use super::tun::Queue;

/// Longest aggregate.
const LONGEST: usize = 1 << 16;
/// Packets and aggregates that are read before they are sent.
const READS: usize = 64;

/// Takes packets from a queue and sends them to the peers.
pub(super) struct Outward {
    queue: Arc<Queue>,
    socket: Arc<Socket>,
    shared: Arc<SharedByWorkers>,
    view: View,
    outbox: Outbox,
    packet: Vec<u8>,
}

impl Outward {
    pub(super) fn new(
        queue: Arc<Queue>,
        socket: Arc<Socket>,
        shared: Arc<SharedByWorkers>,
    ) -> Self {
        Self {
            outbox: Outbox::new(socket.most()),
            queue,
            socket,
            view: View::of(&shared),
            shared,
            packet: vec![0; LONGEST],
        }
    }

    /// Works until the proxy stops or the device is gone.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            self.view.refresh(&self.shared);
            let dry = self.gather()?;
            self.flush();
            if dry && !self.shared.wait_for(&*self.queue)? {
                return Ok(());
            }
        }
    }

    /// Reads and routes what is there; whether nothing is left.
    fn gather(&mut self) -> io::Result<bool> {
        for _ in 0..READS {
            match self.queue.read(&mut self.packet) {
                Ok((vnet, len)) => {
                    let Self { packet, outbox, socket, shared, view, .. } = self;
                    let packet = packet.get_mut(..len).unwrap_or_default();
                    let routed = route(shared, view.routes(), packet);
                    let Some((header, to)) = routed else { continue };
                    let Ok(mut segments) = Segments::new(vnet, &header, packet) else {
                        shared.counters.add(Outcome::Malformed, 1);
                        continue;
                    };
                    let (mut count, mut bytes) = (0, 0);
                    loop {
                        if outbox.is_full(segments.longest()) {
                            send(shared, socket, outbox);
                        }
                        let Some(len) = segments.next_into(outbox.space()) else { break };
                        outbox.commit(len, to);
                        count += 1;
                        bytes += len as u64;
                    }
                    if let Some(route) = view.routes().find(header.destination) {
                        route.stats.sent(count, bytes);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn flush(&mut self) {
        send(&self.shared, &self.socket, &mut self.outbox);
    }
}

fn send(shared: &SharedByWorkers, socket: &Socket, outbox: &mut Outbox) {
    let all: usize = outbox.runs().iter().map(|run| run.count).sum();
    if all == 0 {
        return;
    }
    let lost = socket.send(outbox);
    shared.counters.add(Outcome::SendFailed, lost);
    shared.counters.add(Outcome::Encapsulated, (all as u64).saturating_sub(lost));
    outbox.clear();
}

/// Where a packet from the kernel goes, with its hops counted down; `None` if
/// nowhere.
fn route(
    shared: &SharedByWorkers,
    routes: &PeerRoutes,
    packet: &mut [u8],
) -> Option<(Header, Ipv4Addr)> {
    // The kernel speaks IPv6 on each device: that is no damage.
    if packet.first().is_some_and(|first| first >> 4 == 6) {
        return None;
    }
    let Ok(header) = Header::read(packet) else {
        shared.counters.add(Outcome::Malformed, 1);
        return None;
    };
    let error = match routes.find(header.destination) {
        Some(route) if packet::decrement_ttl(packet) => return Some((header, route.public_ip)),
        Some(_) => IcmpError::TimeExceeded,
        None => IcmpError::NetUnreachable,
    };
    refuse(shared, error, &header, packet);
    None
}

/// Counts a packet that goes no further, and tells its sender.
pub(super) fn refuse(shared: &SharedByWorkers, error: IcmpError, header: &Header, packet: &[u8]) {
    shared.counters.add(
        match error {
            IcmpError::TimeExceeded => Outcome::TtlExpired,
            IcmpError::NetUnreachable => Outcome::NoPeer,
        },
        1,
    );
    let Some(socket) = &shared.icmp else { return };
    let mut answer = [0; ICMP_ERROR_MAX];
    let own = shared.settings.subnet.network();
    if let Some(len) = packet::icmp_error(error, own, packet, &mut answer)
        && socket.send(answer.get(..len).unwrap_or_default(), header.source)
    {
        shared.counters.add(Outcome::IcmpSent, 1);
    }
}
