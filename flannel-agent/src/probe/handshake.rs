//! The first packet of TCP, with the checksum made by whoever makes it by default, or
//! by us. Where only the second arrives, a card writes wrong ones (flannel #1279).

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use flannel_core::probe::Answer;
use rustix::net::{SendFlags, ipproto, sendto};

use super::packet::{self, Ends};
use super::raw;

/// How often the first packet is sent.
const TRIES: u32 = 3;

fn came(since: Instant) -> Answer {
    Answer::Came { micros: since.elapsed().as_micros().try_into().unwrap_or(u64::MAX) }
}

/// Connects as every program does: the device makes the checksum where it can. A
/// refusal is an answer. Blocks.
pub fn offloaded(to: SocketAddrV4, patience: Duration) -> Answer {
    let start = Instant::now();
    match TcpStream::connect_timeout(&SocketAddr::V4(to), patience) {
        Ok(_) => came(start),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => came(start),
            io::ErrorKind::TimedOut => Answer::Silent,
            _ => Answer::NotSent { reason: error.to_string() },
        },
    }
}

/// Sends the first packet of a connection with its checksum. Blocks.
pub fn plain(to: SocketAddrV4, patience: Duration) -> Answer {
    attempt(to, patience).unwrap_or_else(|error| Answer::NotSent { reason: error.to_string() })
}

fn attempt(to: SocketAddrV4, patience: Duration) -> io::Result<Answer> {
    // While it has the port, nobody else begins a connection there.
    let reserved = std::net::TcpListener::bind((source_for(to)?, 0))?;
    let SocketAddr::V4(own) = reserved.local_addr()? else {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    };
    let ends =
        Ends { source: *own.ip(), destination: *to.ip(), sport: own.port(), dport: to.port() };
    let socket = raw::open(ipproto::TCP)?;
    let sequence = rand::random();
    let bytes = packet::syn(ends, sequence);
    let mut buffer = vec![0; raw::PACKET];
    for _ in 0..TRIES {
        let start = Instant::now();
        sendto(&socket, &bytes, SendFlags::empty(), &SocketAddrV4::new(*to.ip(), 0))?;
        let end = start + patience / TRIES;
        while let Some(length) = raw::next(&socket, &mut buffer, end)? {
            if packet::answers(&buffer[..length], ends, sequence) {
                return Ok(came(start));
            }
        }
    }
    Ok(Answer::Silent)
}

/// The address that the kernel would send from.
fn source_for(to: SocketAddrV4) -> io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    match socket.local_addr()? {
        SocketAddr::V4(own) => Ok(*own.ip()),
        SocketAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}
