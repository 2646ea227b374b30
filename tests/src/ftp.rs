//! Active FTP, as much of it as a conntrack helper has to see.

use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::netns::Netns;

/// Port of the control connection.
pub const PORT: u16 = 21;
/// Bytes of each transfer.
const FILE: usize = 20_000;
/// How long a data connection may take.
const LIMIT: Duration = Duration::from_millis(400);

/// A server; it ends when this goes.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens in a namespace.
    ///
    /// # Panics
    /// The port cannot be had.
    pub fn start(netns: &Netns) -> Self {
        let listener = netns.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)));
        let listener = listener.unwrap_or_else(|error| panic!("port {PORT}: {error}"));
        listener.set_nonblocking(true).expect("a non-blocking socket");
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = netns.spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                match listener.accept() {
                    // How it ends is the client's to tell.
                    Ok((stream, _)) => drop(serve(&stream)),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed, and the client misses its answers.
            let _ = thread.join();
        }
    }
}

/// Serves one control connection.
fn serve(stream: &TcpStream) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut to = None;
    say(stream, "220 ready")?;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("USER", _)) => say(stream, "230 welcome")?,
            Some(("PORT", argument)) => {
                to = place(argument);
                say(stream, "200 PORT command successful")?;
            }
            Some(("RETR", _)) => {
                say(stream, "150 opening a data connection")?;
                let sent = to.take().ok_or_else(|| Error::other("no PORT")).and_then(send);
                say(stream, if sent.is_ok() { "226 complete" } else { "425 no connection" })?;
            }
            _ => say(stream, "500 what?")?,
        }
    }
    Ok(())
}

fn say(mut stream: &TcpStream, line: &str) -> Result<()> {
    stream.write_all(format!("{line}\r\n").as_bytes())
}

fn send(to: SocketAddr) -> Result<()> {
    TcpStream::connect_timeout(&to, LIMIT)?.write_all(&[b'f'; FILE])
}

/// The address of a PORT command: `10,244,1,2,156,64`.
fn place(argument: &str) -> Option<SocketAddr> {
    let bytes: Vec<u8> = argument.trim().split(',').filter_map(|byte| byte.parse().ok()).collect();
    let [a, b, c, d, high, low] = bytes[..] else { return None };
    Some(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])).into())
}

/// Fetches a file `times` times over one control connection, each with a data
/// connection that the server makes: how often it came whole.
///
/// # Panics
/// There is no control connection.
#[track_caller]
pub fn fetch(netns: &Netns, own: Ipv4Addr, server: Ipv4Addr, times: u32) -> u32 {
    let fetched = netns.inside(|| {
        let at = SocketAddrV4::new(server, PORT).into();
        let stream = TcpStream::connect_timeout(&at, Duration::from_secs(2))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut answers = BufReader::new(&stream);
        expect(&mut answers, "220")?;
        // A helper reads lines from the second packet on.
        say(&stream, "USER anonymous")?;
        expect(&mut answers, "230")?;
        let mut whole = 0;
        for _ in 0..times {
            whole += u32::from(transfer(&stream, &mut answers, own)?);
        }
        Ok::<_, Error>(whole)
    });
    fetched.unwrap_or_else(|error| panic!("the control connection: {error}"))
}

/// One transfer: whether the file came.
fn transfer(stream: &TcpStream, answers: &mut impl BufRead, own: Ipv4Addr) -> Result<bool> {
    let listener = TcpListener::bind((own, 0))?;
    listener.set_nonblocking(true)?;
    let [high, low] = listener.local_addr()?.port().to_be_bytes();
    let [a, b, c, d] = own.octets();
    say(stream, &format!("PORT {a},{b},{c},{d},{high},{low}"))?;
    expect(answers, "200")?;
    say(stream, "RETR file")?;
    expect(answers, "150")?;
    let start = Instant::now();
    let mut length = 0;
    while start.elapsed() < LIMIT + LIMIT / 2 {
        let Ok((mut data, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(2));
            continue;
        };
        data.set_nonblocking(false)?;
        data.set_read_timeout(Some(LIMIT))?;
        // A file that is cut short shows by its length.
        let mut file = Vec::new();
        let _ = data.read_to_end(&mut file);
        length = file.len();
        break;
    }
    let last = line(answers)?;
    Ok(length == FILE && last.starts_with("226"))
}

fn line(answers: &mut impl BufRead) -> Result<String> {
    let mut text = String::new();
    answers.read_line(&mut text)?;
    Ok(text)
}

fn expect(answers: &mut impl BufRead, code: &str) -> Result<()> {
    let text = line(answers)?;
    if text.starts_with(code) {
        return Ok(());
    }
    Err(Error::other(format!("{text:?} instead of {code}")))
}
