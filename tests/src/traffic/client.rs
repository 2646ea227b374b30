//! The end that measures. Every function runs one kind of load and returns
//! what it saw.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::counters::retransmits;
use super::cpu::busy_seconds;
use super::random::Random;
use super::server::number;
use super::{bulk, datagram, want};

pub(super) fn connect(to: SocketAddrV4) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(10))?;
    stream.set_nodelay(true)?;
    super::default_congestion_control(&stream);
    Ok(stream)
}

fn datagram_socket(to: SocketAddrV4) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    Ok(socket)
}

/// Result of [`flood`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Flood {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that the server's program received.
    pub received: u64,
    /// Received per second.
    pub rate: f64,
    /// Datagrams that the server's program did not receive, of 100 sent.
    pub loss_percent: f64,
    /// Busy time of all CPUs per received datagram, in microseconds.
    pub cpu_us: f64,
}

/// Datagrams of `size` bytes as fast as they go, counted by the server.
///
/// # Errors
/// The server cannot be asked for its count.
pub fn flood(to: SocketAddrV4, duration: Duration, size: usize) -> Result<Flood> {
    let socket = datagram_socket(to)?;
    let id = stream_id();
    let mut packet = vec![0; size.max(5)];
    packet[0] = datagram::COUNT;
    packet[1..5].copy_from_slice(&id);
    let (busy, start) = (busy_seconds(), Instant::now());
    let mut sent = 0;
    while start.elapsed() < duration {
        for _ in 0..64 {
            // ENOBUFS and the like are what a flood is for.
            sent += u64::from(socket.send(&packet).is_ok());
        }
    }
    counted(&socket, id, sent, start.elapsed(), busy_seconds() - busy)
}

/// By which the server tells one client's datagrams from another's.
pub(super) fn stream_id() -> [u8; 4] {
    rand::random()
}

/// The result of `sent` datagrams, of which the server is asked how many it has.
pub(super) fn counted(
    socket: &UdpSocket,
    id: [u8; 4],
    sent: u64,
    elapsed: Duration,
    busy: f64,
) -> Result<Flood> {
    let received = count(socket, id)?;
    Ok(Flood {
        sent,
        received,
        rate: received as f64 / elapsed.as_secs_f64(),
        loss_percent: 100.0 * sent.saturating_sub(received) as f64 / (sent.max(1) as f64),
        cpu_us: busy * 1e6 / (received.max(1) as f64),
    })
}

fn count(socket: &UdpSocket, id: [u8; 4]) -> Result<u64> {
    let mut query = vec![datagram::QUERY];
    query.extend(id);
    thread::sleep(Duration::from_millis(100));
    let mut answer = [0; 8];
    for _ in 0..10 {
        socket.send(&query)?;
        if socket.recv(&mut answer).is_ok_and(|length| length == 8) {
            return Ok(u64::from_be_bytes(answer));
        }
    }
    Err(Error::new(ErrorKind::TimedOut, "the server does not say its count"))
}

/// Result of [`stream`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Throughput {
    /// Bytes that the server's program received.
    pub bytes: u64,
    /// 10^9 bits per second.
    pub gbits: f64,
    /// Busy time of all CPUs per Gbit, in milliseconds.
    pub cpu_ms: f64,
    /// TCP segments that this namespace sent again, per Gbit.
    pub retransmits: f64,
}

/// TCP data in one direction on several connections.
///
/// # Errors
/// A connection fails.
pub fn stream(to: SocketAddrV4, duration: Duration, connections: usize) -> Result<Throughput> {
    let streams = (0..connections).map(|_| connect(to)).collect::<Result<Vec<_>>>()?;
    let (again, busy, start) = (retransmits(), busy_seconds(), Instant::now());
    let threads: Vec<_> =
        streams.into_iter().map(|stream| thread::spawn(move || fill(stream, duration))).collect();
    let mut bytes = 0;
    for thread in threads {
        bytes += thread.join().map_err(|_| Error::other("a stream panicked"))??;
    }
    let (elapsed, busy) = (start.elapsed().as_secs_f64(), busy_seconds() - busy);
    let gbit = bytes as f64 * 8.0 / 1e9;
    Ok(Throughput {
        bytes,
        gbits: gbit / elapsed,
        cpu_ms: busy * 1e3 / gbit.max(1e-9),
        retransmits: (retransmits() - again) as f64 / gbit.max(1e-9),
    })
}

