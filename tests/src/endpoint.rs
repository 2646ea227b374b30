//! Ends of connections that a case watches while they run.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::netns::Netns;
use crate::traffic::cpu;

/// How long a thread may wait before it looks whether it has to end.
const TURN: Duration = Duration::from_millis(50);

/// A thread that ends when this goes.
struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(netns: &Netns, work: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        Self { stop, thread: Some(netns.spawn(move || work(&seen))) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed, and the case sees what is missing.
            let _ = thread.join();
        }
    }
}

/// Takes TCP data on a port and counts it.
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddrV4,
    bytes: Arc<AtomicU64>,
    _running: Running,
}

impl Sink {
    /// Listens in a namespace.
    ///
    /// # Panics
    /// The port cannot be had.
    pub fn open(netns: &Netns, address: Ipv4Addr, port: u16) -> Self {
        let listener = netns.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
        let listener = listener.unwrap_or_else(|error| panic!("port {port}: {error}"));
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&bytes);
        let running = Running::start(netns, move |stop| take(&listener, &counted, stop));
        Self { address: SocketAddrV4::new(address, port), bytes, _running: running }
    }

    /// Sends to it from a namespace, as fast as it goes, with this TOS.
    ///
    /// # Panics
    /// It cannot be reached.
    #[track_caller]
    pub fn source(&self, netns: &Netns, tos: u8) -> Source {
        Source::start(netns, self.address, tos)
    }

    /// Bytes that have come so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// 10^6 bits per second that come from now on.
    pub fn rate(&self, time: Duration) -> f64 {
        let (before, start) = (self.bytes(), Instant::now());
        thread::sleep(time);
        (self.bytes() - before) as f64 * 8.0 / 1e6 / start.elapsed().as_secs_f64()
    }
}

fn take(listener: &TcpListener, bytes: &AtomicU64, stop: &AtomicBool) {
    listener.set_nonblocking(true).expect("a non-blocking socket");
    let mut buffer = vec![0; 256 * 1024];
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        stream.set_nonblocking(false).expect("a blocking socket");
        stream.set_read_timeout(Some(TURN)).expect("a timeout");
        while !stop.load(Ordering::Relaxed) {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => drop(bytes.fetch_add(length as u64, Ordering::Relaxed)),
                Err(error) if waited(&error) => {}
                Err(_) => break,
            }
        }
    }
}

fn waited(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Sends TCP data until it goes.
pub struct Source {
    _running: Running,
}

impl Source {
    fn start(netns: &Netns, to: SocketAddrV4, tos: u8) -> Self {
        let connected =
            netns.inside(|| TcpStream::connect_timeout(&to.into(), Duration::from_secs(5)));
        let mut stream = connected.unwrap_or_else(|error| panic!("connect to {to}: {error}"));
        rustix::net::sockopt::set_ip_tos(&stream, tos).expect("TOS");
        stream.set_write_timeout(Some(TURN)).expect("a timeout");
        let running = Running::start(netns, move |stop| {
            let block = vec![0x5a; 64 * 1024];
            while !stop.load(Ordering::Relaxed) {
                match stream.write(&block) {
                    Err(error) if !waited(&error) => return,
                    _ => {}
                }
            }
        });
        Self { _running: running }
    }
}

/// Sends every UDP datagram back, and counts them.
pub struct Answers {
    count: Arc<AtomicU64>,
    _running: Running,
}

impl Answers {
    /// Listens in a namespace, on every address.
    ///
    /// # Panics
    /// The port cannot be had.
    pub fn open(netns: &Netns, port: u16) -> Self {
        Self::open_at(netns, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))
    }

    /// Listens in a namespace on one address, from which the answers come.
    ///
    /// # Panics
    /// It cannot be had.
    pub fn open_at(netns: &Netns, address: SocketAddrV4) -> Self {
        let socket = socket(netns, address);
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        let running = Running::start(netns, move |stop| {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                counted.fetch_add(1, Ordering::Relaxed);
                // Who has gone is the other end's matter.
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
        Self { count, _running: running }
    }

    /// Datagrams so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

fn socket(netns: &Netns, address: SocketAddrV4) -> UdpSocket {
    let bound = netns.inside(|| UdpSocket::bind(address));
    let socket = bound.unwrap_or_else(|error| panic!("{address}: {error}"));
    socket.set_read_timeout(Some(TURN)).expect("a timeout");
    socket
}

/// What became of numbered datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Sent.
    pub sent: u32,
    /// Received.
    pub received: u32,
    /// Received after a later one.
    pub late: u32,
}

/// Sends numbered datagrams of `size` bytes in one direction, `each` of them at
/// a time, and sees in which order they come.
///
/// The sender stays on one CPU: by itself nothing overtakes there.
///
/// # Panics
/// A socket cannot be had.
pub fn numbered(
    from: &Netns,
    (to, at): (&Netns, SocketAddrV4),
    (size, each): (usize, u32),
    (pause, time): (Duration, Duration),
) -> Arrivals {
    let receiver = socket(to, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, at.port()));
    nix::sys::socket::setsockopt(&receiver, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))
        .expect("a larger buffer");
    let done = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&done);
    let arrivals = thread::spawn(move || order(&receiver, &ended));
    let sent = from.inside(move || {
        cpu::pin(0);
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
        socket.connect(at).expect("an address");
        let (start, mut packet, mut number) = (Instant::now(), vec![0; size.max(4)], 0_u32);
        while start.elapsed() < time {
            for _ in 0..each {
                packet[..4].copy_from_slice(&number.to_be_bytes());
                // ENOBUFS shows as loss.
                let _ = socket.send(&packet);
                number += 1;
            }
            thread::sleep(pause);
        }
        number
    });
    done.store(true, Ordering::Relaxed);
    let (received, late) = arrivals.join().expect("the receiver");
    Arrivals { sent, received, late }
}

/// Datagrams received, and those of them that came after a later one, until
/// none comes any more.
fn order(socket: &UdpSocket, ended: &AtomicBool) -> (u32, u32) {
    let (mut received, mut late, mut highest) = (0, 0, 0);
    let mut buffer = [0; 2048];
    loop {
        match socket.recv(&mut buffer) {
            Ok(4..) => {
                let number = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
                received += 1;
                late += u32::from(number < highest);
                highest = highest.max(number);
            }
            Ok(_) => {}
            Err(_) if ended.load(Ordering::Relaxed) => return (received, late),
            Err(_) => {}
        }
    }
}
