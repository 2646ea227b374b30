//! Frames on and off a wire, through AF_PACKET.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, recvmsg,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netns::Netns;

/// `PACKET_OUTGOING` of linux/if_packet.h.
const PACKET_OUTGOING: u8 = 4;

/// A socket that sends and sees the whole frames of one interface.
pub struct Wire {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Wire {
    /// Opens the interface of this name in a namespace.
    ///
    /// # Panics
    /// There is no such interface.
    pub fn open(netns: &Netns, interface: &str) -> Self {
        netns.inside(|| {
            let link = getifaddrs()
                .expect("list of interfaces")
                .filter(|found| found.interface_name == interface)
                .find_map(|found| found.address?.as_link_addr().copied())
                .unwrap_or_else(|| panic!("no interface {interface}"));
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .expect("an AF_PACKET socket");
            setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20)).expect("a larger buffer");
            bind(socket.as_raw_fd(), &link).expect("bind to the interface");
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))
                .expect("a receive timeout");
            Self { socket, link }
        })
    }

    /// Sends one frame.
    ///
    /// # Panics
    /// The interface is down, or the frame too long for it.
    pub fn send(&self, frame: &[u8]) {
        sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty())
            .unwrap_or_else(|error| panic!("send a frame of {} bytes: {error}", frame.len()));
    }

    /// Waits a moment for frames that come in by the interface, and gives them to
    /// `each`, which may write into them.
    ///
    /// # Panics
    /// The interface is down.
    pub fn arriving(&self, mut each: impl FnMut(&mut [u8])) {
        let mut buffer = vec![0; 70_000];
        let mut flags = MsgFlags::empty();
        loop {
            match recv(&self.socket, &mut buffer, flags) {
                Ok((length, false)) => each(&mut buffer[..length]),
                Ok((_, true)) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(error) => panic!("receive a frame: {error}"),
            }
            flags = MsgFlags::MSG_DONTWAIT;
        }
    }

    /// Takes the frames that wait in the socket, both directions.
    ///
    /// # Panics
    /// The interface is down.
    pub fn waiting(&self, mut each: impl FnMut(&[u8])) {
        self.waiting_both_ways(|_, frame| each(frame));
    }

    /// The same; says of each frame whether it leaves by the interface.
    ///
    /// # Panics
    /// As `waiting`.
    pub fn waiting_both_ways(&self, mut each: impl FnMut(bool, &[u8])) {
        let mut buffer = vec![0; 70_000];
        loop {
            match recv(&self.socket, &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok((length, leaves)) => each(leaves, &buffer[..length]),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(error) => panic!("receive a frame: {error}"),
            }
        }
    }

    /// Frames of this interface (both directions) until `enough` of them were
    /// wanted, or the time is over.
    pub fn frames(
        &self,
        limit: Duration,
        enough: usize,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Vec<Vec<u8>> {
        let start = Instant::now();
        let mut found = Vec::new();
        let mut buffer = vec![0; 70_000];
        while found.len() < enough && start.elapsed() < limit {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) if from.ifindex() == self.link.ifindex() => {
                    let frame = &buffer[..length];
                    if wanted(frame) {
                        found.push(frame.to_vec());
                    }
                }
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => panic!("receive a frame: {error}"),
            }
        }
        found
    }
}

/// A frame of a socket: its length, and whether it leaves.
fn recv(socket: &OwnedFd, buffer: &mut [u8], flags: MsgFlags) -> Result<(usize, bool), Errno> {
    let mut slices = [IoSliceMut::new(buffer)];
    let frame = recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut slices, None, flags)?;
    let leaves = frame.address.is_some_and(|from| from.pkttype() == PACKET_OUTGOING);
    Ok((frame.bytes, leaves))
}