fn fill(mut stream: TcpStream, duration: Duration) -> Result<u64> {
    let block = vec![0x5a; 128 * 1024];
    let start = Instant::now();
    stream.write_all(&[want::SINK])?;
    while start.elapsed() < duration {
        stream.write_all(&block)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    number(&mut stream)
}

/// Result of [`spaced`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Spaced {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that never came back.
    pub lost: u64,
    /// Datagrams that came back more than once.
    pub duplicated: u64,
    /// Datagrams that came back after a later one.
    pub reordered: u64,
    /// Longest time without an answer, in milliseconds.
    pub gap_ms: u64,
    /// Time of the last answer since the start, in milliseconds.
    pub last_ms: u64,
}

/// Numbered datagrams at fixed times, each sent back by the server.
///
/// # Errors
/// The socket's.
pub fn spaced(
    to: SocketAddrV4,
    duration: Duration,
    interval: Duration,
    size: usize,
) -> Result<Spaced> {
    let socket = datagram_socket(to)?;
    super::widen(&socket)?;
    let receiver = socket.try_clone()?;
    let start = Instant::now();
    let total = (duration.as_nanos() / interval.as_nanos().max(1)) as u32;
    let answers = thread::spawn(move || answers(&receiver, total, start, duration));
    let mut packet = vec![0; size.max(9)];
    packet[0] = datagram::ECHO;
    for number in 0..total {
        packet[5..9].copy_from_slice(&number.to_be_bytes());
        let at = start + interval * number;
        thread::sleep(at.saturating_duration_since(Instant::now()));
        // ECONNREFUSED and the like show as loss.
        let _ = socket.send(&packet);
    }
    answers.join().map_err(|_| Error::other("the receiver panicked"))
}

fn answers(socket: &UdpSocket, total: u32, start: Instant, duration: Duration) -> Spaced {
    let mut seen = vec![0_u8; total as usize];
    let (mut highest, mut reordered) = (0, 0);
    let (mut last, mut gap) = (Duration::ZERO, Duration::ZERO);
    let mut buffer = vec![0; 65_536];
    let mut received = 0;
    while received < total && start.elapsed() < duration + Duration::from_secs(1) {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        if length < 9 {
            continue;
        }
        let number = u32::from_be_bytes([buffer[5], buffer[6], buffer[7], buffer[8]]);
        let Some(count) = seen.get_mut(number as usize) else { continue };
        received += u32::from(*count == 0);
        *count = count.saturating_add(1);
        reordered += u64::from(number < highest);
        highest = highest.max(number);
        let now = start.elapsed();
        gap = gap.max(now - last);
        last = now;
    }
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Spaced {
        sent: u64::from(total),
        lost: seen.iter().filter(|count| **count == 0).count() as u64,
        duplicated: seen.iter().filter(|count| **count > 1).count() as u64,
        reordered,
        gap_ms: milliseconds(gap),
        last_ms: milliseconds(last),
    }
}

/// Result of [`messages`], [`echoes`] and [`bulk()`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Checked {
    /// Messages sent.
    pub sent: u64,
    /// Messages without an answer after three tries.
    pub lost: u64,
    /// Messages that came back changed.
    pub corrupt: u64,
    /// The first that was lost or changed.
    pub first_wrong: Option<String>,
}

impl Checked {
    fn wrong(&mut self, what: String) {
        self.first_wrong.get_or_insert(what);
    }
}

/// TCP messages of random bytes of every size in `sizes`, each sent back with
/// its bits turned.
///
/// # Errors
/// The connection fails.
pub fn messages(to: SocketAddrV4, sizes: std::ops::RangeInclusive<usize>) -> Result<Checked> {
    let mut stream = connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&[want::TURN])?;
    let (mut random, mut checked) = (Random::new(rand::random()), Checked::default());
    for size in sizes {
        let mut message = vec![0; size + 4];
        random.fill(&mut message[4..]);
        message[..4].copy_from_slice(&u32::try_from(size).unwrap_or(0).to_be_bytes());
        stream.write_all(&message)?;
        let mut answer = vec![0; size];
        stream.read_exact(&mut answer)?;
        checked.sent += 1;
        if answer.iter().zip(&message[4..]).any(|(back, sent)| *back != !*sent) {
            checked.corrupt += 1;
            checked.wrong(format!("{size} bytes changed"));
        }
    }
    Ok(checked)
}

