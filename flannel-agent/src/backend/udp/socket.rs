//! The UDP sockets of the proxy: batches out and in.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::sockopt::{IpRecvTos, Ipv4PacketInfo, ReceiveTimestampns};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
use rustix::net::{
    AddressFamily, MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, SocketFlags, SocketType,
    bind, ipproto, sendmmsg, sendto, socket_with,
};

use super::outbox::{Outbox, Run};

/// Bytes that may wait in the kernel for us, and for the wire.
const BUFFER: usize = 4 << 20;
/// Datagrams, or trains of datagrams, of one call.
pub(super) const BATCH: usize = 16;
/// Longest train of datagrams.
pub(super) const TRAIN: usize = 1 << 16;
/// How long a full socket is waited for before packets are dropped.
const PATIENCE_MS: u32 = 100;

/// One of several sockets on the same port. The kernel spreads the peers over
/// them; all packets of a peer come through one, in order.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    port: u16,
    /// The kernel or the device has no UDP GSO.
    plain: AtomicBool,
}

impl Socket {
    /// Binds to our underlay address. `port` is the destination's port, too.
    ///
    /// # Errors
    /// The kernel's answer; `AddrInUse` if another program has the port.
    pub(super) fn bind(local: Ipv4Addr, port: u16) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
        sockopt::set_socket_reuseport(&fd, true)?;
        bind(&fd, &SocketAddrV4::new(local, port))?;
        // More than net.core.?mem_max takes CAP_NET_ADMIN in the initial user
        // namespace; without it, as much as there is.
        let _ = sockopt::set_socket_recv_buffer_size_force(&fd, BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&fd, BUFFER));
        let _ = sockopt::set_socket_send_buffer_size_force(&fd, BUFFER)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&fd, BUFFER));
        let socket = UdpSocket::from(fd);
        let state = UdpSocketState::new((&socket).into())?;
        // The library means to find the path's MTU itself. We leave that to
        // the kernel, as flannel does: it fragments where it has to.
        // What it reads of each datagram besides, nobody here wants.
        let _ = nix::sys::socket::setsockopt(&socket, ReceiveTimestampns, &false);
        let _ = nix::sys::socket::setsockopt(&socket, Ipv4PacketInfo, &false);
        let _ = nix::sys::socket::setsockopt(&socket, IpRecvTos, &false);
        sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::WANT)?;
        Ok(Self { socket, state, port, plain: AtomicBool::new(false) })
    }

    /// One that nothing can be received from.
    #[cfg(test)]
    pub(super) fn broken() -> Self {
        let socket = Self::bind(Ipv4Addr::LOCALHOST, 0).unwrap();
        let none = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let mut fd = OwnedFd::from(socket.socket);
        rustix::io::dup2(&none, &mut fd).unwrap();
        Self { socket: UdpSocket::from(fd), ..socket }
    }

    /// Most datagrams of a train that leaves at once.
    pub(super) fn most(&self) -> usize {
        if self.plain.load(Ordering::Relaxed) { 1 } else { self.state.max_gso_segments().min(64) }
    }

    /// Sends all that is in the outbox; returns how many packets the kernel
    /// did not take.
    pub(super) fn send(&self, outbox: &Outbox) -> u64 {
        let mut lost = 0;
        let mut rest = outbox.runs();
        while let Some(first) = rest.first() {
            let singles = rest.iter().take_while(|run| run.count == 1).take(BATCH).count();
            if singles > 1 {
                let (now, later) = rest.split_at(singles);
                lost += self.send_singles(now.iter().map(|run| (run.to, outbox.bytes(run))));
                rest = later;
            } else {
                lost += self.send_run(first, outbox.bytes(first));
                rest = rest.get(1..).unwrap_or_default();
            }
        }
        lost
    }

    fn send_run(&self, run: &Run, bytes: &[u8]) -> u64 {
        let single = run.count == 1;
        if single || !self.plain.load(Ordering::Relaxed) {
            let transmit = Transmit {
                destination: SocketAddr::from((run.to, self.port)),
                ecn: None,
                contents: bytes,
                segment_size: (!single).then_some(run.segment),
                src_ip: None,
            };
            let sent = self.patiently(|| self.state.try_send((&self.socket).into(), &transmit));
            match sent {
                Ok(()) => return 0,
                Err(_) if single => return 1,
                Err(error) => {
                    // EIO: the device computes no checksums, so that it never
                    // will. Others may be the path's: a smaller MTU, say.
                    if error.raw_os_error() == Some(libc::EIO) {
                        tracing::info!(
                            "UDP GSO unavailable on this underlay; datagrams leave one by one"
                        );
                        self.plain.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
        let mut lost = 0;
        let mut datagrams = bytes.chunks(run.segment).peekable();
        while datagrams.peek().is_some() {
            lost += self.send_singles(datagrams.by_ref().take(BATCH).map(|bytes| (run.to, bytes)));
        }
        lost
    }

    /// Sends up to [`BATCH`] datagrams in one call, more if one is refused:
    /// that one is left out.
    fn send_singles<'a>(&self, datagrams: impl Iterator<Item = (Ipv4Addr, &'a [u8])>) -> u64 {
        let nobody = SocketAddrAny::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        let mut to: [SocketAddrAny; BATCH] = std::array::from_fn(|_| nobody.clone());
        let mut bytes = [IoSlice::new(&[]); BATCH];
        let mut count = 0;
        for (((node, datagram), to), bytes) in datagrams.zip(&mut to).zip(&mut bytes) {
            *to = SocketAddrV4::new(node, self.port).into();
            *bytes = IoSlice::new(datagram);
            count += 1;
        }
        let mut control: [SendAncillaryBuffer<'_, '_, '_>; BATCH] =
            std::array::from_fn(|_| SendAncillaryBuffer::default());
        let mut at = 0;
        let mut messages = control.each_mut().map(|control| {
            let this = at;
            at += 1;
            MMsgHdr::new_with_addr(&to[this], &bytes[this..=this], control)
        });
        let (mut done, mut lost) = (0, 0);
        while let Some(rest) = messages.get_mut(done..count).filter(|rest| !rest.is_empty()) {
            match self.patiently(|| Ok(sendmmsg(&self.socket, rest, SendFlags::empty())?)) {
                Ok(sent) => done += sent.max(1),
                Err(_) => {
                    done += 1;
                    lost += 1;
                }
            }
        }
        lost
    }

    /// Waits for room while the socket is full: the TUN device's queue fills
    /// up meanwhile, and senders see it.
    fn patiently<T>(&self, mut send: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait_for_room(self.socket.as_fd()) {
                        return Err(error);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Receives trains of datagrams: as many as are there, at most [`BATCH`].
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    pub(super) fn receive(
        &self,
        buffer: &mut [u8],
        metas: &mut [RecvMeta; BATCH],
    ) -> io::Result<usize> {
        let mut parts = buffer.chunks_exact_mut(TRAIN);
        let mut slices: [IoSliceMut<'_>; BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()));
        self.state.recv((&self.socket).into(), &mut slices, metas)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn wait_for_room(socket: BorrowedFd<'_>) -> bool {
    let patience =
        rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(PATIENCE_MS) * 1_000_000 };
    let mut wanted = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
    match poll(&mut wanted, Some(&patience)) {
        Ok(ready) => ready > 0,
        Err(error) => error == Errno::INTR,
    }
}

/// Sends our ICMP errors: as packets of this node, since the kernel takes
/// those that come in with one of its own addresses for forged.
#[derive(Debug)]
pub(super) struct IcmpSocket(OwnedFd);

impl IcmpSocket {
    /// A raw socket.
    ///
    /// # Errors
    /// The kernel's answer; `PermissionDenied` without CAP_NET_RAW.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(ipproto::RAW);
        Ok(Self(socket_with(AddressFamily::INET, SocketType::RAW, flags, protocol)?))
    }

    /// Sends a whole packet; whether the kernel took it.
    pub(super) fn send(&self, packet: &[u8], to: Ipv4Addr) -> bool {
        let to = SocketAddrV4::new(to, 0);
        sendto(&self.0, packet, SendFlags::DONTWAIT, &to).is_ok()
    }
}
