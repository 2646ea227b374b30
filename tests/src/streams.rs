//! Traffic that goes on while something happens to a node: a datagram each
//! millisecond and a connection, there and back.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::netns::Netns;
use crate::traffic::{datagram, want};

/// Between two datagrams.
const EACH: Duration = Duration::from_millis(1);
/// Between an answer by TCP and the next word.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a thread may wait before it looks whether it has to end.
const TURN: Duration = Duration::from_millis(50);
/// Longest answer that is waited for.
const LATE: Duration = Duration::from_millis(500);
/// More datagrams than any stream has: two hours.
const MOST: usize = 8_000_000;

/// What the threads tell.
struct Told {
    stop: AtomicBool,
    /// Datagrams sent.
    sent: AtomicU32,
    /// A bit for each that came back.
    back: Vec<AtomicU8>,
    /// Words that came back by TCP.
    words: AtomicU32,
    /// The connection has ended.
    broken: AtomicBool,
}

/// Both streams; they end with it.
pub struct Streams {
    told: Arc<Told>,
    threads: Vec<JoinHandle<()>>,
}

impl Streams {
    /// Starts them from a namespace to a traffic server.
    ///
    /// # Panics
    /// The server does not answer.
    pub fn start(netns: &Netns, to: SocketAddrV4) -> Self {
        let told = Arc::new(Told {
            stop: AtomicBool::new(false),
            sent: AtomicU32::new(0),
            back: (0..MOST / 8).map(|_| AtomicU8::new(0)).collect(),
            words: AtomicU32::new(0),
            broken: AtomicBool::new(false),
        });
        let (socket, stream) = netns.inside(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
            socket.connect(to).expect("an address");
            socket.set_read_timeout(Some(TURN)).expect("a timeout");
            crate::traffic::widen(&socket).expect("an option");
            let stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(5));
            (socket, stream.unwrap_or_else(|error| panic!("connect to {to}: {error}")))
        });
        let (receiver, sender) = (socket.try_clone().expect("a socket"), socket);
        let [first, second, third] = [(); 3].map(|()| Arc::clone(&told));
        let threads = vec![
            thread::spawn(move || first.send(&sender)),
            thread::spawn(move || second.receive(&receiver)),
            thread::spawn(move || third.talk(stream)),
        ];
        Self { told, threads }
    }

    /// Number of the next datagram.
    pub fn now(&self) -> u32 {
        self.told.sent.load(Ordering::Relaxed)
    }

    /// How many of these datagrams did not come back; waits for the last of them.
    pub fn lost(&self, numbers: Range<u32>) -> u32 {
        let count = || numbers.clone().filter(|number| !self.told.is_back(*number)).count() as u32;
        let (mut lost, mut since) = (count(), Instant::now());
        while lost > 0 && since.elapsed() < LATE {
            thread::sleep(TURN / 5);
            let now = count();
            if now < lost {
                (lost, since) = (now, Instant::now());
            }
        }
        lost
    }

    /// Words that came back by TCP so far; `None` if the connection has ended.
    pub fn words(&self) -> Option<u32> {
        let broken = self.told.broken.load(Ordering::Relaxed);
        (!broken).then(|| self.told.words.load(Ordering::Relaxed))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.told.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its panic has been printed, and the case sees what is missing.
            let _ = thread.join();
        }
    }
}

impl Told {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn place(&self, number: u32) -> Option<(&AtomicU8, u8)> {
        Some((self.back.get(number as usize / 8)?, 1 << (number % 8)))
    }

    fn is_back(&self, number: u32) -> bool {
        self.place(number).is_some_and(|(byte, bit)| byte.load(Ordering::Relaxed) & bit != 0)
    }

    fn send(&self, socket: &UdpSocket) {
        let start = Instant::now();
        let mut packet = [0; 64];
        packet[0] = datagram::ECHO;
        for number in 0.. {
            thread::sleep((start + EACH * number).saturating_duration_since(Instant::now()));
            if !self.goes_on() {
                return;
            }
            packet[5..9].copy_from_slice(&number.to_be_bytes());
            // ECONNREFUSED and the like show as loss.
            let _ = socket.send(&packet);
            self.sent.store(number + 1, Ordering::Relaxed);
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        let mut buffer = [0; 2048];
        while self.goes_on() {
            let Ok(9..) = socket.recv(&mut buffer) else { continue };
            let number = u32::from_be_bytes([buffer[5], buffer[6], buffer[7], buffer[8]]);
            if let Some((byte, bit)) = self.place(number) {
                byte.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    fn talk(&self, mut stream: TcpStream) {
        stream.set_read_timeout(Some(TURN)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        let _ = stream.write_all(&[want::ECHO]);
        while self.goes_on() {
            if stream.write_all(b"?").is_err() || !self.answered(&mut stream) {
                break;
            }
            thread::sleep(PAUSE);
        }
        self.broken.store(self.goes_on(), Ordering::Relaxed);
    }

    /// Waits for one word, however long it takes.
    fn answered(&self, stream: &mut TcpStream) -> bool {
        let mut word = [0];
        while self.goes_on() {
            match stream.read(&mut word) {
                Ok(1) => {
                    self.words.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                _ => return false,
            }
        }
        true
    }
}
