//! The end that answers.

use std::collections::HashMap;
use std::io::{Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use super::{bulk, datagram, want};

/// How long the accepting thread waits for a client's first byte.
const FIRST_WORD: Duration = Duration::from_millis(1);

/// Serves TCP and UDP on `port` of every address, for ever.
///
/// # Errors
/// The port cannot be had.
pub fn run(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    super::widen(&socket)?;
    println!("listening on {port}");
    thread::spawn(move || datagrams(&socket));
    for stream in listener.incoming() {
        // What ends a connection is the client's to report.
        match stream {
            Ok(mut stream) if asks_once(&stream) => drop(answer_once(&mut stream)),
            Ok(stream) => drop(thread::spawn(move || connection(stream))),
            Err(error) => eprintln!("accept: {error}"),
        }
    }
    Ok(())
}

/// Whether the client wants one answer only. A thread for it would cost more
/// than the connection.
fn asks_once(stream: &TcpStream) -> bool {
    let mut want = [0];
    let asked = stream.set_read_timeout(Some(FIRST_WORD)).and_then(|()| stream.peek(&mut want));
    matches!((asked, want), (Ok(1), [want::ONCE]))
}

fn answer_once(stream: &mut TcpStream) -> Result<()> {
    let mut want = [0];
    stream.read_exact(&mut want)?;
    stream.write_all(&want)
}

fn connection(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(None)?;
    stream.set_nodelay(true)?;
    super::default_congestion_control(&stream);
    let mut want = [0];
    stream.read_exact(&mut want)?;
    match want[0] {
        want::ECHO => echo(&mut stream),
        want::ONCE => stream.write_all(&want),
        want::SINK => sink(&mut stream),
        want::BULK => {
            let (seed, length) = (number(&mut stream)?, number(&mut stream)?);
            let wrong = bulk::receive(&mut stream, seed, length)?;
            stream.write_all(&wrong.map_or(u64::MAX, |offset| offset).to_be_bytes())?;
            bulk::send(&mut stream, seed + 1, length)
        }
        want::TURN => turn(&mut stream),
        _ => Ok(()),
    }
}

fn echo(stream: &mut TcpStream) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

fn sink(stream: &mut TcpStream) -> Result<()> {
    let (mut buffer, mut total) = (vec![0; 256 * 1024], 0_u64);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.write_all(&total.to_be_bytes());
        }
        total += length as u64;
    }
}

fn turn(stream: &mut TcpStream) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut length = [0; 4];
        if stream.read(&mut length[..1])? == 0 {
            return Ok(());
        }
        stream.read_exact(&mut length[1..])?;
        let size = u32::from_be_bytes(length) as usize % buffer.len();
        stream.read_exact(&mut buffer[..size])?;
        buffer[..size].iter_mut().for_each(|byte| *byte = !*byte);
        stream.write_all(&buffer[..size])?;
    }
}

/// A u64 in network order.
pub(super) fn number(stream: &mut impl Read) -> Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn datagrams(socket: &UdpSocket) {
    let mut counts = HashMap::<[u8; 4], u64>::new();
    let mut buffer = vec![0; 65_536];
    loop {
        // Errors are ICMP answers to what was sent back to a client that ended.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        match (buffer[0], length) {
            (datagram::ECHO, _) => drop(socket.send_to(&buffer[..length], from)),
            (datagram::COUNT, 5..) => *counts.entry(id(&buffer)).or_default() += 1,
            (datagram::QUERY, 5..) => {
                let count = counts.get(&id(&buffer)).copied().unwrap_or(0);
                drop(socket.send_to(&count.to_be_bytes(), from));
            }
            _ => {}
        }
    }
}

fn id(packet: &[u8]) -> [u8; 4] {
    [packet[1], packet[2], packet[3], packet[4]]
}
