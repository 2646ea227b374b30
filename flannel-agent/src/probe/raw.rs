//! Raw sockets, and waiting for what comes by them.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

/// Largest packet.
pub(super) const PACKET: usize = 1 << 16;

/// A socket for IPv4 packets of this protocol.
pub(super) fn open(protocol: Protocol) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(protocol))?)
}

/// Length of the next packet, which is in `buffer` then; `None` if none came before
/// `end`.
pub(super) fn next(socket: &OwnedFd, buffer: &mut [u8], end: Instant) -> io::Result<Option<usize>> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut ready = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut ready, Some(&left)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match recv(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((length, _)) => return Ok(Some(length)),
            // An ICMP error about an earlier packet is told by the socket, too.
            Err(Errno::AGAIN | Errno::INTR | Errno::MSGSIZE | Errno::HOSTUNREACH) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
