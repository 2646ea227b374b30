//! Datagrams of which each belongs to a flow of its own.

use std::io::Result;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use super::client::{Flood, counted, stream_id};
use super::cpu::busy_seconds;
use super::datagram;

/// First source port.
const FIRST_PORT: u32 = 1024;
/// Source ports of one address.
const PORTS: u32 = 65_536 - FIRST_PORT;

/// Sends datagrams from `flows` source addresses and ports in turn, counted by
/// the server. The addresses are those from our own on.
///
/// # Errors
/// We are not root, or the server cannot be asked for its count.
pub fn scatter(to: SocketAddrV4, duration: Duration, flows: u32) -> Result<Flood> {
    let asking = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    asking.connect(to)?;
    let std::net::SocketAddr::V4(own) = asking.local_addr()? else {
        unreachable!("an IPv4 socket")
    };
    let raw =
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let target = SockaddrIn::from(to);
    let id = stream_id();
    let mut payload = [0; 18];
    payload[0] = datagram::COUNT;
    payload[1..5].copy_from_slice(&id);
    let mut packet = Vec::with_capacity(64);
    let (busy, start) = (busy_seconds(), Instant::now());
    let (mut sent, mut number) = (0, 0_u32);
    while start.elapsed() < duration {
        for _ in 0..64 {
            let source = Ipv4Addr::from(u32::from(*own.ip()) + number / PORTS);
            let port = (FIRST_PORT + number % PORTS) as u16;
            packet.clear();
            PacketBuilder::ipv4(source.octets(), to.ip().octets(), 64)
                .udp(port, to.port())
                .write(&mut packet, &payload)
                .map_err(std::io::Error::other)?;
            let done = sendto(raw.as_raw_fd(), &packet, &target, MsgFlags::empty());
            sent += u64::from(done.is_ok());
            number = (number + 1) % flows;
        }
    }
    counted(&asking, id, sent, start.elapsed(), busy_seconds() - busy)
}
