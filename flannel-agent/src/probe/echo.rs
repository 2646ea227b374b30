//! ICMP echoes that nobody may fragment.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use flannel_core::probe::Answer;
use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
use rustix::net::{SendFlags, ipproto, sendto};

use super::packet::{self, Heard};
use super::raw;

/// One echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Who shall answer.
    pub to: Ipv4Addr,
    /// Length of the IP packet in bytes.
    pub length: u16,
}

/// Sends these one after another, `gap` apart, and waits for answers until `patience`
/// after the last. Blocks.
///
/// # Errors
/// There is no raw socket to be had (`CAP_NET_RAW`), or reading fails.
pub fn echo(echoes: &[Echo], gap: Duration, patience: Duration) -> io::Result<Vec<Answer>> {
    let mut pinger = Pinger::open(echoes.len())?;
    for (number, echo) in echoes.iter().enumerate() {
        pinger.send(number, echo);
        pinger.hear_until(Instant::now() + gap)?;
    }
    pinger.hear_until(Instant::now() + patience)?;
    Ok(pinger.sent.into_iter().map(|sent| sent.answer.unwrap_or(Answer::Silent)).collect())
}

struct Pinger {
    socket: OwnedFd,
    /// Tells our echoes from those of others.
    id: u16,
    sent: Vec<Sent>,
    all: usize,
}

struct Sent {
    to: Ipv4Addr,
    at: Instant,
    answer: Option<Answer>,
}

impl Pinger {
    fn open(all: usize) -> io::Result<Self> {
        let socket = raw::open(ipproto::ICMP)?;
        // DF, whatever the kernel believes of the path.
        sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
        Ok(Self { socket, id: rand::random(), sent: Vec::with_capacity(all), all })
    }

    fn send(&mut self, number: usize, echo: &Echo) {
        let bytes = packet::echo(self.id, number as u16, echo.length);
        let to = SocketAddrV4::new(echo.to, 0);
        let at = Instant::now();
        let answer = match sendto(&self.socket, &bytes, SendFlags::empty(), &to) {
            Ok(_) => None,
            Err(Errno::MSGSIZE) => Some(Answer::TooBig { mtu: None }),
            Err(error) => Some(Answer::NotSent { reason: error.to_string() }),
        };
        self.sent.push(Sent { to: echo.to, at, answer });
    }

    /// Reads until then, or until everything is answered.
    fn hear_until(&mut self, end: Instant) -> io::Result<()> {
        let mut buffer = vec![0; raw::PACKET];
        while self.sent.len() < self.all || self.sent.iter().any(|sent| sent.answer.is_none()) {
            match raw::next(&self.socket, &mut buffer, end)? {
                Some(length) => self.hear(&buffer[..length]),
                None => break,
            }
        }
        Ok(())
    }

    fn hear(&mut self, bytes: &[u8]) {
        let Some((id, number, heard)) = packet::read(bytes) else { return };
        let Some(sent) = self.sent.get_mut(usize::from(number)).filter(|_| id == self.id) else {
            return;
        };
        if sent.answer.is_some() {
            return;
        }
        match heard {
            Heard::Reply { from } if from == sent.to => {
                let micros = sent.at.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
                sent.answer = Some(Answer::Came { micros });
            }
            Heard::TooBig { mtu } => sent.answer = Some(Answer::TooBig { mtu }),
            Heard::Reply { .. } => {}
        }
    }
}