/// UDP datagrams of random bytes, of every size in `sizes`, each sent back.
/// With `segment`, each is sent as one UDP GSO packet that the kernel cuts into
/// datagrams of that size.
///
/// # Errors
/// The socket's.
pub fn echoes(
    to: SocketAddrV4,
    sizes: std::ops::RangeInclusive<usize>,
    segment: Option<u16>,
) -> Result<Checked> {
    let socket = datagram_socket(to)?;
    if let Some(segment) = segment {
        let option = nix::sys::socket::sockopt::UdpGsoSegment;
        nix::sys::socket::setsockopt(&socket, option, &i32::from(segment))?;
    }
    let (mut random, mut checked) = (Random::new(rand::random()), Checked::default());
    let mut buffer = vec![0; 65_536];
    // What was sent more than once: a second answer may still be on its way.
    let mut repeated = Vec::new();
    for size in sizes {
        let mut packet = vec![0; size.max(1)];
        random.fill(&mut packet);
        let part = segment.map_or(packet.len(), usize::from);
        packet.chunks_mut(part).for_each(|datagram| datagram[0] = datagram::ECHO);
        checked.sent += 1;
        let mut waiting: Vec<&[u8]> = packet.chunks(part).collect();
        let mut again = false;
        for _ in 0..3 {
            socket.send(&packet)?;
            while !waiting.is_empty() {
                let Ok(length) = socket.recv(&mut buffer) else { break };
                let answer = &buffer[..length];
                match waiting.iter().position(|part| *part == answer) {
                    Some(index) => drop(waiting.swap_remove(index)),
                    // An answer to the try before is no corruption.
                    None if packet.chunks(part).any(|part| part == answer) => {}
                    None if repeated.chunks(part).any(|part| part == answer) => {}
                    None => {
                        checked.corrupt += 1;
                        checked.wrong(format!("{length} of {size} bytes changed"));
                    }
                }
            }
            if waiting.is_empty() {
                break;
            }
            again = true;
        }
        if !waiting.is_empty() {
            checked.lost += 1;
            checked.wrong(format!("{size} bytes lost"));
        }
        if again {
            repeated = packet;
        }
    }
    Ok(checked)
}

/// `length` random bytes there and as many back on one connection, in writes
/// large enough for GSO, checked at both ends.
///
/// # Errors
/// The connection fails.
pub fn bulk(to: SocketAddrV4, length: u64) -> Result<Checked> {
    let mut stream = connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let seed: u64 = rand::random::<u32>().into();
    stream.write_all(&[want::BULK])?;
    stream.write_all(&seed.to_be_bytes())?;
    stream.write_all(&length.to_be_bytes())?;
    bulk::send(&mut stream, seed, length)?;
    let mut checked = Checked { sent: 2, ..Checked::default() };
    let there = number(&mut stream)?;
    if there != u64::MAX {
        checked.corrupt += 1;
        checked.wrong(format!("changed on the way there, near byte {there}"));
    }
    if let Some(offset) = bulk::receive(&mut stream, seed + 1, length)? {
        checked.corrupt += 1;
        checked.wrong(format!("changed on the way back, near byte {offset}"));
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::thread;

    use super::*;

    /// A server that sleeps over its first datagram answers both tries.
    #[test]
    fn a_late_second_answer_is_no_corruption() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let SocketAddr::V4(address) = server.local_addr().unwrap() else { panic!("IPv6") };
        let answers = thread::spawn(move || {
            let mut buffer = [0; 2048];
            // Three sizes and one more try.
            for number in 0..4 {
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                if number == 0 {
                    thread::sleep(Duration::from_millis(700));
                }
                server.send_to(&buffer[..length], from).unwrap();
            }
        });
        let checked = echoes(address, 100..=102, None).unwrap();
        answers.join().unwrap();
        assert_eq!((checked.sent, checked.lost, checked.corrupt), (3, 0, 0), "{checked:?}");
    }
}
